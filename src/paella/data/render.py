"""The pictures of scenes, from the vendored Noto Color Emoji font."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import resources

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paella.data.scene import BACKGROUNDS, Layout, Scene, colours
from paella.data.vocabulary import all_objects

BACKGROUND_JITTER = 12  # each channel, either way
# the longer side of an object, as a share of the picture's side
OBJECT_SIZES: dict[Layout, tuple[float, float]] = {
    "single": (0.65, 0.85),
    "small": (0.30, 0.45),
    "horizontal": (0.38, 0.48),
    "vertical": (0.38, 0.48),
    "count": (0.38, 0.48),
}
OFF_CENTRE = 0.06  # how far a centred object strays, as a share of the picture's side
FONT_SIZE = 109  # the one size of the font's bitmaps


@lru_cache(maxsize=2048)
def sprite(name: str) -> Image.Image:
    """The object's rendering, RGBA, cropped to what is not transparent.

    Raises:
        KeyError: `name` is not in the vocabulary.
    """
    with resources.as_file(resources.files("paella.data").joinpath("NotoColorEmoji.ttf")) as path:
        font = _font(str(path))
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    character = all_objects()[name]
    ImageDraw.Draw(canvas).text((FONT_SIZE // 4, FONT_SIZE // 4), character, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


@cache
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, FONT_SIZE)


@lru_cache(maxsize=16384)
def scaled_sprite(name: str, longer_side: int) -> Image.Image:
    """The object's rendering with its longer side scaled to that many pixels, RGBA."""
    picture = sprite(name)
    scale = longer_side / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def render(
    scene: Scene, size: int, rng: np.random.Generator, *, snap: int = 1, jitter: int = BACKGROUND_JITTER
) -> Image.Image:
    """The scene as an RGB picture of `size` x `size` pixels.

    Args:
        snap: sizes and places are rounded to multiples of this many pixels where that stays within the scene's rules;
            with the tokenizer's compression, an object's tokens hardly depend on its place, which is an easier start
            for a young predictor.
        jitter: how far each channel of the background strays from the named colour, of 255.
    """
    return render_layers(scene, size, rng, snap, jitter)[0]


Layer = tuple[Image.Image, tuple[int, int]]  # an object's rendering, RGBA, and the place of its corner


def render_layers(
    scene: Scene, size: int, rng: np.random.Generator, snap: int, jitter: int
) -> tuple[Image.Image, list[Layer]]:
    """The picture, and the layers that lie on its background."""
    picture = _backdrop(scene.background, size, rng.integers(-jitter, jitter + 1, size=3))
    layers = _arranged(scene, size, rng, snap)
    for thing, place in layers:
        picture.paste(thing, place, thing)
    return picture, layers


def _backdrop(background: str, size: int, strayed: np.ndarray) -> Image.Image:
    """The background's colours, all strayed by the same."""
    names = colours(background)
    first, last = (np.clip(np.array(BACKGROUNDS[name]) + strayed, 0, 255) for name in (names[0], names[-1]))
    share = np.linspace(0, 1, size) if background.endswith("gradient") else np.arange(size) >= size // 2
    line = first + share[:, None] * (last - first)
    across = np.broadcast_to(line, (size, size, 3))
    return Image.fromarray((across.swapaxes(0, 1) if background.endswith("gradient") else across).astype(np.uint8))


def _arranged(scene: Scene, size: int, rng: np.random.Generator, snap: int) -> list[Layer]:
    """Size and place of each object, as the scene's layout allows."""
    half = size // 2
    rooms = {  # left, top, width and height of the room that each object has
        "single": [(0, 0, size, size)],
        "small": [(0, 0, size, size)],
        "horizontal": [(0, 0, half, size), (half, 0, size - half, size)],
        "vertical": [(0, 0, size, half), (0, half, size, size - half)],
        "count": _count_rooms(len(scene.objects), size),
    }[scene.layout]
    layers = []
    for name, (left, top, width, height) in zip(scene.objects, rooms, strict=True):
        low, high = (share * size for share in OBJECT_SIZES[scene.layout])
        longer_side = int(_snapped(rng.uniform(low, high), snap, low, high))
        thing = scaled_sprite(name, longer_side)
        place = []
        for start, room, extent in ((left, width, thing.width), (top, height, thing.height)):
            slack = room - extent
            if scene.layout == "small":
                at = rng.uniform(0, slack)
            else:
                at = min(max(slack / 2 + rng.uniform(-OFF_CENTRE, OFF_CENTRE) * size, 0), slack)
            place.append(start + int(_snapped(at, snap, 0, slack)))
        layers.append((thing, (place[0], place[1])))
    return layers


def _count_rooms(count: int, size: int) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of each of `count` rooms, a quarter of the picture each: in one row, or in two."""
    half, quarter = size // 2, size // 4
    match count:
        case 2:
            return [(0, quarter, half, half), (half, quarter, half, half)]
        case 3:
            return [(quarter, 0, half, half), (0, half, half, half), (half, half, half, half)]
        case _:
            return [(left, top, half, half) for top in (0, half) for left in (0, half)]


def _snapped(value: float, step: int, low: float, high: float) -> float:
    """The multiple of `step` nearest to `value` within low ... high; where there is none, of half the step, ..."""
    while step > 1:
        first, last = int(np.ceil(low / step)) * step, int(high // step) * step
        if first <= last:
            return min(max(round(value / step) * step, first), last)
        step //= 2
    return min(max(round(value), int(np.ceil(low))), int(high))
