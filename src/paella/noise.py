"""The forward process: how tokens become noise, in training and between two sampling steps.

There is one direction of time everywhere: t = 1 is pure noise, t = 0 the clean tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cosine(t: Tensor) -> Tensor:
    """The schedule cos((1-t)·π/2) as float32 gives it: -4.4e-8 at t = 0, which the time embedding shows.

    The equal sin(t·π/2) rounds differently enough to move the time embedding.
    """
    return torch.cos((1 - t).float() * (math.pi / 2))


def level(t: Tensor) -> Tensor:
    """s(t): the share of tokens that are noise at time t in [0, 1]; s(0) = 0, s(1) = 1 (cosine schedule)."""
    return cosine(t).clamp(0, 1)


def becomes_noise(t: Tensor, uniform: Tensor) -> Tensor:
    """m ~ Bernoulli(s(t)): (B,h,w) bool, for t (B,) in [0, 1] and uniform random numbers (B,h,w) in [0, 1)."""
    return uniform < level(t)[:, None, None]


def add_noise(tokens: Tensor, t: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
    """Each token becomes its noise token with probability s(t) (method.md section 2: ū = m·n + (1-m)·u).

    Args:
        tokens: (B,h,w) int64, the clean tokens u.
        t: (B,) in [0, 1].
        noise: (B,h,w) int64, the noise tokens n.
        uniform: (B,h,w) in [0, 1), uniform random numbers that decide m.
    """
    return torch.where(becomes_noise(t, uniform), noise, tokens)


# Where the noise of a renoising step comes from: (initial tokens u_T, tokens that entered the step, a function that
# draws fresh uniform tokens) -> noise tokens (B,h,w).
RenoiseSource = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


def from_initial(initial: Tensor, previous: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
    """The tokens that sampling began with: the paper's choice."""
    return initial


def from_previous(initial: Tensor, previous: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
    """The tokens that entered the step: for structural editing."""
    return previous


def from_fresh(initial: Tensor, previous: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
    """New random tokens."""
    return fresh()


RENOISE_SOURCES: dict[str, RenoiseSource] = {"initial": from_initial, "previous": from_previous, "fresh": from_fresh}
