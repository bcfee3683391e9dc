"""Which object does a picture show? Told without a learned model, by matching every object's own rendering against it.

A rendering is pasted onto the picture's own background colour and correlated with the windows of the picture: a few
scales, every position, each colour channel less its mean over the window. A window is square and reaches a little
beyond the object on every side, so that the outline counts: an object of flat colour has little else to be told by.
(Correlating under the object's alpha alone, the other way to leave out an unknown background, loses the outline.)

Both are blurred and halved first. A generated picture is never sharp to the pixel, and what the blur takes from two
objects' difference it gives back many times in tolerance of places and sizes between those that are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paella.data.render import OBJECT_SIZES, scaled_sprite
from paella.data.scene import BACKGROUNDS, Layout
from paella.images import Box

GRID = 32  # least number of cells to a side that pictures of any size are matched at, where they have as many pixels
FLAT = 2 / 255  # a window that varies less than this is taken to vary this much, so that a flat one matches nothing
ENOUGH = 0.65  # correlation of an object that is there
CHUNK = 64  # pictures matched at once: bounds the memory
# the rest as shares of a picture's side
BORDER = 2 / 64  # width of the border that the background is read from
MARGIN = 2 / 64  # how far a window reaches beyond the longer side of its object
OUTSIDE = 10 / 64  # how far a window may reach out of the picture, where it sees more background
SCALES = 5  # sizes that each object is tried at
APART = 0.6  # of two copies of an object: between their middles, of their longer side
OVERHANG = 2 / 64  # how far the search in one half of a picture reaches into the other


class Matcher:
    """Matches the renderings of `names` against pictures of `size` x `size` pixels.

    Raises:
        KeyError: a name is not in `paella.data.vocabulary`.
    """

    def __init__(self, names: Sequence[str], size: int = 64) -> None:
        self.names, self.size = list(names), size
        self.cell = max(1, size // GRID)  # pixels
        self.cells = size / self.cell  # to a side
        self._templates: dict[int, Tensor] = {}

    @torch.no_grad()
    def scores(
        self, pictures: Tensor, room: Box | None = None, sides: tuple[float, float] = OBJECT_SIZES["single"]
    ) -> Tensor:
        """How well each object matches the best window of each picture.

        Args:
            pictures: (B, 3, size, size), float in [0, 1] or uint8.
            room: the part of the pictures to search; None = all of it.
            sides: the least and greatest longer side of an object, as shares of the picture's side.

        Returns:
            (B, len(names)) float32 correlations in [-1, 1]. No object matches a flat picture: all are 0.

        Raises:
            ValueError: the pictures are not of the matcher's size.
        """
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"expected pictures of (B, 3, {self.size}, {self.size}), not {tuple(pictures.shape)}")
        lengths = self._lengths(sides)
        left, top, right, bottom = room or (0, 0, self.size, self.size)
        best = [torch.zeros(0, len(self.names))]
        for start in range(0, len(pictures), CHUNK):
            chunk = as_float(pictures[start : start + CHUNK])
            background = border_colour(chunk)
            seen = self._coarse(chunk[:, :, top:bottom, left:right] - background[..., None, None])
            matched = (self._match(self._templates_of(length), seen, background)[0] for length in lengths)
            best.append(torch.stack([it.flatten(2).amax(2) for it in matched]).amax(0))
        return torch.cat(best)

    @torch.no_grad()
    def copies(self, picture: Tensor, name: str, sides: tuple[float, float] = OBJECT_SIZES["count"]) -> int:
        """How often a picture shows an object: at how many places it matches well, none of them near a better one.

        An object of much the same outline and colours counts too.

        Args:
            picture: (3, size, size), float in [0, 1] or uint8.
            name: of the object.
            sides: as in `scores`.
        """
        chunk, number = as_float(picture[None]), self.names.index(name)
        background = border_colour(chunk)
        seen = self._coarse(chunk - background[..., None, None])
        found = []  # (correlation, row, column) of the middles of windows, in cells
        for length in self._lengths(sides):
            template = self._templates_of(length)[number : number + 1]
            correlation, pads = self._match(template, seen, background)
            for row, column in (correlation[0, 0] >= ENOUGH).nonzero().tolist():
                middle = [at + template.shape[-1] / 2 - pad for at, pad in zip((row, column), pads, strict=True)]
                found.append((correlation[0, 0, row, column].item(), *middle))
        apart = APART * sides[0] * self.cells
        places: list[tuple[float, float]] = []
        for _, row, column in sorted(found, reverse=True):
            if all(max(abs(row - other[0]), abs(column - other[1])) >= apart for other in places):
                places.append((row, column))
        return len(places)

    def _lengths(self, sides: tuple[float, float]) -> list[int]:
        """The sizes that an object is tried at, in pixels."""
        return sorted({round(side * self.size) for side in np.linspace(*sides, SCALES)})

    def _match(self, templates: Tensor, seen: Tensor, background: Tensor) -> tuple[Tensor, list[int]]:
        """(B, templates, h', w'): how well each template matches `seen` (B, 3, h, w), coarse and less its `background`
        (B, 3), at every position; and how many cells above and left of `seen` the first window begins."""
        colour, alpha = templates[:, :3], templates[:, 3]
        window = templates.shape[-1]
        area = window * window
        pads = [max(round(OUTSIDE * self.cells), -(-(window - extent) // 2)) for extent in seen.shape[-2:]]
        seen = F.pad(seen, (pads[1], pads[1], pads[0], pads[0]))

        # An object pasted onto the background, less that background, is: colour - alpha * background.
        # So its correlation with a window is one convolution, whose fourth channel carries the background.
        behind = -(seen * background[..., None, None]).sum(1, keepdim=True)
        product = F.conv2d(torch.cat([seen, behind], 1), templates)  # (B, names, h, w)
        window_mean = F.avg_pool2d(seen, window, 1)  # (B, 3, h, w)
        window_square = F.avg_pool2d(seen.square().sum(1), window, 1) * area  # (B, h, w)
        object_sum = colour.sum((2, 3)) - background[:, None] * alpha.sum((1, 2))[:, None]  # (B, names, 3)
        object_square = (
            colour.square().sum((1, 2, 3))
            - 2 * background @ (colour * alpha[:, None]).sum((2, 3)).T
            + background.square().sum(1, keepdim=True) * alpha.square().sum((1, 2))
        )  # (B, names)

        covariance = product - torch.einsum("bnc,bchw->bnhw", object_sum, window_mean)
        flat = 3 * area * FLAT**2
        window_energy = (window_square - area * window_mean.square().sum(1)).clamp(min=flat)
        object_energy = (object_square - object_sum.square().sum(2) / area).clamp(min=flat)
        return covariance / (window_energy[:, None] * object_energy[..., None, None]).sqrt(), pads

    def _coarse(self, maps: Tensor) -> Tensor:
        """Pixels to cells, each the mean over twice its width and height. Outside is 0, the background."""
        return F.avg_pool2d(maps, 2 * self.cell, self.cell, self.cell // 2)

    def _templates_of(self, length: int) -> Tensor:
        """(names, 4, window, window): each object in the middle of its window, colour times alpha, and alpha."""
        if length not in self._templates:
            window = -(-(length + 2 * round(MARGIN * self.size)) // self.cell) * self.cell
            templates = np.zeros((len(self.names), window, window, 4), np.float32)
            for template, name in zip(templates, self.names, strict=True):
                thing = np.asarray(scaled_sprite(name, length), np.float32) / 255
                thing[..., :3] *= thing[..., 3:]
                height, width = thing.shape[:2]
                top, left = (window - height) // 2, (window - width) // 2
                template[top : top + height, left : left + width] = thing
            self._templates[length] = self._coarse(torch.from_numpy(templates).permute(0, 3, 1, 2))
        return self._templates[length]


def rooms(layout: Layout, size: int) -> list[Box]:
    """Where each object of a scene is looked for in a `size` x `size` picture: of a pair, each in its own half."""
    near, far = size // 2 + round(OVERHANG * size), size // 2 - round(OVERHANG * size)
    match layout:
        case "horizontal":
            return [(0, 0, near, size), (far, 0, size, size)]
        case "vertical":
            return [(0, 0, size, near), (0, far, size, size)]
        case _:
            return [(0, 0, size, size)]


def ranks(scores: Tensor, right: Tensor) -> Tensor:
    """How many of the other candidates match no worse: scores (..., N) and the right candidates (...) -> (...) int64.

    A tie counts against the right one: a picture of nothing, where all are equal, must not be named right.
    """
    return (scores >= scores.gather(-1, right[..., None])).sum(-1) - 1


def as_float(pictures: Tensor) -> Tensor:
    """uint8 pictures to float32 in [0, 1]; float ones as float32, unchanged."""
    return pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()


def border_pixels(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3, pixels): those along the four sides."""
    height, width = pictures.shape[-2:]
    inside = max(1, round(BORDER * min(height, width)))
    border = torch.ones(height, width, dtype=torch.bool)
    border[inside:-inside, inside:-inside] = False
    return pictures[:, :, border]


def border_colour(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3): the median colour along the border, taken for the background's."""
    return border_pixels(pictures).median(2).values


def background_colour(pictures: Tensor) -> list[str]:
    """The background's name: of `BACKGROUNDS`, the one that is nearest to most pixels along the border.

    Args:
        pictures: (B, 3, H, W), float in [0, 1] or uint8.
    """
    colours = torch.tensor(list(BACKGROUNDS.values())) / 255
    nearest = torch.cdist(border_pixels(as_float(pictures)).transpose(1, 2), colours[None]).argmin(2)  # (B, pixels)
    return [list(BACKGROUNDS)[int(votes.bincount(minlength=len(colours)).argmax())] for votes in nearest]
