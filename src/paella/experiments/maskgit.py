"""Does denoising beat MaskGIT? Both ways of training and sampling, each with either network, on the same pictures."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from paella.evaluate.clip_score import clip_scores
from paella.evaluate.metrics import bootstrap
from paella.evaluate.parts import clip_of
from paella.evaluate.scenes import held_out_prompts, score_scenes
from paella.experiments.experiment import Experiment, Figures, Tick
from paella.experiments.kernels import NETWORKS
from paella.experiments.scored import CLIP_SCORE, OBJECT, percent
from paella.experiments.trained import NOTE, names, parameters, train_small
from paella.pipeline import Paella

PICTURES = 200


def masked(network: Mapping[str, Any]) -> dict[str, Any]:
    """The same network with a mask token: it is then trained and asked as MaskGIT."""
    changed: dict[str, Any] = deepcopy(dict(network))
    (sizes,) = changed.values()
    sizes["mask_token"] = True
    return changed


UNET, TRANSFORMER = NETWORKS["kernels 3"], NETWORKS["Transformer"]


def compare(pipeline: Paella, network: Mapping[str, Any], number: int, seed: int, tick: Tick) -> Figures:
    """The figures of pictures by a network after so many training steps, at the model's own sampler settings."""
    trained, curves = train_small(pipeline, network, number, seed, tick)
    prompts = held_out_prompts(PICTURES, "single", seed, names(pipeline))
    scenes, captions = [scene for scene, _ in prompts], [words for _, words in prompts]
    pictures = trained.generate(captions, seed=seed)
    rates = score_scenes(pictures, scenes, captions, names(pipeline))
    return {
        "parameters, M": parameters(trained),
        **curves,
        OBJECT: percent(rates["single_top1"]),
        CLIP_SCORE: bootstrap(clip_scores(clip_of(trained), pictures, captions)),
    }


EXPERIMENT = Experiment(
    "Denoising and MaskGIT",
    {
        "method": {
            "denoising, U-Net": UNET,
            "MaskGIT, U-Net": masked(UNET),
            "denoising, Transformer": TRANSFORMER,
            "MaskGIT, Transformer": masked(TRANSFORMER),
        }
    },
    compare,
    number=600,
    counted="training steps of each network",
    note=f"{NOTE} All are sampled with the model's own settings, which were chosen for denoising.",
    judged={OBJECT: max, CLIP_SCORE: max},
)
