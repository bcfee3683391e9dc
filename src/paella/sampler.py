"""The sampling loop (method.md section 3). It knows a callable and a canvas, and no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from paella.canvas import Canvas
from paella.denoiser import Denoise, Denoiser, Logits
from paella.gpu import sent, triton_works
from paella.logits import certain, confidence, draw, guide, typical_weights
from paella.noise import RENOISE_SOURCES, becomes_noise

FILTERED_AT_ONCE = 2**18  # logits filtered at a time on a CPU, whose caches hold these and not all

RENOISE_PLACES = ("random", "unsure")  # where noise is put between two steps


def least_sure(logits: Tensor, drawn: Tensor, frozen: Tensor, t: float, uniform: Tensor) -> Tensor:
    """Numbers (B,h,w) in [0, 1) by which those of the tokens drawn, frozen ones aside, become noise first that the
    predictor is least sure of; the arguments are those of `confidence`."""
    sure = confidence(logits, drawn, t, uniform).masked_fill(frozen, torch.inf).flatten(1)
    ranks = sure.argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks / (~frozen).flatten(1).sum(1, keepdim=True)).view_as(uniform)


LOWEST_TEMPERATURE = 1e-30  # log-probabilities divided by less would leave float32


@dataclass(frozen=True)
class SamplerSettings:
    """The choices of a sampling run.

    Attributes:
        steps: T, at least 1.
        guidance: w; 1 = none, and half the work.
        typical_mass: τ in (0, 1]; 1 = no filter.
        temperature: > 0.
        renoise: where the noise between steps comes from: "initial", "previous" or "fresh".
        renoise_at: which tokens it replaces: "random" ones, or the "unsure" ones, as MaskGIT chooses.
        min_tokens: how many tokens the filter keeps at least.
    """

    steps: int = 8
    guidance: float = 4.0
    typical_mass: float = 0.2
    temperature: float = 1.0
    renoise: str = "initial"
    renoise_at: str = "random"
    min_tokens: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: must be a whole number of at least 1, not {self.steps}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance: must be a finite number, not {self.guidance}")
        if not 0 < self.typical_mass <= 1:
            raise ValueError(f"typical_mass: must be above 0 and at most 1, not {self.typical_mass}")
        if not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            raise ValueError(
                f"temperature: must be a finite number above 0 ({LOWEST_TEMPERATURE} at least), not {self.temperature}"
            )
        if self.renoise not in RENOISE_SOURCES:
            raise ValueError(f"renoise: must be one of {', '.join(RENOISE_SOURCES)}, not {self.renoise!r}")
        if self.renoise_at not in RENOISE_PLACES:
            raise ValueError(f"renoise_at: must be one of {', '.join(RENOISE_PLACES)}, not {self.renoise_at!r}")
        if self.min_tokens < 1:
            raise ValueError(f"min_tokens: must be at least 1, not {self.min_tokens}")


VARIED = ("guidance", "typical_mass", "temperature")  # what variations of a picture may have of their own


def for_variations(settings: SamplerSettings, own: Mapping[str, float]) -> SamplerSettings:
    """The settings with the given ones of `VARIED` in the place of theirs.

    Raises:
        ValueError: others are given, or one is out of range.
    """
    if unknown := sorted(own.keys() - set(VARIED)):
        raise ValueError(f"variations: must be of {', '.join(VARIED)}, not {unknown[0]}")
    return replace(settings, **own)  # type: ignore[arg-type]


def guided(conditioned: Callable[[Tensor], Denoise], condition: Tensor, null: Tensor, weight: float) -> Denoise:
    """Classifier-free guidance as one `denoise`: both conditions go through the predictor as one batch, and become one
    before its last layer, an affine map, which has half the work then.

    Args:
        conditioned: binds a condition (B,d,h,w) to the predictor.
        condition, null: (B,d,·,·) each; `null` is the null condition, or a negative prompt's embedding.
        weight: w; at 1 the null condition is left out.
    """
    if weight == 1:
        return conditioned(condition)
    null = null.expand_as(condition)
    pair = Denoiser.of(conditioned(torch.cat([condition, null])))

    def features(tokens: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = pair.features(tokens.repeat(2, 1, 1), t.repeat(2)).chunk(2)
        return guide(conditional, unconditional, weight)

    return Denoiser(features, pair.last)


def times_of(tokens: Tensor, t: float) -> Tensor:
    """(B,) float32: the time t for each of these pictures (B,h,w), where they are."""
    return tokens.new_full((len(tokens),), t, dtype=torch.float32)


def uniform_numbers(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """(B,h,w) in [0, 1), each picture's from its own generator, for tokens (B,h,w) and where these are."""
    return sent(
        torch.stack([torch.rand(like.shape[1:], generator=g, dtype=torch.float32, device="cpu") for g in generators]),
        like.device,
    )


def draw_typical(logits: Logits, settings: SamplerSettings, uniform: Tensor, wanted: Tensor) -> Tensor:
    """One token for each position that is wanted, out of its locally typical ones; of others, any valid token.

    Args:
        logits: of (B,h,w) positions.
        uniform: (B,h,w) in [0, 1).
        wanted: (B,h,w) bool.

    Returns:
        (B,h,w) int64.
    """
    if uniform.device.type != "cpu":  # it would have to wait for the CPU, to know how many rows are wanted
        rows, numbers = logits.everywhere().permute(0, 2, 3, 1).flatten(0, 2), uniform.flatten()  # (B·h·w, N)
        if uniform.device.type == "cuda" and triton_works(uniform.device):
            from paella.kernels import drawn_typical  # as `_drawn`, but for rounding, without sorting all

            tokens = drawn_typical(rows, settings.typical_mass, settings.min_tokens, settings.temperature, numbers)
            return tokens.view_as(uniform)
        return _drawn(rows.float().log_softmax(-1), settings, numbers).view_as(uniform)
    rows = logits.rows(wanted)
    tokens, at_once = torch.zeros_like(wanted, dtype=torch.int64), max(FILTERED_AT_ONCE // rows.shape[1], 1)
    parts = zip(rows.split(at_once), uniform[wanted].split(at_once), strict=True)
    tokens[wanted] = torch.cat([_drawn_where_open(some, settings, numbers) for some, numbers in parts])
    return tokens


def _drawn(log_p: Tensor, settings: SamplerSettings, uniform: Tensor) -> Tensor:
    return draw(typical_weights(log_p, settings.typical_mass, settings.min_tokens, settings.temperature), uniform)


def _drawn_where_open(rows: Tensor, settings: SamplerSettings, uniform: Tensor) -> Tensor:
    """What `_drawn` returns, asking it only of the rows that are not known to have one typical token alone."""
    log_p = rows.float().log_softmax(-1)
    if settings.min_tokens > 1 or not (known := certain(log_p, settings.typical_mass)).any():
        return _drawn(log_p, settings, uniform)
    tokens, left = torch.empty(len(rows), dtype=torch.int64), ~known
    tokens[known] = log_p[known].argmax(-1)
    tokens[left] = _drawn(log_p[left], settings, uniform[left])
    return tokens


def sample(
    denoise: Denoise, canvas: Canvas, settings: SamplerSettings, generators: Sequence[torch.Generator]
) -> Iterator[Tensor]:
    """Runs the sampling loop and yields the tokens (B,h,w) after each step; the last are the result.

    Args:
        denoise: tokens (B,h,w), t (B,) -> logits (B,N,h,w), with condition and guidance bound.
        canvas: what to start from. With `start` 0 nothing is left to do, and nothing is yielded.
        generators: one for each picture, on the CPU: a picture depends on its own generator alone.
    """
    tokens = canvas.tokens
    if canvas.start == 0:
        return
    uniform = partial(uniform_numbers, generators, tokens)
    renoise_source, everywhere = RENOISE_SOURCES[settings.renoise], partial(times_of, tokens)
    denoise = Denoiser.of(denoise)
    times = [canvas.start * (1 - step / settings.steps) for step in range(settings.steps + 1)]
    for t, t_next in pairwise(times):
        logits, free = denoise.ask(tokens, everywhere(t)), ~canvas.frozen
        draw_where = partial(draw_typical, logits, settings, uniform())
        if t_next == 0:
            yield torch.where(free, draw_where(free), canvas.tokens)
            return
        noise = renoise_source(canvas.tokens, tokens, lambda: (uniform() * logits.codes).long())  # noqa: B023
        chance = uniform()
        if settings.renoise_at == "random":  # it is known already which tokens stay: others need not be drawn
            noisy = becomes_noise(everywhere(t_next), chance)
            drawn = draw_where(free & ~noisy)
        else:
            drawn = draw_where(free)
            unsure = least_sure(logits.everywhere(), drawn, canvas.frozen, t_next, chance)
            noisy = becomes_noise(everywhere(t_next), unsure)
        tokens = torch.where(free, torch.where(noisy, noise, drawn), canvas.tokens)
        yield tokens
