"""`paella info`: what the model is, and what it runs on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from paella.cli.errors import warn
from paella.cli.options import Model


def info(
    objects: Annotated[
        bool, typer.Option("--objects", help="List the names that one can ask for, one per line.")
    ] = False,
    model: Model = None,
) -> None:
    """Tells the model's parts, sizes and settings, and the machine that it runs on."""
    from paella.card import describe
    from paella.pipeline import Paella

    pipeline = Paella.from_pretrained(model)
    if objects:
        if not pipeline.objects:
            warn("this model has no list of objects: it learned from free captions")
        for name in pipeline.objects:
            typer.echo(name)
        return
    dtype = str(pipeline.dtype).removeprefix("torch.")
    reason = "multiplies it natively" if dtype == "bfloat16" else "is no faster in bfloat16"
    rows = {
        **describe(pipeline),
        "objects": f"{len(pipeline.objects)} (paella info --objects)",
        "device": str(pipeline.device),
        "dtype": f"{dtype}: this {pipeline.device.type} {reason}",
        **machine(),
    }
    for name, value in rows.items():
        typer.echo(f"{name:14}{value}")


def machine() -> dict[str, str]:
    """The processor (and GPU), threads, instruction set and versions that results depend on."""
    import torch

    extensions = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}
    instructions = [torch.backends.cpu.get_cpu_capability(), *(name for name, there in extensions.items() if there)]
    packages = [f"{package} {version(package)}" for package in ("paella", "torch", "transformers")]
    found = {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "instructions": ", ".join(instructions),
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
