"""Which weights were these? A name is easily kept through a training run; a hash is not."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(*modules: nn.Module) -> str:
    """12 hexadecimal digits of the SHA-256 of all parameters and buffers, as they are in memory, with their names."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
