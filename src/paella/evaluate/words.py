"""Are objects drawn when they are called by other words than their names, and in other languages?

The words are those of `paella.data.vocabulary.synonyms`. A word may be of up to three objects; any of these is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from paella.data.scene import BACKGROUNDS, Scene
from paella.data.vocabulary import Part, objects, synonyms
from paella.data.wordings import told
from paella.evaluate.matching import Matcher
from paella.evaluate.scenes import Pipeline, Rate, beside_real, share
from paella.images import to_tensor

WORDS = 1006  # last word of the random seeds
GROUPS: dict[str, tuple[str, Part]] = {
    "synonyms in English": ("en", "trained"),
    "· never trained on": ("en", "held out"),
    "German": ("de", "trained"),
    "Spanish": ("es", "trained"),
    "French": ("fr", "trained"),
    "Korean": ("ko", "trained"),
}


def word_prompts(
    group: str, n: int, seed: int = 0, names: Sequence[str] | None = None
) -> list[tuple[Scene, str, set[str]]]:
    """`n` scenes of one object in the middle, each with a caption that does not use the object's English name, and with
    the objects that its word may mean.

    Args:
        group: one of `GROUPS`.
        names: objects to draw from; by default those of the built-in model.

    Raises:
        ValueError: none of `names` has such a word.
    """
    language, part = GROUPS[group]
    table = {name: synonyms(language, part)[name] for name in names or objects() if name in synonyms(language, part)}
    if not table:
        raise ValueError(f"none of these objects has a word for the group {group}")
    prompts = []
    for index in range(n):
        rng = np.random.default_rng((seed, index, list(GROUPS).index(group), WORDS))
        name = list(table)[rng.integers(len(table))]
        word = table[name][rng.integers(len(table[name]))]
        background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        meant = {other for other, words in table.items() if word.casefold() in map(str.casefold, words)}
        prompts.append((Scene((name,), background, "single"), told(language, word, background), meant))
    return prompts


def evaluate_words(
    pipeline: Pipeline,
    n: int,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    snap: int = 1,
    jitter: int = 0,
    **settings: Any,
) -> dict[str, dict[str, Rate]]:
    """How often `n` pictures of each of the `GROUPS` show an object that their word means, of all objects best.

    Args:
        names: objects to draw from, all of which compete; by default those of the built-in model.
        snap, jitter: those of the real pictures.
        settings: of `pipeline.generate`.

    Returns:
        For the pictures "generated", "reconstructed" and "real": group -> rate.

    Raises:
        ValueError: none of `names` has a word of some group.
    """
    names = list(names or objects())
    scores: dict[str, dict[str, Rate]] = {}
    prompts = {group: word_prompts(group, n, seed, names) for group in GROUPS}  # first: one of them may be refused
    for group, asked in prompts.items():
        scenes, captions, meant = zip(*asked, strict=True)
        generated = pipeline.generate(list(captions), seed=seed, **settings)
        matcher = Matcher(names, generated[0].width)
        for column, pictures in beside_real(pipeline, generated, scenes, seed, snap=snap, jitter=jitter).items():
            found = matcher.scores(to_tensor(pictures)).max(1)
            sure = found.values > 0  # nothing matches a picture of nothing
            hits = [names[best] in these for best, these in zip(found.indices.tolist(), meant, strict=True)]
            scores.setdefault(column, {})[group] = share(torch.tensor(hits) & sure)
    return scores
