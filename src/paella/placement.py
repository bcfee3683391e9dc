"""Where a model computes, and in which dtype."""

from __future__ import annotations

import torch
from torch import nn

from paella.blocks import ModulatedLayerNorm


def set_dtype(predictor: nn.Module, dtype: torch.dtype) -> None:
    """Puts a predictor into that dtype, in place, and the few parameters of its modulated LayerNorms into float32: in
    bfloat16 they would cause a quarter of what the logits are off by."""
    norms = [module for module in predictor.modules() if isinstance(module, ModulatedLayerNorm)]
    exact = {id(parameter) for norm in norms for parameter in norm.parameters()}
    for parameter in predictor.parameters():
        parameter.data = parameter.data.to(torch.float32 if id(parameter) in exact else dtype)


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, dtype=torch.float64, device=place)  # which modulations are computed in, and Apple's GPUs lack
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device: {device!r} is not available here; auto and cpu are") from error
    return place


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 where the processor multiplies it natively, else float32.

    Raises:
        ValueError: neither of float32, bfloat16 and float16.
    """
    if dtype == "auto":
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere's; older ones emulate it
        else:
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in allowed.values():
        return dtype  # type: ignore[return-value]
    if dtype not in allowed:
        raise ValueError(f"dtype: must be auto, {', '.join(allowed)}, not {dtype!r}")
    return allowed[dtype]
