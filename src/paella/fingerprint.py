"""Which weights were these? A name is easily kept through a training run; a hash is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(*weights: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 of tensors' names, dtypes, shapes and values, in the order of the names, and of a text about them."""
    digest = hashlib.sha256(about.encode())
    for tensors in weights:
        for name, value in sorted(tensors.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
