"""paella: fast text-to-image by discrete denoising (Rampas et al., arXiv 2211.07292 v1)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paella.canvas import Canvas
    from paella.checkpoint import CheckpointError
    from paella.pipeline import Cancelled, Paella
    from paella.sampler import SamplerSettings, sample
    from paella.unet import TokenPredictor, UNetConfig
    from paella.vqgan import VQGAN, VQGANConfig

__version__ = "0.1.0"

# name -> module; imported on first use, so that `import paella` is fast
_PUBLIC = {
    "Cancelled": "pipeline",
    "Canvas": "canvas",
    "CheckpointError": "checkpoint",
    "Paella": "pipeline",
    "SamplerSettings": "sampler",
    "TokenPredictor": "unet",
    "UNetConfig": "unet",
    "VQGAN": "vqgan",
    "VQGANConfig": "vqgan",
    "sample": "sampler",
}
__all__ = [  # noqa: RUF022 (the class first that most people want)
    "Paella",
    "Cancelled",
    "Canvas",
    "CheckpointError",
    "SamplerSettings",
    "TokenPredictor",
    "UNetConfig",
    "VQGAN",
    "VQGANConfig",
    "sample",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"paella.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'paella' has no attribute {name!r}")
