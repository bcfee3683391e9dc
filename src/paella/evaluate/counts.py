"""Are there as many objects as were asked for? Judged on emoji scenes, by counting places where the object matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from paella.data.scene import COUNTS, Scene, draw_scene, held_out
from paella.data.vocabulary import objects
from paella.data.wordings import NUMBERS, plain
from paella.evaluate.matching import Matcher
from paella.evaluate.scenes import Pipeline, Rate, beside_real, share
from paella.images import to_tensor

COUNTED = 1007  # last word of the random seeds
ROWS = {"exact": "as many as asked for", **{str(count): f"· {NUMBERS[count]}" for count in COUNTS}}


def count_prompts(n: int, seed: int = 0, names: Sequence[str] | None = None) -> list[tuple[Scene, str]]:
    """`n` scenes of one object repeated, with plain captions; object and number are a pair that training never saw.

    Args:
        names: objects to draw from; by default those of the built-in model.
    """
    names = list(names or objects())
    prompts = []
    for index in range(n):
        scene = draw_scene(np.random.default_rng((seed, index, COUNTED)), names, layouts=["count"], accept=held_out)
        prompts.append((scene, plain(scene)))
    return prompts


def evaluate_counts(
    pipeline: Pipeline,
    n: int,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    snap: int = 1,
    jitter: int = 0,
    **settings: Any,
) -> dict[str, dict[str, Rate]]:
    """How often `n` pictures show the object exactly as often as asked for.

    Args:
        names: objects to draw from; by default those of the built-in model.
        snap, jitter: those of the real pictures.
        settings: of `pipeline.generate`.

    Returns:
        For the pictures "generated", "reconstructed" and "real", those of `ROWS`.
    """
    scenes, captions = zip(*count_prompts(n, seed, names), strict=True)
    generated = pipeline.generate(list(captions), seed=seed, **settings)
    matcher = Matcher(sorted({scene.objects[0] for scene in scenes}), generated[0].width)
    scores: dict[str, dict[str, Rate]] = {}
    for column, pictures in beside_real(pipeline, generated, scenes, seed, snap=snap, jitter=jitter).items():
        hits = [
            matcher.copies(picture, scene.objects[0]) == len(scene.objects)
            for picture, scene in zip(to_tensor(pictures), scenes, strict=True)
        ]
        scores[column] = {"exact": share(hits)}
        for count in COUNTS:
            own = [hit for hit, scene in zip(hits, scenes, strict=True) if len(scene.objects) == count]
            scores[column][str(count)] = share(own)
    return scores
