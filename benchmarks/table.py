"""What the benchmarks share: networks to measure, how they are measured, and the table of what was found."""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from paella.cli.info import machine
from paella.packing import pack
from paella.placement import resolve_device, resolve_dtype, set_dtype
from paella.unet import TokenPredictor

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
Row = dict[str, str | int | float | None]  # a column's name -> what stands in it; its unit is part of the name

PATIENCE = 30.0  # seconds after which no further turn begins


def arguments(description: str | None, runs: int) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=int,
        default=runs,
        help=f"turns, after one that is not counted (default: {runs}); none begins after {PATIENCE:g} s of turns",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows too, for plot.py")
    return parser


def placed(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device, torch.dtype]:
    """The arguments, with options for where networks are and for the predictor's dtype; and these two."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the predictor; auto: bfloat16 where the processor has it")
    args = parser.parse_args()
    device = resolve_device(args.device)
    return args, device, resolve_dtype(args.dtype, device)


def report(rows: Sequence[Row], device: torch.device, file: Path | None) -> None:
    """Prints what ran, where and when, and the rows as a Markdown table; writes the same to the file."""
    about = machine()
    processor = f"{about['processor']}, {about['threads']} threads, {about['instructions']}"
    name = about["GPU"] if device.type == "cuda" else processor
    found = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip(),
        "machine": f"{name}; {about['versions']}",
        "date": date.today().isoformat(),
        "rows": rows,
    }
    print(f"`{found['command']}` on {found['machine']}; {found['date']}\n")
    for cells in (rows[0].keys(), ["---"] * len(rows[0]), *(map(_cell, row.values()) for row in rows)):
        print(f"| {' | '.join(cells)} |")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")


def _cell(value: str | int | float | None) -> str:
    """Three digits of a number, and at least those before the point."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return "" if value is None else str(value)


def apart(choices: Sequence[Mapping[str, Any]], measure: Callable[..., Row]) -> list[Row]:
    """The row that `measure` gives for each choice; where there are several, each in a process of its own, so that its
    peak of memory is its own. One that fails, for lack of memory perhaps, is left out, and has said why.

    Args:
        choices: options of the script, with values that leave it a single row to measure.
        measure: called with such values, by the options' names.
    """
    if len(choices) == 1:
        return [measure(**choices[0])]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        for choice in choices:
            options = [word for name, value in choice.items() for word in (f"--{name}", str(value))]
            print("...", *options, file=sys.stderr, flush=True)
            # of an option that is given twice, the last counts
            command = [sys.executable, *sys.argv, *options, "--json", str(file)]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0:
                rows += json.loads(file.read_text())["rows"]
            else:
                print("... failed, and is left out", file=sys.stderr, flush=True)
    if not rows:
        raise SystemExit("nothing could be measured")
    return rows


def turns(turn: Callable[[], T], runs: int, patience: float = PATIENCE) -> list[T]:
    """What that many turns gave. Fewer where they take more than `patience` seconds: such a turn says enough alone."""
    start = time.perf_counter()
    found = [turn()]
    while len(found) < runs and time.perf_counter() - start < patience:
        found.append(turn())
    return found


def now(device: torch.device) -> float:
    """The time in seconds, when all that the device was given to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = now(device)
    work()
    return now(device) - start


def peak_memory(device: torch.device) -> float:
    """GiB: of the GPU's memory, or of the whole process. (A process begins with the peak of the one that started it:
    `apart` builds nothing in that one.)"""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def random_network(network: Callable[[], M], device: torch.device, dtype: torch.dtype) -> M:
    """The network with random weights, laid out as `Paella` has it. Its weights are made in that dtype: casting them
    would be the peak of memory."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = network().to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    finally:
        torch.set_default_dtype(torch.float32)
    set_dtype(made, dtype)  # changes the LayerNorms' alone
    if isinstance(made, TokenPredictor):
        pack(made)
    return made


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def millions(network: nn.Module) -> str:
    return f"{parameters(network) / 1e6:.1f} M"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
