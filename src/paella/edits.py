"""One small function for each ability: what is known goes in, a Canvas comes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paella.canvas import Canvas


def random_tokens(generators: Sequence[torch.Generator], height: int, width: int, codes: int) -> Tensor:
    """(B,h,w) int64 on the CPU, uniform over {0 … N-1}, each picture from its own generator."""
    return torch.stack([torch.randint(codes, (height, width), generator=g) for g in generators])


def text_to_image(embeddings: Tensor, tokens: Tensor) -> Canvas:
    """Everything is unknown: random `tokens` (B,h,w), and one embedding (B,d) for the whole picture."""
    return Canvas(tokens, torch.zeros_like(tokens, dtype=torch.bool), embeddings[:, :, None, None])
