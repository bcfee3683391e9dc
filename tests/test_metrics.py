"""Metrics against answers that are known: Gaussians in closed form, points placed by hand, shuffled captions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paella.evaluate.metrics import (
    clip_chance,
    codebook_usage,
    estimate,
    frechet_distance,
    kernel_distance,
    precision,
    psnr,
    recall,
    ssim,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exactly(mean: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """200 features of exactly that mean, uncorrelated, of exactly these standard deviations."""
    features = normal(200, len(mean), seed=seed).double()
    features -= features.mean(0)
    whitened = features @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(features.T))).T
    return whitened * deviations + mean


def test_frechet_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    one, other = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    wide, narrow = torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 0.5])
    # of diagonal covariances: |μ - μ'|² + Σ (σ - σ')²
    expected = ((one - other).square().sum() + (wide - narrow).square().sum()).item()
    assert frechet_distance(exactly(one, wide, 0), exactly(other, narrow, 1)) == pytest.approx(expected, abs=1e-6)
    # turned, the covariances are not diagonal any more, and the distance is the same
    turn = torch.linalg.qr(normal(3, 3).double())[0]
    turned = (exactly(one, wide, 0) @ turn, exactly(other, narrow, 1) @ turn)
    assert frechet_distance(*turned) == pytest.approx(expected, abs=1e-6)


def test_a_set_has_no_distance_to_itself_not_even_in_float32_with_fewer_features_than_dimensions() -> None:
    features = 100 + normal(20, 32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-3)


def test_kernel_distance_agrees_with_a_slow_obvious_loop_and_is_zero_in_the_mean_for_one_distribution() -> None:
    x, y = normal(6, 4, seed=1).double(), 1 + normal(6, 4, seed=2).double()

    def mean(first: Tensor, second: Tensor, others: bool) -> float:
        values = [
            (float(a @ b) / 4 + 1) ** 3
            for i, a in enumerate(first)
            for j, b in enumerate(second)
            if not (others and i == j)
        ]
        return sum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y) == pytest.approx(expected)
    same = [kernel_distance(normal(50, 4, seed=2 * i), normal(50, 4, seed=2 * i + 1)) for i in range(40)]
    assert abs(sum(same)) / 40 < 0.1 < kernel_distance(normal(50, 4), 1 + normal(50, 4, seed=1))


def test_kernel_distance_of_unequal_sets_draws_from_its_seed_alone() -> None:
    x, y = normal(30, 4), normal(20, 4, seed=1)
    state = torch.random.get_rng_state()
    assert kernel_distance(x, y, seed=3) == kernel_distance(x, y, seed=3) != kernel_distance(x, y, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_precision_and_recall_of_sets_placed_by_hand() -> None:
    # real: two clusters on a line, the neighbours of each point 1 away. Generated: three points in the one cluster, one
    # in the gap between them.
    real = torch.tensor([[0.0], [1.0], [2.0], [100.0], [101.0], [102.0]])
    generated = torch.tensor([[0.5], [1.5], [0.2], [50.0]])
    assert precision(real, generated, k=1) == 3 / 4
    # radii of the generated ones: 0.3, 1, 0.3, 48.5; so they reach 0, 1 and 2
    assert recall(real, generated, k=1) == 3 / 6
    assert precision(real, real, k=1) == recall(real, real, k=1) == 1
    assert precision(real, real + 1000, k=1) == recall(real, real + 1000, k=1) == 0


def test_a_model_that_draws_one_thing_well_has_precision_and_no_recall() -> None:
    real, one_thing = normal(400, 8), 0.2 * normal(400, 8, seed=1)
    assert precision(real, one_thing) > 0.95 > 0.2 > recall(real, one_thing)


def test_clip_score_of_shuffled_captions_is_lower_and_in_the_mean_the_chance() -> None:
    image = F.normalize(normal(30, 16), dim=1)
    text = F.normalize(image + 0.2 * normal(30, 16, seed=1), dim=1)
    turned = [(image * text.roll(shift, 0)).sum(1).mean().item() for shift in range(30)]
    score = turned.pop(0)
    assert max(turned) < score
    assert clip_chance(torch.stack([image, text], 1)) == pytest.approx(sum(turned) / 29, abs=1e-6)


def test_psnr_and_ssim() -> None:
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) / 2
    assert psnr(pictures, pictures).tolist() == [100, 100]
    off = pictures + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)  # one figure for each picture
    assert torch.allclose(psnr(off, pictures), torch.tensor([20.0, 40.0]), atol=1e-3)
    assert torch.allclose(ssim(pictures, pictures), torch.ones(2))
    assert 1 > ssim(off, pictures)[1] > ssim(off, pictures)[0] > ssim(pictures.flip(3), pictures)[0]


def test_codebook_usage() -> None:
    even = codebook_usage(torch.arange(8).repeat(3).view(2, 3, 4), 16)
    assert even == {"perplexity": pytest.approx(8), "used": 0.5}
    assert codebook_usage(torch.zeros(1, 2, 2, dtype=torch.int64), 16) == {"perplexity": 1, "used": 1 / 16}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    def covers(trial: int) -> bool:
        it = estimate(lambda values: values.mean().item(), 5 + normal(40, seed=trial), seed=trial)
        assert it["low"] <= it["value"] <= it["high"]
        return it["low"] <= 5 <= it["high"]

    assert 0.9 <= sum(map(covers, range(200))) / 200 <= 0.99


def test_the_interval_of_a_distance_is_that_of_many_draws() -> None:
    def draw(trial: int) -> tuple[Tensor, Tensor]:
        return normal(100, 4, seed=2 * trial), 2 + normal(100, 4, seed=2 * trial + 1)

    draws = torch.tensor([frechet_distance(*draw(trial)) for trial in range(60)])
    it = estimate(frechet_distance, *draw(0))
    assert (it["high"] - it["low"]) / 2 == pytest.approx(1.96 * draws.std().item(), rel=0.35)


def test_an_interval_depends_on_its_seed_alone_and_ends_at_its_bounds() -> None:
    values = normal(20)

    def mean(sample: Tensor) -> float:
        return sample.mean().item()

    assert estimate(mean, values, seed=1) == estimate(mean, values, seed=1) != estimate(mean, values, seed=2)
    assert estimate(mean, values, bounds=(0, math.inf))["low"] == 0 > estimate(mean, values)["low"]


def test_sets_that_are_too_small_or_of_different_networks_are_refused() -> None:
    for metric in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="at least 2"):
            metric(normal(1, 4), normal(9, 4))
    with pytest.raises(ValueError, match="at least 4"):
        precision(normal(3, 4), normal(9, 4))
    with pytest.raises(ValueError, match="of one d"):
        recall(normal(9, 4), normal(9, 5))
