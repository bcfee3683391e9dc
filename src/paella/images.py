"""Pictures in and out: whatever users bring -> RGB, PIL <-> tensor, masks, compositing, contact sheets."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
Picture = Image.Image | np.ndarray | str | Path  # a PIL image, an array (H,W) or (H,W,3), or a file
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B,3,H,W) float32 in [0, 1]."""
    stack = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """(B,3,H,W) in [0, 1] -> RGB pictures."""
    values = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def open_picture(picture: Picture, name: str = "image", behind: str = "white") -> Image.Image:
    """Any picture -> RGB; see `as_rgb`.

    Args:
        picture: arrays are uint8, (H,W) gray or (H,W,3) or (H,W,4).
        name: the argument's name, for errors.
        behind: the colour that shows where it is transparent.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    return as_rgb(_as_image(picture, name), behind)


def _as_image(picture: Picture, name: str) -> Image.Image:
    """Whatever the user brought, of any mode; see `open_picture`."""
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        if picture.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
            raise ValueError(f"{name}: an array must be uint8, (H,W), (H,W,3) or (H,W,4), not {picture.dtype} {shape}")
        picture = Image.fromarray(picture)
    if isinstance(picture, str | Path):
        picture = read_picture(picture, name)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"{name}: must be a PIL image, an array or a file, not {type(picture).__name__}")
    try:
        picture.load()  # one that was opened, and not read yet
    except MemoryError:
        raise
    except Exception as error:  # of damaged pictures, Pillow raises nearly anything
        raise ValueError(f"{name}: cannot be read; it is closed, or not a whole picture") from error
    if min(picture.size) < 1:
        raise ValueError(f"{name}: is empty ({picture.width} x {picture.height})")
    return picture


def read_picture(file: str | Path, name: str = "image") -> Image.Image:
    """The picture in a file, as it is; `name` is the argument's, for errors.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
    except MemoryError:
        raise
    except Exception as error:  # of damaged pictures, Pillow raises nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a whole picture"
        raise ValueError(f"{name}: cannot read {file}: {reason}") from error
    return picture


def save(picture: Image.Image, file: str | Path | IO[bytes]) -> None:
    """Writes a PNG with what the picture's `info` says of its making, which `picture.save` leaves out.

    Raises:
        ValueError: the file's name is not that of a PNG.
    """
    if isinstance(file, str | Path) and Path(file).suffix.lower() != ".png":
        raise ValueError(f"file: must end in .png, whose metadata say how the picture was made, not {file}")
    about = PngInfo()
    for key, value in picture.info.items():
        if isinstance(key, str) and isinstance(value, str):
            about.add_text(key, value)
    picture.save(file, "PNG", pnginfo=about)


def as_rgb(image: Image.Image, behind: str = "white") -> Image.Image:
    """A picture of any mode as RGB of 8 bits, upright: turned as its EXIF data say, what is transparent over a colour.

    Gray of 16 bits or more is read as 0 ... 65535, or 0 ... 1 where its numbers are floats.
    """
    with suppress(Exception):  # of damaged EXIF data, Pillow raises nearly anything; they say nothing then
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would cut these off at 255
        full = 1.0 if image.mode == "F" else 65535.0
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64)) / full
        return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":  # Pillow converts it through colour profiles only
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        if converted is None:
            raise ValueError("its LAB colours cannot be converted")
        return converted
    if image.mode == "La":  # Pillow has no direct way to RGBA
        image = image.convert("LA")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, behind), picture).convert("RGB")


def open_mask(mask: Picture, size: tuple[int, int], name: str = "mask") -> Tensor:
    """Any mask -> (H,W) bool, True where it is white (at least half); what is transparent is black.

    Args:
        mask: arrays are (H,W), bool, uint8, or floating-point in [0, 1].
        size: (width, height) that it must have.

    Raises:
        ValueError: it cannot be read, has another size, is nowhere white, or is a picture with a part erased.
    """
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype.kind in "bf":
        mask = ((mask >= 0.5) * 255).astype(np.uint8)
    given = _as_image(mask, name)
    over_black, over_white = as_rgb(given, "black"), as_rgb(given, "white")
    picture = over_black.convert("L")
    if picture.size != size:
        expected, found = (f"{width} x {height}" for width, height in (size, picture.size))
        raise ValueError(f"{name}: must have the picture's size, {expected} pixels (width x height), not {found}")
    if _is_erased_picture(np.asarray(over_black), np.asarray(over_white)):
        raise ValueError(
            f"{name}: is a picture with a transparent part; a mask is white where it marks, and black or transparent "
            "everywhere else"
        )
    area = torch.from_numpy(np.asarray(picture) >= 128)
    if not area.any():
        raise ValueError(f"{name}: nothing in it is white, so nothing is marked")
    return area


def _is_erased_picture(over_black: np.ndarray, over_white: np.ndarray) -> bool:
    """Whether something is transparent and what is opaque is no mask: more than a soft edge neither black nor white.

    Who erases the part to repaint means the transparent part, and a mask's white would be some other.
    """
    opaque = (over_black == over_white).all(axis=2)
    levels = over_black[opaque]  # (n,3)
    plain = (levels.max(axis=1) < 32) | (levels.min(axis=1) >= 224)
    return not opaque.all() and len(plain) > 0 and plain.mean() < 0.95


def halves(width: int, height: int) -> dict[str, Box]:
    """The four halves of a picture, by name."""
    return {
        "left": (0, 0, width // 2, height),
        "right": (width // 2, 0, width, height),
        "top": (0, 0, width, height // 2),
        "bottom": (0, height // 2, width, height),
    }


def region_mask(where: str | Box | Picture, size: tuple[int, int], named: Mapping[str, Box]) -> Tensor:
    """A region as a mask (H,W) bool.

    Args:
        where: a name, a box or a mask.
        size: (width, height) of the picture.
        named: boxes that have names.

    Raises:
        ValueError: there is no such part of the picture, or nothing in it.
    """
    width, height = size
    if isinstance(where, str):
        if where not in named and not os.path.exists(where):  # Path's may raise where a name is too long
            raise ValueError(f"regions: must be {', '.join(named)}, a box or a mask's file, not {where!r}")
        where = named.get(where, where)
    if not isinstance(where, tuple | list):
        return open_mask(where, size, "regions")
    if len(where) != 4 or not all(isinstance(side, Integral) for side in where):
        raise ValueError(f"regions: a box is (left, top, right, bottom), in whole pixels, not {where}")
    left, top, right, bottom = where
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"regions: the box {tuple(where)} is empty or not within the {width} x {height} pixels")
    area = torch.zeros(height, width, dtype=torch.bool)
    area[top:bottom, left:right] = True
    return area


def padded_to_multiple(picture: Image.Image, f: int) -> Image.Image:
    """The picture continued by reflection on its right and lower side, to multiples of f."""
    right, bottom = -picture.width % f, -picture.height % f
    if not (right or bottom):
        return picture
    return Image.fromarray(np.pad(np.asarray(picture), ((0, bottom), (0, right), (0, 0)), mode="symmetric"))


def blanked(pixels: Tensor, known: Tensor) -> Tensor:
    """Pictures of which only a part is known: the rest has the mean colour of what is.

    Args:
        pixels: (B,3,H,W).
        known: (B,h,w) bool, of h x w equal rectangles; where nothing is known, all is black.
    """
    kept = F.interpolate(known[:, None].to(pixels), size=pixels.shape[-2:], mode="nearest")
    mean = (pixels * kept).sum((2, 3), keepdim=True) / kept.sum((2, 3), keepdim=True).clamp(min=1)
    return pixels * kept + mean * (1 - kept)


def moved(grids: Tensor, offsets: Tensor) -> Tensor:
    """Grids (B,h,w), each moved down and right by so many places: offsets (B,2) int64 of either sign. Their outermost
    rows and columns fill what they leave behind."""
    _, height, width = grids.shape
    images, rows, columns = (torch.arange(side, device=grids.device) for side in grids.shape)
    rows = (rows - offsets[:, :1]).clamp(0, height - 1)  # (B,h)
    columns = (columns - offsets[:, 1:]).clamp(0, width - 1)  # (B,w)
    return grids[images[:, None, None], rows[:, :, None], columns[:, None]]


def token_mask(mask: Tensor, f: int, margin: int = 0) -> Tensor:
    """Pixel mask (H,W) bool -> token mask (⌈H/f⌉,⌈W/f⌉) bool: a token with one masked pixel is masked, and so are
    its neighbours up to `margin` tokens away."""
    pooled = F.max_pool2d(mask[None].float(), f, ceil_mode=True)
    if margin:
        pooled = F.max_pool2d(pooled, 2 * margin + 1, stride=1, padding=margin)
    return pooled[0] > 0


def feathered(mask: Tensor, feather: int) -> Tensor:
    """A mask (H,W) bool as weights (H,W) in [0, 1]: 0 outside it, and 1 from so many pixels inside its border on.

    Raises:
        ValueError: `feather` is below 0, or so wide that no pixel has weight 1.
    """
    if feather < 0:
        raise ValueError(f"feather: must be 0 or more pixels, not {feather}")
    inner = mask[None].float()
    total = inner
    for ring in range(feather):  # each erosion takes a ring off; a pixel's weight is the share of those it outlives
        inner = 1 - F.max_pool2d(1 - inner, 3, stride=1, padding=1)
        if not inner.any():
            raise ValueError(f"feather: must be at most {ring} pixels, as the mask is no wider, not {feather}")
        total = total + inner
    return total[0] / (feather + 1)


def composite(original: Image.Image, painted: Image.Image, weights: Tensor) -> Image.Image:
    """`painted` where the weights (H,W) are 1, `original` bit for bit where they are 0; both RGB of one size."""
    weight = weights[:, :, None].numpy()
    blend = weight * np.asarray(painted) + (1 - weight) * np.asarray(original)
    return Image.fromarray(blend.round().astype(np.uint8))


ALIKE = 32  # of 255: two pixels that differ by more do not show the same thing
FADE = 4  # pixels inside the mask, over which what differs at its border all the same fades away


def retouched(painted: Image.Image, original: Image.Image, mask: Tensor) -> Image.Image:
    """`painted` with its colours shifted in the mask, so that they meet the original at the mask's border.

    A tokenizer gives every colour back a little off, which shows where old and new pixels touch. The difference is
    measured in a ring of two pixels around the mask, where both show the same thing, and continued smoothly into it,
    as in seamless cloning (Pérez et al. 2003). What else differs at the border, as an outline that was painted a pixel
    beside the old one, fades within `FADE` pixels.

    Args:
        painted, original: RGB of one size; `painted` goes on beyond the mask, where it is about as the original.
        mask: (H,W) bool, True where `painted` will be seen.
    """
    off = torch.from_numpy(np.asarray(original, np.float32) - np.asarray(painted)).permute(2, 0, 1)
    ring = (F.max_pool2d(mask[None].float(), 5, stride=1, padding=2)[0] > 0) & ~mask
    ring &= off.abs().amax(0) <= ALIKE
    smooth = _continued(off * ring, ring[None].float()) if ring.any() else torch.zeros_like(off)
    shift = mask * smooth + _faded(off - smooth, ~mask[None])
    shifted = np.asarray(painted) + shift.permute(1, 2, 0).numpy()
    return Image.fromarray(shifted.round().clip(0, 255).astype(np.uint8))


def covered(picture: Image.Image, mask: Tensor) -> Image.Image:
    """The picture (RGB) with the colours around the mask (H,W) bool continued into it, so that nothing is left of what
    was there; as it is where there is nothing around it."""
    if not mask.any() or mask.all():
        return picture
    visible = ~mask[None]
    pixels = torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)
    filled = _continued(pixels * visible, visible.float()).permute(1, 2, 0).numpy()
    return Image.fromarray(filled.round().clip(0, 255).astype(np.uint8))


def _continued(total: Tensor, weight: Tensor) -> Tensor:
    """Means total / weight (C,H,W) where there is a weight (1,H,W), and elsewhere those of ever coarser grids."""
    mean = total / weight.clamp(min=1e-12)
    if (weight > 0).all():
        return mean
    coarse = _continued(*(F.avg_pool2d(grid, 2, ceil_mode=True) for grid in (total, weight)))
    return torch.where(weight > 0, mean, F.interpolate(coarse[None], weight.shape[1:], mode="bilinear")[0])


def _faded(values: Tensor, known: Tensor) -> Tensor:
    """Values (C,H,W) where they are known, (1,H,W) bool, handed on from there from neighbour to neighbour, weaker at
    every pixel; 0 where they are known, and from `FADE` pixels on."""
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=values.dtype)[None, None]
    values, reached, faded = values * known, known.float(), torch.zeros_like(values)
    for step in range(FADE):
        total, weight = (F.conv2d(grid[:, None], cross, padding=1)[:, 0] for grid in (values, reached))
        new = (weight > 0) & (reached == 0)
        values, reached = torch.where(new, total / weight.clamp(min=1), values), reached + new
        faded += new * values * (1 - step / FADE)
    return faded


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str] | None = None, *, columns: int = 8, gap: int = 4
) -> Image.Image:
    """The pictures on one white sheet, row by row, each with its caption below where captions are given."""
    columns = min(columns, len(pictures))
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    font = _font_for("".join(captions or ()))
    cell = max(width, 150) if captions else width
    lines = [_wrap(_drawable(text, font), cell, font) for text in captions] if captions else [[]] * len(pictures)
    cell_height = height + 13 * max(map(len, lines))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * (cell_height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left, top = gap + i % columns * (cell + gap), gap + i // columns * (cell_height + gap)
        sheet.paste(picture, (left + (cell - picture.width) // 2, top))
        draw.multiline_text((left, top + height + 1), "\n".join(lines[i]), fill="black", font=font, spacing=2)
    return sheet


def _font_for(text: str) -> Font:
    """Pillow's own font, which knows little beside ASCII; or DejaVu Sans where that is not enough, and it is there."""
    font = ImageFont.load_default(10)
    if _drawable(text, font) != text:
        with suppress(OSError):
            return ImageFont.truetype("DejaVuSans.ttf", 10)
    return font


def _drawable(text: str, font: Font) -> str:
    """The text, in it letters without their accents, or a question mark, for what the font would draw as a box."""
    box = bytes(font.getmask("\uffff"))

    def known(character: str) -> bool:
        return character.isspace() or bytes(font.getmask(character)) != box

    def nearest(character: str) -> str:
        parts = "->" if character == "→" else unicodedata.normalize("NFKD", character)  # the arrow of `interpolate`
        return "".join(filter(known, parts)) or "?"

    return "".join(character if known(character) else nearest(character) for character in text)


def _wrap(text: str, width: int, font: Font) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
