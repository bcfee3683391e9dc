"""Pictures are drawn together where that changes no bit, and one at a time where it does."""

from __future__ import annotations

from copy import copy, deepcopy

import pytest
import torch
from torch import Tensor, nn

from paella.batches import AT_LEAST, AT_ONCE, LARGE, Batches
from paella.canvas import Canvas
from paella.denoiser import Denoise
from paella.engine import Cancelled
from paella.pipeline import Paella
from paella.speedups import compile_steps, quantize_int8


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


def drawn(
    batches: Batches, predictor: Rounding, count: int, weight: float = 1.0, at_most: int = 5, start: float = 1.0
) -> list[int]:
    """How many pictures each batch has, of so many that are asked for."""
    tokens = torch.arange(count * 4).view(count, 2, 2)
    canvas = Canvas(tokens, torch.zeros_like(tokens, dtype=torch.bool), torch.ones(count, 3, 1, 1), start)
    parts = batches.parts(predictor, canvas, torch.zeros(1, 3, 1, 1), weight, at_most)  # type: ignore[arg-type]
    seen = [list(range(count))[part] for part, _ in parts]
    assert [index for part in seen for index in part] == list(range(count))
    return [len(part) for part in seen]


def test_pictures_are_drawn_together_where_no_bit_changes() -> None:
    batches, predictor = Batches(), Rounding()
    assert drawn(batches, predictor, 9) == [5, 4]
    assert predictor.rows == [5, 1, 1, 1, 1, 1, 4, 1, 1, 1, 1]  # each size was tried once
    assert drawn(batches, predictor, 10) == [5, 5]
    assert len(predictor.rows) == 11


class FarOff(nn.Linear):
    """Rounds differently in a batch of more than one picture, and only numbers that a picture does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (len(x) > 1) * (x > 2).any()


def test_a_layer_that_rounds_differently_is_found_though_one_pass_does_not_show_it() -> None:
    class Layered(Rounding):
        def conditioned(self, condition: Tensor) -> Denoise:
            denoise = super().conditioned(condition)
            return lambda tokens, t: denoise(tokens, t) + self.layer(torch.zeros(len(tokens), 50, 8)).sum()

    predictor = Layered()
    for layer, parts in ((nn.Linear(8, 8, bias=False), [5]), (FarOff(8, 8, bias=False), [1] * 5)):
        predictor.layer = layer
        assert drawn(Batches(), predictor, 5) == parts


def test_pictures_are_drawn_one_at_a_time_where_a_bit_changes() -> None:
    batches, predictor = Batches(), Rounding(error=0.01)
    assert drawn(batches, predictor, 10) == [1] * 10
    tried = len(predictor.rows)
    assert tried == 2  # the first that differs is enough
    assert drawn(batches, predictor, 10) == [1] * 10 and len(predictor.rows) == tried


def test_a_size_is_tried_for_each_predictor_and_with_and_without_guidance() -> None:
    batches, rounding = Batches(), Rounding(error=0.01, alone=5)
    assert drawn(batches, rounding, 5, weight=1.0) == [5]
    assert drawn(batches, rounding, 5, weight=3.0) == [1] * 5  # ten rows, which round otherwise than two
    assert drawn(batches, Rounding(), 5, weight=3.0) == [5]


def test_few_pictures_and_those_that_need_no_step_are_not_worth_a_try() -> None:
    predictor = Rounding()
    assert drawn(Batches(), predictor, AT_LEAST - 1) == [1] * (AT_LEAST - 1)
    assert drawn(Batches(), predictor, AT_LEAST, start=0.0) == [1] * AT_LEAST
    assert not predictor.rows


def test_what_cannot_gain_is_drawn_alone(tiny: Paella) -> None:
    most = Batches().most
    assert most(tiny.predictor, LARGE - 1) == AT_ONCE
    assert most(tiny.predictor, LARGE) == 1
    compiled, quantized = deepcopy(tiny.predictor), deepcopy(tiny.predictor)
    compile_steps(compiled)
    assert most(compiled, 64) == 1
    if torch.cpu._is_vnni_supported():
        quantize_int8(quantized)
        assert most(quantized, 64) == 1
    assert most(deepcopy(tiny.predictor).to("meta"), LARGE) == AT_ONCE  # as on a GPU


def test_pictures_drawn_together_are_those_drawn_alone(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = copy(tiny), list[int]()
    model.predictor, model._batches = deepcopy(tiny.predictor), Batches()

    def conditioned(condition: Tensor) -> Denoise:  # in which no place and no row knows of another: exact in any batch
        def denoise(tokens: Tensor, t: Tensor) -> Tensor:
            passes.append(len(tokens))
            codes = torch.arange(model.vqgan.config.n_embed).view(1, -1, 1, 1)
            return (tokens[:, None] * codes).sin() + condition[:, :1] * codes.cos()

        return denoise

    monkeypatch.setattr(model.predictor, "conditioned", conditioned)
    together = model.generate("a dog", n=6, seed=3)
    assert passes.count(12) == 1 + model.settings.steps  # with guidance; one more to compare
    alone = [model.generate("a dog", seed=3 + i)[0] for i in range(6)]
    assert [picture.tobytes() for picture in together] == [picture.tobytes() for picture in alone]


def test_whoever_stops_gets_the_batches_that_are_finished(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batches, "_same_bits", lambda *_: True)
    monkeypatch.setattr(Batches, "most", lambda *_: 4)
    seen: list[tuple[int, int]] = []

    def stop(step: int, steps: int, tokens: Tensor) -> bool:
        seen.append((step, len(tokens)))
        return len(seen) < 3

    with pytest.raises(Cancelled) as stopped:
        tiny.generate("a dog", n=6, steps=2, on_step=stop)
    assert seen == [(1, 4), (2, 4), (1, 2)] and len(stopped.value.pictures) == 4
