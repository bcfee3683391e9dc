"""MaskGIT (Chang et al. 2022): tokens are hidden by a mask token, and those drawn with confidence are kept for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from paella.canvas import Canvas
from paella.denoiser import Denoise, Logits
from paella.logits import confidence
from paella.noise import level
from paella.sampler import SamplerSettings, draw_typical, times_of, uniform_numbers


@dataclass(frozen=True)
class MaskGIT:
    """How a predictor with a mask token is trained and asked; see `paella.method.Method`.

    Attributes:
        mask: the mask token's number, N.
    """

    mask: int

    def corrupt(self, tokens: Tensor, t: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """The tokens, of which ⌈s(t)·h·w⌉ of each picture, at least one, are hidden at random places; `noise` is for
        Paella alone."""
        cells = tokens[0].numel()
        return tokens.masked_fill(lowest(uniform, (level(t) * cells).ceil().clamp(min=1)), self.mask)

    def counted(self, noisy: Tensor) -> Tensor:
        """Where the loss is taken: at the hidden tokens."""
        return noisy == self.mask

    def sample(
        self, denoise: Denoise, canvas: Canvas, settings: SamplerSettings, generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """Fills in the canvas, and yields the tokens (B,h,w) after each step; the last are the result.

        All that is not frozen starts hidden, whatever the canvas has there. Each step draws all hidden tokens, then
        hides again the ⌊s(t_next)·n⌋ of them, n being those hidden at first, in which the predictor trusts least: by
        the logarithm of their probability plus Gumbel noise, whose scale falls to zero. At least one more token is
        kept at each step. What is yielded shows hidden tokens as they were drawn.

        Of the settings `renoise` and `renoise_at` have no meaning here; the published sampler is typical_mass 1,
        temperature 1.

        Raises:
            ValueError: the canvas starts between 0 and 1, from noisy tokens: these cannot be told from known ones.
        """
        if canvas.start == 0:
            return
        if canvas.start < 1:
            raise ValueError(
                f"start: must be 0 or 1 with a predictor that has a mask token (MaskGIT), not {canvas.start}: it "
                "cannot tell noisy tokens from known ones (of restyle, this is the strength)"
            )
        uniform = partial(uniform_numbers, generators, canvas.tokens)
        tokens, hidden = canvas.tokens, ~canvas.frozen
        free = hidden.sum((1, 2))  # (B,)
        everywhere = partial(times_of, tokens)
        times = [1 - step / settings.steps for step in range(settings.steps + 1)]
        for t, t_next in pairwise(times):
            logits = denoise(tokens.masked_fill(hidden, self.mask), everywhere(t))
            tokens = torch.where(hidden, draw_typical(Logits(logits), settings, uniform(), hidden), tokens)
            if t_next > 0:
                sure = confidence(logits, tokens, t_next, uniform()).masked_fill(~hidden, torch.inf)
                count = (level(everywhere(t_next)) * free).floor().minimum(hidden.sum((1, 2)) - 1)
                hidden = lowest(sure, count)
            yield tokens


def lowest(scores: Tensor, count: Tensor) -> Tensor:
    """Which are the lowest `count` (B,) scores (B,h,w) of each picture: (B,h,w) bool."""
    ranks = scores.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return (ranks < count[:, None]).view_as(scores)
