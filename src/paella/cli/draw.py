"""What `generate` and the abilities have in common: load the model, draw, write, say how long it took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from paella.cli.errors import warn
from paella.cli.progress import drawing

if TYPE_CHECKING:
    from PIL.Image import Image

    from paella.pipeline import OnStep, Paella


def load_pipeline(model: str | None, *, dtype: str = "auto", quantize: str | None = None) -> Paella:
    from paella.pipeline import Paella

    return Paella.from_pretrained(model, dtype=dtype, quantize=quantize)


def draw(
    load: Callable[[], Paella],
    work: Callable[[Paella, OnStep], list[Image]],
    write: Callable[[list[Image]], Path],
    count: int,
    prompts: Sequence[str],
) -> list[Image]:
    """Draws `count` pictures under a progress bar, writes and reports them; after Ctrl-C, those that were finished.

    Args:
        load: gives the pipeline.
        work: draws with it; reports each step to the function that it is given.
        write: writes the pictures and returns the file to look at.
        prompts: what was asked for; a hint says where the model may not know it.

    Raises:
        Exit: Ctrl-C came.
    """
    from paella.engine import Interrupted

    started = time.perf_counter()
    pipeline = load()
    loaded = time.perf_counter()
    interrupted = False
    try:
        with drawing(count) as on_step:
            pictures = work(pipeline, on_step)
    except Interrupted as interrupt:
        pictures, interrupted = list(interrupt.pictures), True
    drawn = time.perf_counter()
    if interrupted:
        warn(f"interrupted: {len(pictures)} of {count} pictures {'is' if len(pictures) == 1 else 'are'} finished")
    elif not (pipeline.recipe or {}).get("data", {}).get("folder"):  # of own pictures it knows what no list names
        hint_at_objects(pipeline.objects, prompts)
    if pictures:
        number = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        typer.echo(
            f"{write(pictures)}: {number} in {drawn - loaded:.2f} s, after {loaded - started:.1f} s to load the model"
        )
    if interrupted:
        raise typer.Exit(130)
    return pictures


def hint_at_objects(objects: Sequence[str], prompts: Sequence[str]) -> None:
    """Says so where a prompt names none of the objects that the model is known to draw, with the nearest names."""
    if not objects:
        return
    from paella.data.vocabulary import words

    known = {word for name in objects for word in words(name)}
    named = re.compile(r"\b(" + "|".join(map(re.escape, known)) + r")\b", re.IGNORECASE)
    strange = [text for text in prompts if text.strip() and not named.search(text)]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        nearest = nearest_names(strange[0], objects)
        instead = f". Nearest: {', '.join(nearest)}" if nearest else ""
        warn(
            f"prompt: {strange[0]!r}{more}: names none of the {len(objects)} objects that this model knows; "
            f"see paella info --objects{instead}"
        )


def nearest_names(prompt: str, names: Sequence[str], count: int = 3) -> list[str]:
    """The names that have a word most like one of the prompt's, but for its background."""
    asked = re.findall(r"\w{3,}", prompt.lower().partition(" on ")[0])

    def likeness(name: str) -> float:
        pairs = product(asked, re.findall(r"\w{3,}", name.lower()))
        return max((SequenceMatcher(None, *pair).ratio() for pair in pairs), default=0)

    return [name for name in sorted(names, key=likeness, reverse=True)[:count] if likeness(name) >= 0.7]
