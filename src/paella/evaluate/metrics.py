"""Metrics as pure functions: of features, embeddings, pictures, tokens. What draws at random is given a seed.

Features are (n,d), one row for each picture, whatever network they are from (`evaluate.features`). The packages that
some of the metrics need are imported when they are used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

NOISE_LEVELS = 4  # ranges of t that a predictor's figures are told apart by
REPEATS = 100  # of an estimate, for its interval
KERNEL_SUBSET, KERNEL_SUBSETS = 1000, 10  # the kernel distance's memory grows with the square of a subset
ROWS = 1024  # of a matrix of distances, held at a time

Estimate = dict[str, float]  # value; low, high: its 95 % interval


def bootstrap(values: Sequence[float] | Tensor, resamples: int = 2000) -> Estimate:
    """The mean of values (n,) with its 95 % percentile bootstrap interval (Efron 1979): the same at each call."""
    sample = np.asarray(values, dtype=np.float64)
    rng, n = np.random.default_rng(len(sample)), len(sample)
    means = [sample[rng.integers(n, size=n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": sample.mean().item(), "low": low.item(), "high": high.item()}


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """The mean (B,) of each sample's values (B,h,w) at the counted places (B,h,w) bool; NaN where it has none."""
    return torch.where(counted, values.float(), torch.nan).flatten(1).nanmean(1)


def by_noise_level(t: Tensor, figures: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """For each range of t, "0-0.25" and so on, the mean of each figure; NaN where no sample falls there.
    A sample whose own figure is NaN has nothing to say.

    Args:
        t: (B,) in [0, 1].
        figures: name -> (B,) a figure of each sample.
    """
    result = {}
    for level in range(NOISE_LEVELS):
        low, high = level / NOISE_LEVELS, (level + 1) / NOISE_LEVELS
        at = (t >= low) & ((t < high) | (high == 1))
        means = {name: torch.where(at, values, torch.nan).nanmean() for name, values in figures.items()}
        result[f"{low:g}-{high:g}"] = means
    return result


class Given(nn.Module):
    """Features as they are, where torchmetrics asks for the network that computes them from pictures.

    Args:
        num_features: d.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """The Fréchet distance of two sets of features (n,d) and (m,d), each taken for a Gaussian.

    |μ - μ'|² + tr(Σ + Σ' - 2 (Σ Σ')^½) (Heusel et al. 2017, equation 6), by torchmetrics. It falls with n and m even
    where the two distributions are the same, the more so the larger d: compare only distances of as many pictures.

    Raises:
        ValueError: a set has fewer than two features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check(real, generated, at_least=2)
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]), normalize=True)
    # torchmetrics gives its answer in the features' dtype, and float32 is too coarse for what remains of two traces
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """The unbiased squared maximum mean discrepancy of two sets of features (n,d) and (m,d), by torchmetrics.

    Its kernel is (x·y / d + 1)³ (Bińkowski et al. 2018, "kernel inception distance"). Zero in the mean where the two
    distributions are the same, whatever n; it may be below. Of sets of unequal size, or of more than 1,000, the mean
    over ten random subsets.

    Args:
        seed: of the subsets.

    Raises:
        ValueError: a set has fewer than two features.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    _check(real, generated, at_least=2)
    size = min(len(real), len(generated), KERNEL_SUBSET)
    whole = size == len(real) == len(generated)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features")
        metric = KernelInceptionDistance(
            feature=Given(real.shape[1]), subsets=1 if whole else KERNEL_SUBSETS, subset_size=size, normalize=True
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # it draws its subsets from the global generator
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def precision(real: Tensor, generated: Tensor, k: int = 3) -> float:
    """The share of generated features (m,d) on the manifold of the real ones (n,d) (Kynkäänniemi et al. 2019).

    The manifold is made of a ball round each real feature that reaches to its k-th nearest neighbour among the others
    (equation 1).

    Raises:
        ValueError: there are no more than k real features, or no generated ones.
    """
    _check(real, at_least=k + 1)
    _check(real, generated, at_least=1)
    real, generated = real.double(), generated.double()
    # a feature's nearest of all is itself
    radii = torch.cat([torch.cdist(rows, real).kthvalue(k + 1, dim=1).values for rows in real.split(ROWS)])
    return (
        torch.cat([(torch.cdist(rows, real) <= radii).any(1) for rows in generated.split(ROWS)]).double().mean().item()
    )


def recall(real: Tensor, generated: Tensor, k: int = 3) -> float:
    """The share of real features (n,d) on the manifold of the generated ones (m,d): `precision`, the sets exchanged."""
    return precision(generated, real, k)


def clip_chance(pairs: Tensor) -> float:
    """The mean cosine of pictures and the captions of all the others: what shuffled captions give in the mean.

    Args:
        pairs: (n,2,d), the embeddings of picture and caption, of norm one.
    """
    image, text = pairs.double().unbind(1)
    n = len(pairs)
    return ((image.sum(0) @ text.sum(0) - (image * text).sum()) / (n * (n - 1))).item()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of pictures (B,3,H,W) in [0, 1]; at most 100, as of equal ones it is
    infinite."""
    return -10 * (output - target).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (B,) of pictures (B,3,H,W) in [0, 1] (Wang et al. 2004), by torchmetrics; 1 = the same."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    result = structural_similarity_index_measure(output, target, data_range=1.0, reduction="none")
    assert isinstance(result, Tensor)  # it is more only where asked for
    return result


def codebook_usage(tokens: Tensor, codes: int) -> dict[str, float]:
    """How evenly tokens (any shape, int64) use a codebook of so many codes.

    Returns:
        "perplexity": exp of the entropy of the codes' frequencies, from 1 to `codes`; "used": the share that occurs.
    """
    shares = torch.bincount(tokens.flatten(), minlength=codes).double() / tokens.numel()
    return {
        "perplexity": torch.special.entr(shares).sum().exp().item(),
        "used": (shares > 0).double().mean().item(),
    }


def estimate(
    statistic: Callable[..., float],
    *samples: Tensor,
    repeats: int = REPEATS,
    seed: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """A statistic with its 95 % interval by the delete-half jackknife (Shao & Wu 1989): 1.96 times the spread of its
    resamples, to either side. For what is no mean; a mean has `bootstrap`.

    A resample is a random half of each set, drawn without replacement: the spread of a statistic over these is that of
    the statistic itself over whole sets. Drawn with replacement, as by the bootstrap, a feature that comes twice is its
    own nearest neighbour, and shifts the distances and the manifolds. Where two distributions are the same, distances
    spread less than as 1/√n, and the interval is too wide.

    Args:
        statistic: of the samples.
        samples: sets, (n, …) each; they are resampled independently. At least two in each.
        seed: of the resamples.
        bounds: what the statistic cannot be beyond; the interval is cut there.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = [
        statistic(*(one[torch.randperm(len(one), generator=generator)[: len(one) // 2]] for one in samples))
        for _ in range(repeats)
    ]
    value, reach = float(statistic(*samples)), 1.96 * torch.tensor(halves, dtype=torch.float64).std().item()
    return {"value": value, "low": max(value - reach, bounds[0]), "high": min(value + reach, bounds[1])}


def _check(*features: Tensor, at_least: int) -> None:
    """Refuses sets that are too small, or not features of one network."""
    if any(one.ndim != 2 or one.shape[1] != features[0].shape[1] for one in features):
        raise ValueError(f"expected features (n,d) of one d, not {[tuple(one.shape) for one in features]}")
    if min(map(len, features)) < at_least:
        raise ValueError(f"expected at least {at_least} features, not {min(map(len, features))}")
