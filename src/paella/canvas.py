"""The canvas: what sampling starts from. Every ability of the method is one way to fill in these four fields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """What is known before sampling.

    Attributes:
        tokens: (B,h,w) int64, random wherever nothing is known.
        frozen: (B,h,w) bool, True = keep this token.
        condition: (B,d,h,w) or (B,d,1,1), a map of embeddings; one prompt is a map of one place.
        start: t in [0, 1] at which sampling starts: 1 = from pure noise, 0 = nothing left to do.
    """

    tokens: Tensor
    frozen: Tensor
    condition: Tensor
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ValueError(f"canvas: tokens must be (B,h,w), not {tuple(self.tokens.shape)}")
        if self.frozen.shape != self.tokens.shape:
            raise ValueError(f"canvas: frozen must be {tuple(self.tokens.shape)}, not {tuple(self.frozen.shape)}")
        if self.condition.ndim != 4 or self.condition.shape[0] != self.tokens.shape[0]:
            raise ValueError(f"canvas: condition must be (B,d,h,w) or (B,d,1,1), not {tuple(self.condition.shape)}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"canvas: start must be within 0 ... 1, not {self.start}")

    def __getitem__(self, part: slice) -> Canvas:
        """That of some of the pictures."""
        return Canvas(self.tokens[part], self.frozen[part], self.condition[part], self.start)
