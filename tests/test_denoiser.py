"""A predictor in two parts says what it says in one, and its last layer is asked no more than it must be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import CODES, a_canvas, generators
from torch import Tensor

from paella.blocks import Pointwise
from paella.denoiser import Denoise, Denoiser, Logits
from paella.sampler import RENOISE_PLACES, SamplerSettings, guided, sample

CHANNELS = 4


class Last(Pointwise):
    """A last layer in float64, which notes of how many places it was asked each time."""

    def __init__(self) -> None:
        super().__init__(CHANNELS, CODES)
        self.double().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.normal_(generator=generator)
        self.asked = list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x[:, 0].numel())
        return super().forward(x)


def features(tokens: Tensor, t: Tensor, condition: Tensor | float = 0.0) -> Tensor:
    frequencies = torch.arange(1, CHANNELS + 1, dtype=torch.float64).view(1, -1, 1, 1)
    return ((tokens[:, None] + condition) * frequencies + t.view(-1, 1, 1, 1)).sin()


def test_some_rows_are_those_of_all_and_each_pictures_are_computed_by_themselves() -> None:
    last = Last()
    tokens = torch.randint(CODES, (3, 6, 5), generator=torch.Generator().manual_seed(1))
    logits = Logits(features(tokens, torch.ones(3)), last)
    wanted = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(2)) < torch.tensor([0.9, 0.4, 0]).view(3, 1, 1)
    rows = logits.rows(wanted)
    assert last.asked == wanted.sum((1, 2)).tolist() and last.asked[2] == 0
    torch.testing.assert_close(rows, logits.everywhere().permute(0, 2, 3, 1)[wanted])
    alone = [Logits(own[None], last).rows(where[None]) for own, where in zip(logits.features, wanted, strict=True)]
    assert torch.equal(rows, torch.cat(alone))  # to the bit
    assert logits.codes == CODES


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5, -1.0])
def test_guidance_before_the_last_layer_is_guidance_after_it(weight: float) -> None:
    last = Last()

    def in_one(condition: Tensor) -> Denoise:
        return lambda tokens, t: last(features(tokens, t, condition[:, :1]))

    def in_two(condition: Tensor) -> Denoise:
        return Denoiser(lambda tokens, t: features(tokens, t, condition[:, :1]), last)

    condition, null = torch.randn(2, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    tokens, t = torch.randint(CODES, (2, 6, 5)), torch.tensor([0.3, 0.8])
    expected = guided(in_one, condition, null, weight)(tokens, t)
    last.asked.clear()
    torch.testing.assert_close(guided(in_two, condition, null, weight)(tokens, t), expected)
    assert last.asked == [tokens.numel()]  # of a pair once


@pytest.mark.parametrize("renoise_at", RENOISE_PLACES)
@pytest.mark.parametrize("renoise", ["initial", "fresh"])
def test_the_loop_draws_the_same_and_asks_the_last_layer_where_it_draws(renoise: str, renoise_at: str) -> None:
    last, settings = Last(), SamplerSettings(typical_mass=0.8, renoise=renoise, renoise_at=renoise_at)
    canvas = a_canvas(0, 1, height=24, width=20)
    canvas.frozen[1, :8] = True
    runs = [
        list(sample(denoise, canvas, settings, generators(0, 1)))
        for denoise in (lambda tokens, t: last(features(tokens, t)), Denoiser(features, last))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))

    last.asked.clear()
    drawn = list(sample(Denoiser(features, last), canvas, replace(settings, renoise="initial"), generators(0, 1)))
    places = int((~canvas.frozen).sum())
    if renoise_at == "random":
        assert sum(last.asked) < 0.5 * settings.steps * places
    assert sum(last.asked[-2:]) == places and len(drawn) == settings.steps
