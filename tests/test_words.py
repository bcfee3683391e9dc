"""Evaluation by other words and by number: who draws what is asked for is right, who does not is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paella.data.render import render
from paella.data.scene import COUNTS, Scene, held_out
from paella.data.vocabulary import all_objects, synonyms, words
from paella.evaluate.counts import count_prompts, evaluate_counts
from paella.evaluate.matching import Matcher
from paella.evaluate.words import GROUPS, evaluate_words, word_prompts

NAMES = [name for name in all_objects() if "face" not in name and name in synonyms("en", "held out")][::4]


def drawn(scene: Scene, seed: int = 0) -> Image.Image:
    return render(scene, 64, np.random.default_rng(seed), jitter=0)


class Obedient:
    """Draws the scene that a caption is of, after `change`."""

    def __init__(self, prompts: list[Any], change: Callable[[Scene], Scene] = lambda scene: scene) -> None:
        self.scenes = {prompt[1]: change(prompt[0]) for prompt in prompts}

    def generate(self, prompt: list[str], *, seed: int, **settings: Any) -> list[Image.Image]:
        return [drawn(self.scenes[words], seed + i) for i, words in enumerate(prompt)]

    def reconstruct(self, pictures: list[Image.Image], /) -> list[Image.Image]:
        return pictures


@pytest.mark.parametrize("group", GROUPS)
def test_a_prompt_has_a_word_for_its_object_and_not_its_name(group: str) -> None:
    language, part = GROUPS[group]
    for scene, caption, meant in word_prompts(group, 40, names=NAMES):
        assert scene.objects[0] in meant <= set(NAMES)
        assert any(word in caption for word in synonyms(language, part)[scene.objects[0]])
        assert all(any(word in caption for word in synonyms(language, part)[name]) for name in meant)
    assert word_prompts(group, 5, names=NAMES) == word_prompts(group, 9, names=NAMES)[:5]


def test_objects_without_such_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="none of these objects has a word"):
        word_prompts("· never trained on", 1, names=["fox"])


@pytest.mark.parametrize("wrong", [False, True])
def test_any_object_that_the_word_means_is_right_and_others_are_wrong(wrong: bool) -> None:
    prompts = [prompt for group in GROUPS for prompt in word_prompts(group, 6, 3, NAMES)]

    def other(scene: Scene) -> Scene:
        at = NAMES.index(scene.objects[0])
        return Scene((NAMES[at - 1],), scene.background, scene.layout) if wrong else scene

    scores = evaluate_words(Obedient(prompts, other), 6, 3, names=NAMES)
    assert set(scores) == {"generated", "reconstructed", "real"}
    rates = [rate["rate"] for rate in scores["generated"].values()]
    assert np.mean(rates) < 0.1 if wrong else np.mean(rates) > 0.95
    assert np.mean([rate["rate"] for rate in scores["real"].values()]) > 0.95


def test_counts_that_are_asked_for_are_held_out() -> None:
    prompts = count_prompts(60, names=NAMES)
    assert all(held_out(scene) and scene.layout == "count" for scene, _ in prompts)
    assert {len(scene.objects) for scene, _ in prompts} == set(COUNTS)
    assert all(words.split(" ")[0] in ("two", "three", "four") for _, words in prompts)


@pytest.mark.parametrize("missing", [0, 1])
def test_as_many_as_asked_for_is_right_and_one_less_is_wrong(missing: int) -> None:
    def fewer(scene: Scene) -> Scene:
        kept = scene.objects[missing:]
        return Scene(kept, scene.background, "count" if len(kept) > 1 else "small")

    scores = evaluate_counts(Obedient(count_prompts(40, 1, NAMES), fewer), 40, 1, names=NAMES)
    rate = scores["generated"]["exact"]["rate"]
    assert rate <= 0.05 if missing else rate >= 0.95
    assert sum(scores["generated"][str(count)]["n"] for count in COUNTS) == 40


def test_nothing_is_counted_as_nothing() -> None:
    assert Matcher(["fox"]).copies(torch.full((3, 64, 64), 0.5), "fox") == 0


def test_an_object_is_known_by_many_words() -> None:
    assert {"dog face", "dog faces", "puppy", "puppies", "Hundegesicht", "cara de perro", "강아지"} <= set(
        words("dog face")
    )
    assert all(name in words(name) for name in all_objects())
