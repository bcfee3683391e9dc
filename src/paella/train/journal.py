"""What a training run tells while it runs: metrics, previews, a progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from paella.checkpoint import write_json
from paella.train.recipe import Recipe


class Journal:
    """Metrics to `metrics.jsonl` and TensorBoard, pictures to `preview/`, progress to the terminal."""

    def __init__(self, output: Path, recipe: Recipe, active: bool, done: int = 0) -> None:
        """`done`: steps of the run that were made before; what is told of later ones is of a run that broke off."""
        self.output, self.recipe, self.active, self.done = output, recipe, active, done
        self.metrics = output / "metrics.jsonl"
        self.found: dict[str, list[Tensor]] = {}
        self.since = time.monotonic()
        self.steps = 0
        self.seconds_at_peak: float | None = None  # of a step, once its arithmetic was counted
        self.latest: dict[str, float] = {}

    def __enter__(self) -> Journal:
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.output / "tensorboard"), purge_step=self.done + 1)
            if self.metrics.exists():
                lines = self.metrics.read_text().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self.done]
                if len(kept) < len(lines):
                    shortened = self.metrics.with_suffix(".partial")
                    shortened.write_text("".join(kept))
                    shortened.replace(self.metrics)  # so that a second crash loses nothing
            write_json(asdict(self.recipe), self.output / "recipe.json")
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.board.close()

    def progress(self, done: int, steps: int) -> Any:
        return _Progress(done, steps, self.active, self)

    def add(self, batches: Sequence[Mapping[str, Tensor | float]]) -> None:
        """Takes note of what the batches of one step log. No number is read yet: a GPU may still be at it."""
        self.steps += 1
        for name, value in chain.from_iterable(metrics.items() for metrics in batches):
            self.found.setdefault(name, []).append(torch.as_tensor(value).detach())

    def write(self, step: int, samples: int) -> None:
        """Writes the means since the last line; a step takes that many samples."""
        means: dict[str, float] = {}
        for name, values in self.found.items():
            numbers = [number for number in torch.stack(values).tolist() if math.isfinite(number)]
            if numbers:  # NaN = that batch had nothing to say about it
                means[name] = sum(numbers) / len(numbers)
        seconds = time.monotonic() - self.since
        means["samples per second"] = self.steps * samples / seconds
        if self.seconds_at_peak is not None:
            means["share of peak"] = self.steps * self.seconds_at_peak / seconds
        self._write(step, means)
        self.latest = means
        self.found, self.since, self.steps = {}, time.monotonic(), 0

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """A context whose time the speed leaves out."""
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before

    def show(self, step: int, picture: Image.Image, figures: dict[str, float]) -> None:
        folder = self.output / "preview"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{step:07d}.png")
        if figures:
            self._write(step, figures)
            if self.active:
                print(f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def _write(self, step: int, figures: dict[str, float]) -> None:
        if not self.active:
            return
        rounded = {name: float(f"{value:.5g}") for name, value in figures.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)


class _Progress:
    """A progress bar with the time left and the latest figures."""

    def __init__(self, done: int, steps: int, active: bool, journal: Journal) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        self.journal = journal
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # takes what room is left, so that a narrow terminal cuts these and not the time left
            TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            disable=not active,
            expand=True,
        )
        self.task = self.bar.add_task("training", total=steps, completed=done, figures="")

    def __enter__(self) -> Any:
        self.bar.start()
        return self._advance

    def _advance(self) -> None:
        self.bar.update(self.task, advance=1, figures=in_a_line(self.journal.latest))

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def in_a_line(figures: Mapping[str, float]) -> str:
    """The loss and how fast the run is, and only then two figures more: a narrow terminal cuts the end."""
    speed, others = [], []
    for name, value in figures.items():
        if name == "samples per second":
            speed.append(f"{value:.3g} samples/s")
        elif name == "share of peak":
            speed.append(f"{100 * value:.0f} % of peak")
        elif "gradient" not in name:
            others.append(f"{name} {value:.3g}")
    return " · ".join([*others[:1], *speed, *others[1:3]])
