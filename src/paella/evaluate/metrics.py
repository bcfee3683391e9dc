"""Metrics as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

NOISE_LEVELS = 4  # ranges of t that a predictor's figures are told apart by

Estimate = dict[str, float]  # value; low, high: its 95 % interval


def bootstrap(values: Sequence[float] | Tensor, resamples: int = 2000) -> Estimate:
    """The mean of values (n,) with its 95 % percentile bootstrap interval (Efron 1979): the same at each call."""
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(len(sample)).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(1), (0.025, 0.975))
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
        result[f"{low:g}-{high:g}"] = {name: values[at].nanmean() for name, values in figures.items()}
    return result
