"""Laws of every token predictor, whichever network it is. Those of one alone: test_unet.py, test_transformer.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fakes import inputs, randomised

from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.checkpoint import Predictor
from paella.unet import TokenPredictor, UNetConfig

UNET = UNetConfig(num_labels=20, c_hidden=16, c_clip=6, c_r=5, down_levels=(1, 2, 1), up_levels=(1, 1, 2))
TRANSFORMER = TransformerConfig(num_labels=20, width=16, c_clip=6, c_r=5, layers=2, heads=4, grid=4)


@pytest.fixture(scope="module", params=["unet", "transformer"])
def predictor(request: Any) -> Predictor:
    if request.param == "unet":
        return randomised(lambda: TokenPredictor(UNET))
    return randomised(lambda: TransformerPredictor(TRANSFORMER))


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (3, 5), (7, 2), (8, 2), (4, 4), (9, 8), (16, 16)])
def test_any_grid_has_logits_and_a_constant_map_is_the_vector(predictor: Predictor, grid: tuple[int, int]) -> None:
    tokens, condition, t = inputs(*grid)
    logits = predictor(tokens, condition, t)
    assert logits.shape == (2, 20, *grid)
    assert logits.isfinite().all()
    for size in (grid, (3, 4)):
        constant = condition[:, :, None, None].expand(-1, -1, *size)
        torch.testing.assert_close(predictor(tokens, constant, t), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (3, 5)])
def test_conditioned_is_forward_and_can_be_used_again(predictor: Predictor, grid: tuple[int, int]) -> None:
    tokens, condition, t = inputs(*grid)
    denoise = predictor.conditioned(condition[:, :, None, None])
    for time in (t, t / 2):
        assert torch.equal(denoise(tokens, time), predictor(tokens, condition, time))


def test_condition_time_and_tokens_matter(predictor: Predictor) -> None:
    tokens, condition, t = inputs(8, 8)
    logits = predictor(tokens, condition, t)
    assert not torch.allclose(predictor(tokens, -condition, t), logits)
    assert not torch.allclose(predictor(tokens, condition, t / 2), logits)
    assert not torch.allclose(predictor((tokens + 1) % 20, condition, t), logits)


def test_pictures_of_a_batch_do_not_see_each_other(predictor: Predictor) -> None:
    tokens, condition, t = inputs(5, 8, batch=3)
    together = predictor(tokens, condition, t)
    alone = torch.cat([predictor(tokens[i : i + 1], condition[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (3, 5)])
def test_it_computes_in_its_own_dtype(predictor: Predictor, grid: tuple[int, int]) -> None:
    half = copy.deepcopy(predictor).bfloat16()
    tokens, condition, t = inputs(*grid)
    logits, exact = half(tokens, condition, t), predictor(tokens, condition, t)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).norm() < 0.1 * exact.norm()
