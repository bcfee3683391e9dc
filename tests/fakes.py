"""Canvases, predictors whose answer is known, and small random ones; pictures and masks."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from paella.canvas import Canvas
from paella.denoiser import Denoise
from paella.edits import random_tokens

CODES = 16
M = TypeVar("M", bound=nn.Module)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def a_canvas(*seeds: int, height: int = 6, width: int = 5, start: float = 1.0) -> Canvas:
    tokens = random_tokens(generators(*(1000 + seed for seed in seeds)), height, width, CODES)
    return Canvas(tokens, torch.zeros_like(tokens).bool(), torch.zeros(len(seeds), 2, 1, 1), start)


def always(token: int) -> Denoise:
    """A predictor that is sure of one token everywhere."""

    def denoise(tokens: Tensor, t: Tensor) -> Tensor:
        logits = torch.full((len(tokens), CODES, *tokens.shape[1:]), -30.0)
        logits[:, token] = 30.0
        return logits

    return denoise


def unsure(tokens: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(len(tokens), CODES, *tokens.shape[1:])


def randomised(make: Callable[[], M]) -> M:
    """The model that `make` makes, every parameter random and not small, so that nothing can be forgotten unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for parameter in model.eval().requires_grad_(False).parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def inputs(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B,h,w) of 20, a condition (B,6) and times (B,)."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    tokens = torch.randint(20, (batch, height, width), generator=generator)
    return tokens, torch.randn(batch, 6, generator=generator), torch.linspace(0.2, 0.9, batch)


def some_picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def content(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def box_mask(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((picture.height, picture.width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask
