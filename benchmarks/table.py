"""What the benchmarks share: a row of a table, and the machine in it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from paella.cli.info import machine


def print_row(row: Mapping[str, str]) -> None:
    """Prints the row as a Markdown table, under its header."""
    for cells in (row.keys(), ["---"] * len(row), row.values()):
        print(f"| {' | '.join(cells)} |")


def with_machine(row: Mapping[str, str], device: torch.device) -> dict[str, str]:
    """The row between the machine that it was measured on and the versions of what ran."""
    about = machine()
    name = about["GPU"] if device.type == "cuda" else f"{about['processor']}, {about['threads']} threads"
    return {"machine": name, **row, "versions": about["versions"]}


def millions(model: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M"
