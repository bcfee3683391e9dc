"""Writing results: known to be possible before the work, and each file there whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
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


def write_file(path: Path, write: Callable[[IO[bytes]], object], *, beside: bool = False) -> Path:
    """Writes atomically, and makes the folders on the way; returns the file.

    Args:
        beside: where the file is there already, leave it, and write fox-2.png, fox-3.png, … beside fox.png; so do other
            processes at the same time.

    Raises:
        Unwritable: it cannot be done; nothing is left of the attempt.
    """
    partial = path.with_name(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(file)
            if beside:
                path = _moved_beside(partial, path)
            else:
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise Unwritable(f"output: cannot write {path}: {error.strerror or error}") from error
    return path


def _moved_beside(partial: Path, path: Path) -> Path:
    """Gives the file that name, or the first of fox-2.png, fox-3.png, … that is free, and returns it."""
    for one in _numbered(path):
        try:
            one.open("xb").close()  # it is ours
        except FileExistsError:
            continue
        try:
            os.replace(partial, one)
        except BaseException:
            one.unlink()
            raise
        return one
    raise AssertionError("there is always another number")


def write_picture(picture: Image, path: Path, *, beside: bool = False) -> Path:
    """Writes a PNG with what the picture's `info` says of its making; for `beside` see `write_file`."""
    from paella.images import save

    return write_file(path, lambda file: save(picture, file), beside=beside)


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
            name = f"{stem}-{f'{index:03d}' if frames else picture.info['seed']}.png"
            path = write_picture(picture, output / name, beside=True)
    if len(pictures) > 1:
        from paella.images import contact_sheet

        captions = [
            picture.info["prompt"] + (f" (seed {picture.info['seed']})" if seeds_in_captions else "")
            for picture in pictures
        ]
        sheet = contact_sheet(pictures, captions)
        path = write_picture(sheet, output if single else output / "sheet.png", beside=not single)
    return path


def unused(path: Path) -> Path:
    """That path, or the first of fox-2.png, fox-3.png, … where fox.png is taken."""
    return next(one for one in _numbered(path) if not one.exists())


def _numbered(path: Path) -> Iterator[Path]:
    return chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))


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
