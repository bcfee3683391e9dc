"""Laws of the figures that tell the parts of a model apart."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from paella.data.scene import BACKGROUNDS, COUNTS, Scene, held_out
from paella.data.vocabulary import objects
from paella.data.wordings import captions as captions_of
from paella.evaluate.metrics import by_noise_level
from paella.evaluate.parts import COUNTED_ON, PAIRS, counts_found, pair_order
from paella.evaluate.scenes import held_out_prompts


class Oracle:
    """A CLIP that is shown the pictures of the `captions` in order, and knows the first `knows` of these captions."""

    def __init__(self, captions: list[str], knows: int) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.model.device = torch.device("cpu")  # type: ignore[assignment]
        self.directions = torch.eye(len(captions) + 1)
        self.index = {words: i for i, words in enumerate(captions[:knows])}
        self.asked = 0

    def unwhitened(self) -> "Oracle":
        return self

    def embed_text(self, texts: list[str]) -> Tensor:
        return torch.stack([self.directions[self.index.get(text, -1)] for text in texts])

    def embed_images(self, pixels: Tensor) -> Tensor:
        self.asked += len(pixels)
        return self.directions[self.asked - len(pixels) : self.asked]


def test_pair_order_is_the_share_of_pairs_told_from_their_mirror_image() -> None:
    captions = [words for _, words in held_out_prompts(PAIRS, "pair", 0)]
    for knows in (0, 100, PAIRS):
        order = pair_order(cast(Any, Oracle(captions, knows)), 16, names=list(objects()))
        assert abs(order - knows / PAIRS) < 0.02  # a caption may come twice


def test_counts_found_is_the_share_of_the_held_out_ones_that_find_their_caption() -> None:
    scenes = [
        Scene((name,) * count, background, "count")
        for background in list(BACKGROUNDS)[:COUNTED_ON]
        for name in objects()
        for count in COUNTS
    ]
    captions = [captions_of(scene)[0] for scene in scenes if held_out(scene)]
    for knows in (0, 10, len(captions)):
        assert counts_found(cast(Any, Oracle(captions, knows)), 16) == pytest.approx(knows / len(captions))
    never = next(name for name in objects() if not any(held_out(s) for s in scenes if s.objects[0] == name))
    assert counts_found(cast(Any, Oracle(captions, 0)), 16, names=[never]) is None


def test_each_noise_level_has_its_own_mean() -> None:
    t = torch.tensor([0.0, 0.1, 0.25, 0.6, 1.0])
    levels = by_noise_level(t, {"loss": torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0])})
    assert {name: float(figures["loss"]) for name, figures in levels.items()} == {
        "0-0.25": 2,
        "0.25-0.5": 5,
        "0.5-0.75": 7,
        "0.75-1": 9,
    }
    assert by_noise_level(t[:2], {"loss": t[:2]})["0.5-0.75"]["loss"].isnan()
