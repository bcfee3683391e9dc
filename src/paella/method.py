"""How a predictor is trained and asked: by discrete denoising, as the paper does, or as MaskGIT does.

The predictor's config says which (`mask_token`); nobody else has to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from paella.baselines.maskgit import MaskGIT
from paella.canvas import Canvas
from paella.denoiser import Denoise
from paella.noise import add_noise
from paella.sampler import SamplerSettings, sample

if TYPE_CHECKING:
    from paella.checkpoint import Predictor


class Method(Protocol):
    """What training and sampling must agree on."""

    def corrupt(self, tokens: Tensor, t: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
        """What the predictor sees in training, (B,h,w); the arguments are those of `paella.noise.add_noise`."""

    def counted(self, noisy: Tensor) -> Tensor:
        """(B,h,w) bool: at which of these corrupted tokens the loss is taken."""

    def sample(
        self, denoise: Denoise, canvas: Canvas, settings: SamplerSettings, generators: Sequence[torch.Generator]
    ) -> Iterator[Tensor]:
        """The sampling loop; see `paella.sampler.sample`."""


class Denoising:
    """The paper's: any token may be noise, so all of them are judged, and any may still change."""

    corrupt = staticmethod(add_noise)
    sample = staticmethod(sample)

    def counted(self, noisy: Tensor) -> Tensor:
        return torch.ones_like(noisy, dtype=torch.bool)


def method_of(predictor: Predictor) -> Method:
    """The method that this predictor is for."""
    return MaskGIT(predictor.config.num_labels) if predictor.config.mask_token else Denoising()
