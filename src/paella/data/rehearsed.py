"""A few own pictures among emoji scenes: what a model learns from that is not to forget what it knew."""

from __future__ import annotations

from functools import lru_cache
from math import floor

import torch
from PIL import Image

from paella.data.folder import Folder
from paella.data.scenes import Scenes


class Rehearsed:
    """The data set: `[number]` is (RGB picture, caption), of a scene or of the folder. It never ends.

    The folder's pictures come spread evenly, in shuffled epochs.

    Args:
        folder: the own pictures.
        scenes: what is rehearsed.
        share: of the numbers that are scenes, in [0, 1).
        seed: of the folder's order.

    Attributes:
        names: the objects of the scenes.
    """

    def __init__(self, folder: Folder, scenes: Scenes, share: float, seed: int = 0) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"rehearse: must be at least 0 and below 1, not {share}")
        self.folder, self.scenes, self.share, self.seed = folder, scenes, share, seed
        self.names = scenes.names

    def __getitem__(self, number: int) -> tuple[Image.Image, str]:
        before, after = (floor(count * (1 - self.share)) for count in (number, number + 1))  # of the folder's
        if before == after:
            return self.scenes[number]
        epoch, place = divmod(before, len(self.folder))
        return self.folder.draw(_shuffled(len(self.folder), self.seed + epoch)[place], epoch)


@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()
