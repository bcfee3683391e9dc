"""Experiments on the sampler's settings: held-out emoji scenes are asked for, and judged as in `evaluate.scenes`.

Every setting sees the same prompts and seeds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from PIL import Image

from paella.data.scene import Scene
from paella.evaluate import quality
from paella.evaluate.features import open_extractor
from paella.evaluate.metrics import Estimate, bootstrap
from paella.evaluate.quality import look
from paella.evaluate.scenes import KINDS, Rate, held_out_prompts, real_pictures, score_scenes, trained_on
from paella.experiments.experiment import Experiment, Figures, Tick
from paella.pipeline import Paella

AT_ONCE = 16  # pictures drawn between two looks at the clock: what a GPU makes at once
OBJECT, PAIR = "one object right, %", "a pair, both right, %"
FRECHET, PRECISION, RECALL, CLIP_SCORE = "Fréchet distance", "precision", "recall", "CLIP score"
COLUMNS = {"frechet": FRECHET, "precision": PRECISION, "recall": RECALL, "clip": CLIP_SCORE}
COLUMNS |= {"clip_chance": "CLIP score, captions shuffled"}


def scored(title: str, groups: Mapping[str, Mapping[str, Mapping[str, Any]]], number: int = 100) -> Experiment:
    """An experiment whose settings are changes to the model's own `SamplerSettings`."""
    return Experiment(
        title,
        groups,
        draw_and_score,
        number,
        counted="held-out prompts of each kind (one object, a small one, a pair)",
        fewest=4,  # manifolds of half of the pictures need as many neighbours
        judged={OBJECT: max, PAIR: max, FRECHET: min, PRECISION: max, RECALL: max, CLIP_SCORE: max},
        reference=score_real,
        comes_to=lambda pipeline, changes: replace(pipeline.settings, **changes),
        note="Fréchet distance, precision and recall: against as many other real pictures, by features of the model's"
        " own CLIP image encoder, whitened; pictures of another size are resized bicubically, antialiased. Seconds grow"
        " with whatever else the machine did meanwhile.",
    )


def draw_and_score(pipeline: Paella, changes: Mapping[str, Any], number: int, seed: int, tick: Tick) -> Figures:
    """Figures of pictures drawn with changed sampler settings, and the seconds that each took."""
    variant = copy(pipeline)
    variant.settings = replace(pipeline.settings, **changes)
    scenes, captions = prompts(pipeline, number, seed)
    variant.generate(captions[0], seed=seed)  # the first of a process is slower
    pictures: list[Image.Image] = []
    seconds: list[float] = []
    while len(pictures) < len(captions):
        part = captions[len(pictures) : len(pictures) + AT_ONCE]
        start = time.perf_counter()
        pictures += variant.generate(part, seed=seed + len(pictures))
        seconds.append((time.perf_counter() - start) / len(part))
        tick(len(pictures) / len(captions))
    return score(pipeline, pictures, scenes, captions, seed) | {"seconds a picture": bootstrap(seconds)}


def score_real(pipeline: Paella, number: int, seed: int) -> Figures:
    """Figures of real pictures of the same scenes, which generated ones can hardly be expected to beat."""
    scenes, captions = prompts(pipeline, number, seed)
    pictures = real_pictures(scenes, pipeline.size, seed, **trained_on(pipeline))
    return score(pipeline, pictures, scenes, captions, seed)


def prompts(pipeline: Paella, number: int, seed: int) -> tuple[list[Scene], list[str]]:
    """So many held-out scenes of each kind, with their captions."""
    drawn = [pair for kind in KINDS for pair in held_out_prompts(number, kind, seed, pipeline.objects or None)]
    return [scene for scene, _ in drawn], [words for _, words in drawn]


def score(
    pipeline: Paella, pictures: Sequence[Image.Image], scenes: Sequence[Scene], captions: Sequence[str], seed: int
) -> Figures:
    """The columns of every table: whoever has another metric adds it here.

    Distances and manifolds are against as many real pictures of other scenes, by the features of the model's own CLIP.
    """
    rates = score_scenes(pictures, scenes, captions, pipeline.objects or None)
    others, _ = prompts(pipeline, len(scenes) // len(KINDS), seed + 1)
    real = real_pictures(others, pipeline.size, seed + 1, **trained_on(pipeline))
    extractor = open_extractor("clip", pipeline)
    found = quality.score(look(extractor, real), look(extractor, pictures), extractor.read(captions), seed)
    return {
        OBJECT: percent(rates["object_top1"]),
        PAIR: percent(rates["pair_both_top1"]),
        **{column: found[row] for row, column in COLUMNS.items()},
    }


def percent(rate: Rate) -> Estimate:
    return {"value": 100 * rate["rate"], "low": 100 * rate["low"], "high": 100 * rate["high"]}
