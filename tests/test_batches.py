"""Pictures are drawn together where that changes no bit, and one at a time where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from paella.batches import AT_ONCE, FILLING, Batches
from paella.canvas import Canvas
from paella.pipeline import Paella
from paella.sampler import Denoise


class Rounding(nn.Module):
    """A predictor whose logits are off by `error` in a batch of more than `alone` rows; it counts its passes."""

    def __init__(self, error: float = 0.0, alone: int = 1) -> None:
        super().__init__()
        self.clf = nn.Conv2d(1, 1, 1)
        self.error, self.alone, self.rows = error, alone, list[int]()

    def conditioned(self, condition: Tensor) -> Denoise:
        def denoise(tokens: Tensor, t: Tensor) -> Tensor:
            assert len(tokens) == len(condition) == len(t)
            self.rows.append(len(tokens))
            logits = tokens[:, None].float() + condition.mean()
            return logits + self.error * (len(tokens) > self.alone)

        return denoise


def canvas(count: int) -> Canvas:
    tokens = torch.arange(count * 4).view(count, 2, 2)
    return Canvas(tokens, torch.zeros_like(tokens, dtype=torch.bool), torch.ones(count, 3, 1, 1))


def drawn(batches: Batches, predictor: Rounding, count: int, weight: float = 1.0, at_most: int = 4) -> list[int]:
    parts = batches.parts(predictor, canvas(count), torch.zeros(1, 3, 1, 1), weight, at_most)  # type: ignore[arg-type]
    seen = [list(range(count))[part] for part, _ in parts]
    assert [index for part in seen for index in part] == list(range(count))
    return [len(part) for part in seen]


def test_pictures_are_drawn_together_where_no_bit_changes() -> None:
    batches, predictor = Batches(), Rounding()
    assert drawn(batches, predictor, 10) == [4, 4, 2]
    assert predictor.rows == [4, 1, 1, 1, 1, 2, 1, 1]  # each size was tried once
    assert drawn(batches, predictor, 8) == [4, 4]
    assert len(predictor.rows) == 8


def test_pictures_are_drawn_one_at_a_time_where_a_bit_changes() -> None:
    batches, predictor = Batches(), Rounding(error=0.01)
    assert drawn(batches, predictor, 10) == [1] * 10
    tried = len(predictor.rows)
    assert drawn(batches, predictor, 10) == [1] * 10 and len(predictor.rows) == tried
    # with guidance a pair is the least batch, which rounds as one row here and other than four
    assert drawn(batches, Rounding(error=0.01, alone=2), 3, weight=2.0) == [1] * 3
    assert drawn(batches, Rounding(error=0.01, alone=4), 3, weight=1.0) == [3]


def test_a_size_is_tried_for_each_predictor_and_with_and_without_guidance() -> None:
    batches, rounding = Batches(), Rounding(error=0.01, alone=4)
    assert drawn(batches, rounding, 4, weight=1.0) == [4]
    assert drawn(batches, rounding, 4, weight=3.0) == [1] * 4
    assert drawn(batches, Rounding(), 4, weight=3.0) == [4]


def test_a_picture_that_fills_the_cores_is_drawn_alone(tiny: Paella) -> None:
    most = Batches().most
    assert most(tiny.predictor, FILLING - 1) == AT_ONCE
    assert most(tiny.predictor, FILLING) == 1


@pytest.fixture
def watched(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[int]]]:
    """The batch sizes in which `tiny` is asked for logits."""
    sizes: list[int] = []
    step = type(tiny.predictor).step

    def counting(self: nn.Module, tokens: Tensor, *rest: object) -> Tensor:
        sizes.append(len(tokens))
        return step(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tiny.predictor), "step", counting)
    yield lambda: sizes


def test_pictures_drawn_together_are_those_drawn_alone(tiny: Paella, watched: Callable[[], list[int]]) -> None:
    together = tiny.generate("a dog", n=5, seed=3)
    assert max(watched()) == 10  # with guidance
    alone = [tiny.generate("a dog", seed=3 + i)[0] for i in range(5)]
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]
