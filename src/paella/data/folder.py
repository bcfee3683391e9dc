"""A data set of the user's own pictures: a folder, its sub-folders, and a caption for each picture.

Captions lie beside the pictures, in either or both of two forms:

- `cat.txt` beside `cat.png`: each line that is not empty is one caption of the picture;
- `captions.jsonl` in any folder: lines `{"file": "pets/cat.png", "caption": "a cat"}`, the file seen from the folder
  that the jsonl lies in. `file_name` and `text`, as Hugging Face's imagefolder calls them, are accepted too.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from paella.arguments import has_half_characters
from paella.images import as_rgb

PICTURE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"]
)
CAPTIONS_FILE = "captions.jsonl"


class Folder:
    """The data set: `folder[index]` is (RGB picture of `size` x `size` pixels, caption), index in 0 ... len - 1.

    Pictures are ordered by their path. A picture with several captions gives its first one; `draw` gives the others.
    Hidden files and folders (their names begin with a dot) are passed over. Every picture is decoded once here, so
    that a broken one shows now and not in the middle of a training run.

    Args:
        path: the folder.
        size: side of the pictures, in pixels.

    Attributes:
        files: the pictures, in the data set's order.
        captions: for each picture its captions, the sidecar's before the jsonl's; never empty.
        skipped: (file, reason) of each broken picture, picture without a caption or of an unknown kind, and bad line of
            a jsonl ("captions.jsonl:3" is its third line); files as seen from `path`, with forward slashes.

    Raises:
        ValueError: `size` is not positive, `path` is not a folder, or it holds no picture that can be used.
    """

    def __init__(self, path: str | Path, size: int = 64) -> None:
        self.path, self.size = Path(path), size
        self.files: list[Path] = []
        self.captions: list[list[str]] = []
        self.skipped: list[tuple[str, str]] = []
        if size < 1:
            raise ValueError(f"size is a number of pixels, at least 1; got {size}")
        found = [file for file in sorted(_below(self.path)) if file.is_file()]
        pictures = [file for file in found if file.suffix.lower() in PICTURE_SUFFIXES]
        listed = self._listed([file for file in found if file.name == CAPTIONS_FILE], set(pictures))
        for file in pictures:
            self._add(file, listed[file])
        stems = {file.with_suffix("") for file in found if file.suffix == ".txt"} - {
            one.with_suffix("") for one in pictures
        }
        for file in found:  # others that have captions
            if file.suffix not in ("", ".txt", ".jsonl") and file.with_suffix("") in stems:
                self._skip(file, f"{file.suffix} is not among the kinds of pictures that are read")
        if not self.files:
            raise ValueError(self._nothing_usable())

    def __len__(self) -> int:
        return len(self.files)

    @property
    def all_captions(self) -> list[str]:
        """Every caption of every picture."""
        return [caption for captions in self.captions for caption in captions]

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        """The picture and its first caption.

        Raises:
            IndexError: `index` is not in 0 ... len - 1.
            OSError: the picture was removed or damaged after the data set was made.
        """
        return self.draw(index)

    def draw(self, index: int, turn: int = 0) -> tuple[Image.Image, str]:
        """The picture and one of its captions: the first in turn 0, then each of the others, and so on.

        Raises:
            IndexError, OSError: as `folder[index]`.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 ... {len(self) - 1}")
        wordings = self.captions[index]
        return read_picture(self.files[index], self.size), wordings[turn % len(wordings)]

    def caption(self, index: int) -> str:
        """The picture's first caption, without the work of reading the picture."""
        return self.captions[index][0]

    def _add(self, file: Path, listed: list[str]) -> None:
        """Takes the picture in, or notes why it cannot be used."""
        try:
            captions = _sidecar(file) + listed
        except (OSError, UnicodeError) as error:
            self._skip(file, f"its .txt cannot be read: {error}")
            return
        if not captions:
            self._skip(file, "no caption")
            return
        try:
            with Image.open(file) as image:
                image.verify()  # checksums, some of which decoding does not look at
            read_picture(file, self.size)
        except Exception as error:  # decoders raise almost anything on damaged files
            self._skip(file, f"broken picture: {error or type(error).__name__}")
            return
        self.files.append(file)
        self.captions.append(captions)

    def _listed(self, jsonls: list[Path], pictures: set[Path]) -> defaultdict[Path, list[str]]:
        """The captions that jsonl files give to each of `pictures`."""
        captions: defaultdict[Path, list[str]] = defaultdict(list)
        composed = {_composed(picture): picture for picture in pictures}
        for jsonl in jsonls:
            try:
                lines = jsonl.read_bytes().splitlines()
            except OSError as error:
                self._skip(jsonl, f"cannot be read: {error}")
                continue
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    name, caption = _entry(line)
                    file = composed.get(_composed(jsonl.parent / name))
                    if file is None:
                        raise ValueError(f"there is no picture {name}")
                except ValueError as error:
                    self._skip(jsonl, str(error), line=number)
                else:
                    captions[file].append(caption)
        return captions

    def _skip(self, file: Path, reason: str, *, line: int | None = None) -> None:
        name = file.relative_to(self.path).as_posix().encode("utf-8", "backslashreplace").decode()  # can be printed
        self.skipped.append((name if line is None else f"{name}:{line}", reason))

    def _nothing_usable(self) -> str:
        expected = (
            f"expected pictures ({', '.join(sorted(PICTURE_SUFFIXES))}), each with a caption in a .txt of its name "
            f'or in a {CAPTIONS_FILE} of lines {{"file": "cat.png", "caption": "a cat"}}'
        )
        if not self.path.is_dir():
            return f"there is no folder {self.path}: {expected}"
        skipped = f" ({len(self.skipped)} skipped, first {': '.join(self.skipped[0])})" if self.skipped else ""
        return f"nothing in the folder {self.path} can be used{skipped}: {expected}"


def _below(folder: Path) -> Iterator[Path]:
    """All files that are not hidden, those of linked folders too, each of which is entered once."""
    entered = {os.path.realpath(folder)}
    for root, folders, files in os.walk(folder, followlinks=True):
        places = {os.path.realpath(os.path.join(root, name)): name for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for place, name in places.items() if place not in entered]
        entered |= places.keys()
        yield from (Path(root, name) for name in files if name[0] != ".")


def _composed(file: Path) -> str:
    """A path by which the same letters are the same: é may be one character, or an e with an accent (macOS)."""
    return unicodedata.normalize("NFC", str(file))


def read_picture(file: str | Path, size: int) -> Image.Image:
    """The picture as RGB, `size` x `size` pixels: the centre square, resized.

    Of several frames, the first; for other modes than RGB see `paella.images.as_rgb`.

    Raises:
        OSError: there is no such file, or it is not a picture that can be read. Damaged files raise other errors too.
    """
    with Image.open(file) as image:
        image.draft(None, (2 * size, 2 * size))  # a JPEG is then decoded at about the size that is needed
        picture = as_rgb(image)
    side = min(picture.size)
    left, top = ((extent - side) // 2 for extent in picture.size)
    square = picture.crop((left, top, left + side, top + side))  # first: resizing a box looks beyond its edges
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _sidecar(picture: Path) -> list[str]:
    """The lines of the picture's .txt that are not empty; none where there is no such file."""
    sidecar = picture.with_suffix(".txt")
    if not sidecar.is_file():
        return []
    lines = sidecar.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _entry(line: bytes) -> tuple[str, str]:
    """File and caption of one line of a jsonl.

    Raises:
        ValueError: the line is not JSON, or does not hold both.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError('not of the form {"file": ..., "caption": ...}')
    file, caption = entry.get("file", entry.get("file_name")), entry.get("caption", entry.get("text"))
    if not isinstance(file, str) or not file:
        raise ValueError('no "file"')
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(f"no caption for {file!r}")
    if any(has_half_characters(text) for text in (file, caption)):
        raise ValueError(f"half a character in {(file, caption)!r}")
    return file, caption.strip()
