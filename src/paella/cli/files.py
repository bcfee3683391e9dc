"""Writing results: known to be possible before the work, and each file there whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import IO, TYPE_CHECKING

from paella.cli.errors import Unwritable
from paella.cli.options import is_picture_file

if TYPE_CHECKING:
    from PIL.Image import Image


def check_writable(output: Path, *, folder: bool = False) -> None:
    """Makes sure, without leaving a trace, that a file (or files in that folder) can be written.

    Raises:
        Unwritable: it cannot.
    """
    place = output if folder else output.parent
    try:
        if output.exists() and output.is_dir() != folder:
            raise Unwritable(f"output: {output} is {'not a' if folder else 'a'} folder")
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except Unwritable:
        raise
    except OSError as error:
        raise Unwritable(f"output: cannot write to {place}: {error.strerror or error}") from error


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes atomically, and makes the folders on the way.

    Raises:
        Unwritable: it cannot be done; nothing is left of the attempt.
    """
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Unwritable(f"output: cannot write {path}: {error.strerror or error}") from error


def write_picture(picture: Image, path: Path) -> None:
    """Writes a PNG with what the picture's `info` says of its making."""
    from paella.images import save

    write_file(path, lambda file: save(picture, file))


def write_pictures(pictures: list[Image], output: Path, *, seeds_in_captions: bool, source: Path | None = None) -> Path:
    """Writes the pictures, and a contact sheet of several; returns the file to look at.

    A .png file gets the one picture or the sheet, a folder all of them beside what is there already.

    Args:
        source: the picture that they were made from, for their names.
    """
    single = is_picture_file(output)
    path = output
    if single and len(pictures) == 1:
        write_picture(pictures[0], path)
    if not single:
        frames = len({picture.info["seed"] for picture in pictures}) < len(pictures)  # they share their seed
        for index, picture in enumerate(pictures):
            words = picture.info["prompt"]
            if picture.info["ability"] != "generate":
                words = f"{source.stem if source else ''} {picture.info['ability']} {words}"
            stem = _file_stem(words)
            path = unused(output / f"{stem}-{f'{index:03d}' if frames else picture.info['seed']}.png")
            write_picture(picture, path)
    if len(pictures) > 1:
        from paella.images import contact_sheet

        captions = [
            picture.info["prompt"] + (f" (seed {picture.info['seed']})" if seeds_in_captions else "")
            for picture in pictures
        ]
        path = output if single else unused(output / "sheet.png")
        write_picture(contact_sheet(pictures, captions), path)
    return path


def unused(path: Path) -> Path:
    """That path, or the first of fox-2.png, fox-3.png, … where fox.png is taken."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())


def write_animation(pictures: list[Image], path: Path) -> Path:
    """Writes the pictures as the frames of one file, of the kind that its suffix names; returns the file."""
    first, *others = pictures
    kind = path.suffix[1:].upper()
    write_file(path, lambda file: first.save(file, kind, save_all=True, append_images=others, duration=120, loop=0))
    return path


def _file_stem(prompt: str) -> str:
    """The prompt as part of a file's name: at most 40 letters, digits and hyphens."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "picture"


def write_text(text: str, path: Path) -> None:
    write_file(path, lambda file: file.write(text.encode()))
