"""Laws of the figures that tell the parts of a model apart."""

from typing import Any, cast

import torch
from torch import Tensor

from paella.data.scenes import objects
from paella.evaluate.metrics import by_noise_level
from paella.evaluate.parts import PAIRS, pair_order
from paella.evaluate.scenes import held_out_prompts


class Oracle:
    """A CLIP that knows of the gallery's captions which picture is whose; `knows` of them, in order, and no others."""

    def __init__(self, knows: int) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.model.device = torch.device("cpu")  # type: ignore[assignment]
        captions = [words for _, words in held_out_prompts(PAIRS, "pair", 0)]
        self.index = {words: i for i, words in enumerate(captions[:knows])}
        self.asked = 0

    def unwhitened(self) -> "Oracle":
        return self

    def embed_text(self, texts: list[str]) -> Tensor:
        return torch.stack([torch.eye(PAIRS + 1)[self.index.get(text, PAIRS)] for text in texts])

    def embed_images(self, pixels: Tensor) -> Tensor:
        self.asked += len(pixels)
        return torch.eye(PAIRS + 1)[self.asked - len(pixels) : self.asked]


def test_pair_order_is_the_share_of_pairs_told_from_their_mirror_image() -> None:
    for knows in (0, 100, PAIRS):
        order = pair_order(cast(Any, Oracle(knows)), 16, names=list(objects()))
        assert abs(order - knows / PAIRS) < 0.02  # a caption may come twice


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
