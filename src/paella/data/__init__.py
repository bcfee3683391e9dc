"""Data sets: a thing with `[index]` -> (RGB picture, caption), or what encoding makes of these: (tokens, embeddings).

Emoji scenes have no end, all others have a length.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from paella.images import to_tensor

if TYPE_CHECKING:
    from paella.data.encoded import Encoded
    from paella.data.folder import Folder
    from paella.data.scenes import Scenes
    from paella.train.recipe import DataConfig


class PictureData(Protocol):
    def __getitem__(self, index: int) -> tuple[Image.Image, str]: ...


def length(data: PictureData) -> int | None:
    """How many pictures there are; None = no end."""
    return len(data) if isinstance(data, Sized) else None


class Stream(Sampler[int]):
    """Numbers from position `start` on, for ever: 0, 1, 2 … of an endless data set, shuffled epochs of a finite one.

    In epoch e, picture i of n has the number e·n + i (`Epochs`). Position alone decides what comes next, so a resumed
    run sees what an uninterrupted one would have seen.
    """

    def __init__(self, length: int | None, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start

    def __iter__(self) -> Iterator[int]:
        position = self.start
        while True:
            if self.length is None:
                yield position
                position += 1
                continue
            epoch, offset = divmod(position, self.length)
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
            yield from (epoch * self.length + index for index in order[offset:])
            position = (epoch + 1) * self.length


class Epochs:
    """Pictures read again and again: number e·n + i is picture i of n, with the caption whose turn it is in epoch e."""

    def __init__(self, data: Folder | Encoded) -> None:
        self.data = data

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        epoch, index = divmod(number, len(self.data))
        return self.data.draw(index, epoch)


def collate(samples: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Samples -> a batch, by what they are.

    - Pictures and captions: pixels (B,3,H,W) float32 in [0, 1], and the captions.
    - Encoded ones: tokens (B,h,w), `Embeddings` (B,d).
    - Captions worded in two ways: both lists.
    """
    first, second = zip(*samples, strict=True)
    if isinstance(first[0], str):
        return list(first), list(second)
    if isinstance(first[0], Tensor):
        return torch.stack(first), default_collate(list(second))
    return to_tensor(first), list(second)


def open_data(config: DataConfig, seed: int) -> Folder | Scenes:
    """The pictures that a recipe asks for."""
    if config.encoded is not None:
        raise ValueError("data.encoded: holds tokens and embeddings, which only a predictor of these learns from")
    if config.folder is not None:
        from paella.data.folder import Folder

        try:
            folder = Folder(config.folder, size=config.size)
        except ValueError as error:
            raise ValueError(f"data: {error}") from error
        if folder.skipped:
            named = "; ".join(f"{file}: {reason}" for file, reason in folder.skipped)
            warnings.warn(f"data.folder: {len(folder.skipped)} skipped ({named})", stacklevel=2)
        return folder
    from paella.data.scenes import Scenes

    try:
        return Scenes(
            config.size,
            seed,
            names=config.objects,
            snap=config.snap,
            jitter=config.jitter,
            shares=config.shares,
            patterned=config.patterned,
            wording=config.wording,  # type: ignore[arg-type]
            mirrored=config.mirrored,
            lookalike_groups=config.lookalike_groups,
        )
    except ValueError as error:
        raise ValueError(f"data.{error}") from error


def own_process_group(worker: int) -> None:
    """Ctrl-C goes to the whole foreground group; the parent must get it alone, as it still needs the batch at hand."""
    if hasattr(os, "setpgid"):  # Windows has no such groups
        os.setpgid(0, 0)


def open_loader(data: PictureData, batch_size: int, seed: int, *, start: int = 0, workers: int = 0) -> DataLoader[Any]:
    """An endless loader of the batches that `collate` makes, from sample number `start` on."""
    return DataLoader(
        data if length(data) is None else Epochs(data),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=Stream(length(data), seed, start),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=own_process_group,
        pin_memory=torch.cuda.is_available(),  # a GPU then fetches a batch while it is at work
    )
