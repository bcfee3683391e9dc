"""Large pictures in overlapping tiles, so that the memory a network needs does not grow with the picture.

Lengths are in tokens. Which tiles there are depends on the picture's size alone, so that a picture is the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Span = tuple[int, int]  # first, and one behind the last


def spans(length: int, longest: int, overlap: int) -> list[Span]:
    """The fewest tiles of equal length, at most `longest`, that cover {0 … length-1}; neighbours share at least
    `overlap`, which is below `longest`."""
    if length <= longest:
        return [(0, length)]
    count = -(-(length - overlap) // (longest - overlap))
    tile = -(-(length + (count - 1) * overlap) // count)
    starts = [i * (length - tile) // (count - 1) for i in range(count)]
    return [(start, start + tile) for start in starts]


def decoded(decode: Callable[[Tensor], Tensor], tokens: Tensor, f: int, longest: int, overlap: int) -> Tensor:
    """Decodes tiles and blends them linearly where they overlap.

    Args:
        decode: tokens (B,h',w') -> pixels (B,3,f·h',f·w'), of any float dtype.
        tokens: (B,h,w).
        f: pixels per token, along one side.
        longest, overlap: see `spans`.

    Returns:
        (B,3,f·h,f·w) float32, in which they are blended too.
    """
    rows, columns = (spans(length, longest, overlap) for length in tokens.shape[-2:])
    pixels = torch.zeros(len(tokens), 3, *(f * length for length in tokens.shape[-2:]), device=tokens.device)
    for (top, bottom), down in zip(rows, _weights(rows, f), strict=True):
        for (left, right), across in zip(columns, _weights(columns, f), strict=True):
            tile = decode(tokens[:, top:bottom, left:right]).float() * (down[:, None] * across).to(pixels)
            pixels[:, :, f * top : f * bottom, f * left : f * right] += tile
    return pixels


def encoded(encode: Callable[[Tensor], Tensor], pixels: Tensor, f: int, longest: int, overlap: int) -> Tensor:
    """Encodes tiles and joins their tokens: each token comes from a tile that goes on by about half the overlap.

    Args:
        encode: pixels (B,3,f·h',f·w') -> tokens (B,h',w').
        pixels: (B,3,f·h,f·w).
        f, longest, overlap: see `decoded`.

    Returns:
        (B,h,w) int64.
    """
    rows, columns = (spans(length // f, longest, overlap) for length in pixels.shape[-2:])

    def row(span: Span, kept: slice) -> Tensor:
        parts = [
            encode(pixels[:, :, f * span[0] : f * span[1], f * left : f * right])[:, kept, inner]
            for (left, right), inner in zip(columns, _inner(columns), strict=True)
        ]
        return torch.cat(parts, dim=2)

    return torch.cat([row(span, kept) for span, kept in zip(rows, _inner(rows), strict=True)], dim=1)


def _weights(tiles: list[Span], f: int) -> list[Tensor]:
    """How much each tile counts at each of its pixels along one side: the sum is 1 everywhere."""
    weights = [torch.ones(f * (end - start)) for start, end in tiles]
    for i, ((_, end), (start, _)) in enumerate(pairwise(tiles)):
        shared = f * (end - start)
        ramp = (torch.arange(shared) + 0.5) / shared
        weights[i][len(weights[i]) - shared :] = 1 - ramp
        weights[i + 1][:shared] = ramp
    return weights


def _inner(tiles: list[Span]) -> list[slice]:
    """Which part of each tile is kept, counted from its start: as far as the middle of what it shares."""
    cuts = [tiles[0][0], *((start + end) // 2 for (_, end), (start, _) in pairwise(tiles)), tiles[-1][1]]
    return [slice(first - start, last - start) for (start, _), (first, last) in zip(tiles, pairwise(cuts), strict=True)]
