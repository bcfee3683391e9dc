"""Draws the plots of docs/performance.md from what the benchmarks wrote: `make bench`.

python benchmarks/plot.py          from runs/bench to docs/images
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from against_transformer import RELATIVE
from matplotlib.figure import Figure


def lines(rows: Sequence[dict[str, Any]], x: str, y: str, *names: str) -> dict[str, list[tuple[float, float]]]:
    """Points for each combination of those columns, by its name: the combinations of more than one point."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = ", ".join(f"{row[name]} x {row[name]}" if name == "size" else str(row[name]) for name in names)
        found.setdefault(name, []).append((row[x], row[y]))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def draw(file: Path, machine: str, x: str, y: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """Both axes are logarithmic, so that work in proportion to the picture is a straight line."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, xscale="log", yscale="log")
    ticks = sorted({place for points in found.values() for place, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(machine.partition(";")[0], fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", nargs="?", type=Path, default=Path("runs/bench"), help="folder of the JSON files")
    parser.add_argument("images", nargs="?", type=Path, default=Path("docs/images"), help="folder of the plots")
    args = parser.parse_args()

    sampling = json.loads((args.found / "sampling.json").read_text())
    alone = [row for row in sampling["rows"] if row["batch"] == 1]
    by_size = lines(alone, "size", "seconds", "model")
    draw(args.images / "performance-size.png", sampling["machine"], "side, pixels", "seconds a picture", by_size)
    by_batch = lines(sampling["rows"], "batch", "pictures/s", "model", "size")
    draw(args.images / "performance-batch.png", sampling["machine"], "batch", "pictures a second", by_batch)
    networks = json.loads((args.found / "against_transformer.json").read_text())
    relative = lines(networks["rows"], "size", RELATIVE, "network")
    draw(args.images / "performance-transformer.png", networks["machine"], "side, pixels", RELATIVE, relative)


if __name__ == "__main__":
    main()
