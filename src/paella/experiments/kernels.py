"""Which kernels should the U-Net's blocks have, and is it better than a Transformer? The paper's first figure.

All networks have about as many parameters, and are trained for as many steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from paella.evaluate.metrics import bootstrap
from paella.experiments.experiment import Experiment, Figures, Tick
from paella.experiments.trained import ACCURACY, LOSS, NOTE, judge, parameters, train_small
from paella.pipeline import Paella

TIMED = 10  # forward passes


def unet(*kernels: int) -> dict[str, Any]:
    return {"model": {"c_hidden": 256, "down_levels": [2, 2, 2], "up_levels": [2, 2, 2], "kernels": list(kernels)}}


NETWORKS = {
    "kernels 1": unet(1),
    "kernels 3": unet(3),
    "kernels 5": unet(5),
    "kernels 1, 3, 5 in turn": unet(1, 3, 5),
    "Transformer": {"transformer": {"width": 256, "layers": 5, "heads": 8}},
}


def compare(pipeline: Paella, network: Mapping[str, Any], number: int, seed: int, tick: Tick) -> Figures:
    """The figures of a network after so many training steps, and the seconds of a forward pass for one picture."""
    trained, curves = train_small(pipeline, network, number, seed, tick)
    return {
        "parameters, M": parameters(trained),
        **curves,
        **judge(pipeline, trained, seed),
        "seconds a sampling step": bootstrap(seconds_a_step(trained)),
    }


@torch.inference_mode()
def seconds_a_step(trained: Paella) -> list[float]:
    """Of forward passes for one picture without guidance, in the pipeline's own dtype."""
    side = trained.size // trained.vqgan.config.f
    denoise = trained.predictor.conditioned(torch.zeros(1, trained.clip.dim, 1, 1, device=trained.device))
    tokens = torch.zeros(1, side, side, dtype=torch.long, device=trained.device)
    t = torch.ones(1, device=trained.device)
    denoise(tokens, t)  # the first is slower
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        denoise(tokens, t).cpu()
        seconds.append(time.perf_counter() - start)
    return seconds


EXPERIMENT = Experiment(
    "Kernels of the U-Net, and a Transformer",
    {"network": NETWORKS},
    compare,
    number=600,
    counted="training steps of each network",
    note=f"{NOTE} The seconds are of ten passes one after another, each network at another time.",
    judged={LOSS: min, ACCURACY: max},
)
