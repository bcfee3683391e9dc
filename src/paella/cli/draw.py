"""What `generate` and the abilities have in common: load the model, draw, write, say how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from paella.cli.progress import drawing

if TYPE_CHECKING:
    from PIL.Image import Image

    from paella.pipeline import OnStep, Paella


def load_pipeline(model: str | None) -> Paella:
    from paella.pipeline import Paella

    return Paella.from_pretrained(model)


def draw(
    load: Callable[[], Paella],
    work: Callable[[Paella, OnStep], list[Image]],
    write: Callable[[list[Image]], Path],
    count: int,
) -> list[Image]:
    """Draws `count` pictures under a progress bar, writes and reports them.

    Args:
        load: gives the pipeline.
        work: draws with it; reports each step to the function that it is given.
        write: writes the pictures and returns the file to look at.
    """
    started = time.perf_counter()
    pipeline = load()
    loaded = time.perf_counter()
    with drawing(count) as on_step:
        pictures = work(pipeline, on_step)
    drawn = time.perf_counter()
    number = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    typer.echo(
        f"{write(pictures)}: {number} in {drawn - loaded:.2f} s, after {loaded - started:.1f} s to load the model"
    )
    return pictures
