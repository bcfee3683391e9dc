"""What the sampling loop asks: noisy tokens -> logits; in two parts where the last layer knows each place alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # tokens (B,h,w), t (B,) -> logits (B,N,h,w)


def unchanged(features: Tensor) -> Tensor:
    return features


@dataclass(frozen=True)
class Logits:
    """Logits that are computed where they are asked for.

    Attributes:
        features: (B,C,h,w).
        last: what makes logits of them, (B,C,h,w) -> (B,N,h,w), of each place alone; without it they are the features.
    """

    features: Tensor
    last: Callable[[Tensor], Tensor] = unchanged

    @property
    def codes(self) -> int:
        """N."""
        return self.last(self.features[:1, :, :1, :1]).shape[1]

    def everywhere(self) -> Tensor:
        """(B,N,h,w)."""
        return self.last(self.features)

    def rows(self, wanted: Tensor) -> Tensor:
        """Those of the places where `wanted` (B,h,w) is true, in order -> (n,N). Each picture's are computed by
        themselves, as a product may be rounded differently in a larger one."""
        pictures = zip(self.features.permute(0, 2, 3, 1), wanted, strict=True)
        chosen = [own[where] for own, where in pictures]  # (n,C)
        rows = [self.last(features.T[None, :, None])[0, :, 0].T for features in chosen]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


@dataclass(frozen=True)
class Denoiser:
    """A `Denoise` in two parts. The last layer need not be asked where no token is drawn, and, as it is an affine map
    of each place's features, what is a mean of logits may be one of features.

    Attributes:
        features: tokens (B,h,w), t (B,) -> (B,C,h,w).
        last: see `Logits`.
    """

    features: Denoise
    last: Callable[[Tensor], Tensor] = unchanged

    @classmethod
    def of(cls, denoise: Denoise) -> Denoiser:
        """Itself; of any other `Denoise` the logits are the features."""
        return denoise if isinstance(denoise, Denoiser) else cls(denoise)

    def __call__(self, tokens: Tensor, t: Tensor) -> Tensor:
        return self.ask(tokens, t).everywhere()

    def ask(self, tokens: Tensor, t: Tensor) -> Logits:
        return Logits(self.features(tokens, t), self.last)
