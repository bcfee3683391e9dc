"""A progress bar on standard error, which is gone when the work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def drawing(pictures: int) -> Iterator[Callable[[int, int, Any], None]]:
    """Shows how far the drawing of so many pictures is; yields what `Paella` takes as its `on_step`."""
    with _bar() as bar:
        task = bar.add_task(f"drawing {pictures} picture{'s' * (pictures > 1)}", total=None)

        def on_step(step: int, steps: int, tokens: Any) -> None:
            bar.update(task, total=pictures * steps, advance=len(tokens))

        yield on_step


@contextmanager
def counting(title: str) -> Iterator[Callable[[float, int], None]]:
    """Shows how far some work is; yields a function to call as `progress(done, total)`."""
    with _bar() as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
