"""Pictures in and out: PIL <-> tensor, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B,3,H,W) float32 in [0, 1]."""
    stack = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """(B,3,H,W) in [0, 1] -> RGB pictures."""
    values = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str] | None = None, *, columns: int = 8, gap: int = 4
) -> Image.Image:
    """The pictures on one white sheet, row by row, each with its caption below where captions are given."""
    columns = min(columns, len(pictures))
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures), strict=True))
    font = ImageFont.load_default(10)
    cell = max(width, 150) if captions else width
    lines = [_wrap(caption, cell, font) for caption in captions] if captions else [[]] * len(pictures)
    cell_height = height + 13 * max(map(len, lines))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (gap + columns * (cell + gap), gap + rows * (cell_height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left, top = gap + i % columns * (cell + gap), gap + i // columns * (cell_height + gap)
        sheet.paste(picture, (left + (cell - picture.width) // 2, top))
        draw.multiline_text((left, top + height + 1), "\n".join(lines[i]), fill="black", font=font, spacing=2)
    return sheet


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
