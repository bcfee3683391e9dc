"""How does the time for a picture fall when several are made at once? The paper shows inference time over batch size.

`Paella` divides what it is asked for into batches of its own; here the loop is run with whole ones.
"""

from __future__ import annotations

import time

import torch

from paella.edits import random_tokens, text_to_image
from paella.evaluate.metrics import bootstrap
from paella.evaluate.parts import clip_of
from paella.evaluate.scenes import held_out_prompts
from paella.experiments.experiment import Experiment, Figures, Tick
from paella.method import method_of
from paella.pipeline import Paella
from paella.sampler import guided


def time_batch(pipeline: Paella, count: int, number: int, seed: int, tick: Tick) -> Figures:
    """The seconds for each of `count` pictures made at once, from embeddings to pixels, over `number` runs."""
    prompts = held_out_prompts(count, "single", seed, pipeline.objects or None)
    condition = clip_of(pipeline).embed_text([caption for _, caption in prompts])[:, :, None, None]
    draw_batch(pipeline, condition, seed)  # the first of a size is slower
    seconds = []
    for run in range(number):
        start = time.perf_counter()
        draw_batch(pipeline, condition, seed + run)
        seconds.append((time.perf_counter() - start) / count)
        tick((run + 1) / number)
    return {"seconds a picture": bootstrap(seconds)}


@torch.inference_mode()
def draw_batch(pipeline: Paella, condition: torch.Tensor, seed: int) -> torch.Tensor:
    """Pixels (B,3,H,W) in [0, 1] on the CPU, all made at once under conditions (B,d,1,1)."""
    side = pipeline.size // pipeline.vqgan.config.f
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(condition))]
    noise = random_tokens(generators, side, side, pipeline.vqgan.config.n_embed).to(pipeline.device)
    null = torch.zeros_like(condition[:1])
    denoise = guided(pipeline.predictor.conditioned, condition, null, pipeline.settings.guidance)
    canvas = text_to_image(noise, condition)
    *_, tokens = method_of(pipeline.predictor).sample(denoise, canvas, pipeline.settings, generators)
    return pipeline.decode(tokens)


EXPERIMENT = Experiment(
    "Time for a picture over the batch size",
    {"pictures at once": {str(count): count for count in (1, 2, 4, 8, 16, 32)}},
    time_batch,
    number=10,
    counted="runs of each batch size",
)
