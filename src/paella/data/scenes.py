"""Emoji scenes: an endless text-picture data set that anyone can rebuild offline.

One to four objects, rendered from the vendored Noto Color Emoji font, on a background of one or two colours; the
caption says what is there. A scene is drawn in three steps, each a function: `draw_scene` (what is there), `render`
(the picture) and a wording (`paella.data.wordings`). Everything is a function of a seed and an index, so any sample can
be drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from itertools import permutations
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paella.data.vocabulary import all_objects, article, objects
from paella.data.wordings import caption, captions, plain, varied

__all__ = ["BACKGROUNDS", "LAYOUTS", "LabelMaps", "Scene", "Scenes", "all_objects", "article", "caption", "captions",
           "draw_scene", "hard_scenes", "held_out", "lookalikes", "objects", "render"]  # fmt: skip

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 60, 60),
    "green": (80, 170, 90),
    "blue": (70, 120, 220),
    "yellow": (250, 220, 90),
    "pink": (250, 180, 200),
    "orange": (245, 160, 80),
    "purple": (150, 100, 200),
    "gray": (150, 150, 150),
    "light blue": (180, 220, 250),
    "teal": (60, 160, 160),
}
PATTERNS = ("{} and {}", "{} to {} gradient")  # halves side by side; from the top to the bottom
BACKGROUND_JITTER = 12  # each channel, either way

Layout = Literal["single", "small", "horizontal", "vertical", "count"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Wording = Literal["any", "full", "name", "plain", "varied"]
LAYOUT_SHARES = (0.4, 0.15, 0.225, 0.225, 0.0)
COUNTS = (2, 3, 4)  # how many there may be of one object
BARE = 0.2  # share of the plain and varied captions that do not name the background
# the longer side of an object, as a share of the picture's side
OBJECT_SIZES: dict[Layout, tuple[float, float]] = {
    "single": (0.65, 0.85),
    "small": (0.30, 0.45),
    "horizontal": (0.38, 0.48),
    "vertical": (0.38, 0.48),
    "count": (0.38, 0.48),
}
OFF_CENTRE = 0.06  # how far a centred object strays, as a share of the picture's side

TRIES = 10_000  # of a scene that is accepted: a tenth of all pairs are held out, or all of a few objects' pairs

FONT_SIZE = 109  # the one size of the font's bitmaps


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        objects: a pair is ordered (left or upper, right or lower), whatever the wording; a count repeats one name.
        background: "red", or "red and blue" (left and right half), or "red to blue gradient" (from top to bottom).
    """

    objects: tuple[str, ...]
    background: str
    layout: Layout


def held_out(scene: Scene) -> bool:
    """Whether the scene is kept for evaluation: a tenth of all pairs in their order, and of all counts of an object."""
    if len(scene.objects) == 1:
        return False
    words = (scene.objects[0], str(len(scene.objects))) if scene.layout == "count" else scene.objects
    return int(hashlib.sha1("|".join(words).encode()).hexdigest(), 16) % 10 == 0


def unseen(scene: Scene) -> bool:
    """Whether evaluation may ask for it: one object, whose picture alone is new, or what is kept from training."""
    return len(scene.objects) == 1 or held_out(scene)


def any_held_out(names: Sequence[str]) -> bool:
    """Whether a pair of these objects is kept for evaluation."""
    return any(held_out(Scene(pair, "white", "horizontal")) for pair in permutations(names, 2))


def draw_scene(
    rng: np.random.Generator,
    names: Sequence[str],
    *,
    layouts: Sequence[Layout] = LAYOUTS,
    shares: Sequence[float] = LAYOUT_SHARES,
    patterned: float = 0.0,
    accept: Callable[[Scene], bool] = lambda scene: not held_out(scene),
) -> Scene:
    """One random scene over `names` that `accept` takes: by default, one that training may see.

    Args:
        layouts: those to draw from.
        shares: how often each of `LAYOUTS` is drawn, in proportion (alike, where none of `layouts` has one); of a scene
            that is not accepted, only the objects and the background are drawn again.
        patterned: share of the scenes whose background has two colours.

    Raises:
        ValueError: there is no such scene over `names`.
    """
    weights = np.array([shares[LAYOUTS.index(layout)] for layout in layouts])
    if not weights.any():
        weights = np.ones(len(layouts))
    layout = layouts[rng.choice(len(layouts), p=weights / weights.sum())]
    count = 2 if layout in ("horizontal", "vertical") else 1
    if count > len(names):
        raise ValueError(f"objects: a pair needs two, and there is only {len(names)}")
    for _ in range(TRIES):
        chosen = tuple(names[i] for i in rng.choice(len(names), size=count, replace=False))
        if layout == "count":
            chosen *= COUNTS[rng.integers(len(COUNTS))]
        background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        if patterned and rng.random() < patterned:
            background = PATTERNS[rng.integers(len(PATTERNS))].format(
                background, _other(rng, list(BACKGROUNDS), background)
            )
        scene = Scene(chosen, background, layout)
        if accept(scene):
            return scene
    raise ValueError(f"objects: of these {len(names)} no {layout} scene is allowed; give more of them")


@lru_cache(maxsize=2048)
def sprite(name: str) -> Image.Image:
    """The object's rendering, RGBA, cropped to what is not transparent.

    Raises:
        KeyError: `name` is not in the vocabulary.
    """
    with resources.as_file(resources.files("paella.data").joinpath("NotoColorEmoji.ttf")) as path:
        font = _font(str(path))
    canvas = Image.new("RGBA", (2 * FONT_SIZE, 2 * FONT_SIZE))
    character = objects().get(name) or all_objects()[name]
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
    return _render(scene, size, rng, snap, jitter)[0]


Layer = tuple[Image.Image, tuple[int, int]]  # an object's rendering, RGBA, and the place of its corner


def _render(
    scene: Scene, size: int, rng: np.random.Generator, snap: int, jitter: int
) -> tuple[Image.Image, list[Layer]]:
    """The picture, and the layers that lie on its background."""
    picture = _backdrop(scene.background, size, rng.integers(-jitter, jitter + 1, size=3))
    layers = _arranged(scene, size, rng, snap)
    for thing, place in layers:
        picture.paste(thing, place, thing)
    return picture, layers


def colours(background: str) -> tuple[str, ...]:
    """The names of a background's colours: one, or two of left and right, or of top and bottom."""
    return tuple(background.removesuffix(" gradient").replace(" to ", " and ").split(" and "))


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


def lookalikes(scene: Scene, rng: np.random.Generator, names: Sequence[str]) -> list[Scene]:
    """Three scenes that differ from this one in one respect each: hard negatives for contrastive training.

    Of a pair, one has another object in one of the two places: without it, who stands where need only be known well
    enough to tell a pair from its mirror image.

    None of them is held out: a variant that would be is replaced by a random scene.
    """
    names_of_two = colours(scene.background)
    if len(names_of_two) == 2 and rng.random() < 0.5:
        pattern = PATTERNS[scene.background.endswith("gradient")]
        other_background = replace(scene, background=pattern.format(*names_of_two[::-1]))
    else:
        other_background = replace(scene, background=_other(rng, list(BACKGROUNDS), scene.background))
    if scene.layout == "count":
        (name, *_), count = scene.objects, len(scene.objects)
        variants = [
            replace(scene, objects=(_other(rng, names, name),) * count),
            replace(scene, objects=(name,) * (COUNTS[(COUNTS.index(count) + 1 + rng.integers(2)) % 3])),
            other_background,
        ]
    elif len(scene.objects) == 2:
        first, second = scene.objects
        other = _other(rng, names, *scene.objects)
        turned = replace(scene, layout="vertical" if scene.layout == "horizontal" else "horizontal")
        variants = [
            replace(scene, objects=(second, first)),
            replace(scene, objects=(first, other) if rng.random() < 0.5 else (other, second)),
            turned if rng.random() < 0.5 else other_background,
        ]
    else:
        variants = [
            replace(scene, objects=(_other(rng, names, *scene.objects),)),
            replace(scene, layout="small" if scene.layout == "single" else "single"),
            other_background,
        ]
    return [draw_scene(rng, names) if held_out(variant) else variant for variant in variants]


def _other(rng: np.random.Generator, choices: Sequence[str], *these: str) -> str:
    """One of the choices that is none of these."""
    rest = [choice for choice in choices if choice not in these]
    return rest[rng.integers(len(rest))]


def hard_scenes(
    count: int, size: int, seed: int, names: Sequence[str] | None = None
) -> Iterator[tuple[Image.Image, str]]:
    """(picture, caption) in groups of a scene and its lookalikes, no caption twice; a pair is a held-out one, its
    lookalikes are not.

    That many, or fewer where so few objects do not have that many captions.
    """
    names = list(objects() if names is None else names)
    layouts = LAYOUTS if any_held_out(names) else LAYOUTS[:2]
    rng = np.random.default_rng((seed, 1))
    seen: set[str] = set()
    idle = 0  # scenes in a row that had no new caption
    while len(seen) < count and idle < 1000:
        before = len(seen)
        scene = draw_scene(rng, names, layouts=layouts, accept=unseen)
        for one in (scene, *lookalikes(scene, rng, names)):
            words = caption(one, rng, full=True)
            if words not in seen and len(seen) < count:
                seen.add(words)
                yield render(one, size, rng), words
        idle = 0 if len(seen) > before else idle + 1


class Scenes:
    """The data set: `scenes[index]` is (RGB picture, caption), a function of seed and index alone. It never ends.

    Args:
        size: side of the pictures, in pixels.
        names: objects to draw from; by default those of the built-in model.
        snap, jitter: see `render`.
        shares: how often each of `LAYOUTS` is drawn, in proportion.
        patterned: share of the backgrounds that have two colours.
        wording: "any" caption, or a "full" one that names the background, or the object's "name" alone, as a label; a
            "plain" one, as `wordings.plain` words it, or a "varied" one, of which a fifth do not name the background.
        mirrored: share of pairs that are worded from the right or lower object.
        lookalike_groups: each run of four indices holds a scene and its three `lookalikes`.
    """

    def __init__(
        self,
        size: int = 64,
        seed: int = 0,
        *,
        names: Sequence[str] | None = None,
        snap: int = 1,
        jitter: int = BACKGROUND_JITTER,
        shares: Sequence[float] = LAYOUT_SHARES,
        patterned: float = 0.0,
        wording: Wording = "any",
        mirrored: float = 0.5,
        lookalike_groups: bool = False,
    ) -> None:
        if len(shares) != len(LAYOUTS) or not all(share >= 0 for share in shares) or not 0 < sum(shares) < np.inf:
            raise ValueError(f"shares: must be one for each of {', '.join(LAYOUTS)}, 0 or more, not {list(shares)}")
        for argument, value in (("mirrored", mirrored), ("patterned", patterned)):
            if not 0 <= value <= 1:
                raise ValueError(f"{argument}: must be within 0 ... 1, not {value}")
        self.patterned = patterned
        self.size, self.seed, self.snap, self.jitter, self.shares = size, seed, snap, jitter, shares
        self.names = list(objects() if names is None else names)
        if unknown := [name for name in self.names if name not in all_objects()]:
            raise ValueError(f"objects: {unknown[0]!r} is not in the vocabulary")
        if not self.names:
            raise ValueError("objects: must not be empty")
        self.wording, self.mirrored, self.lookalike_groups = wording, mirrored, lookalike_groups
        if wording not in get_args(Wording):
            raise ValueError(f"wording: must be one of {', '.join(get_args(Wording))}, not {wording!r}")
        if wording == "name" and any(shares[2:]):
            raise ValueError(f"wording: name is of one object, and shares {list(shares)} ask for pairs too")

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        scene, words, rng = self._draw(index)
        return render(scene, self.size, rng, snap=self.snap, jitter=self.jitter), words

    def caption(self, index: int) -> str:
        """The caption alone, without the work of drawing the picture."""
        return self._draw(index)[1]

    def wordings(self, index: int) -> tuple[str, str]:
        """A varied caption of what is in picture `index`, and the plain one that says the same."""
        scene, rng = self._scene(index)
        bare = bool(rng.random() < BARE)
        return varied(scene, rng, bare=bare), plain(scene, bare=bare)

    def _draw(self, index: int) -> tuple[Scene, str, np.random.Generator]:
        scene, rng = self._scene(index)
        match self.wording:
            case "name":
                words = scene.objects[0]
            case "plain":
                words = plain(scene, bare=bool(rng.random() < BARE))
            case "varied":
                words = varied(scene, rng, bare=bool(rng.random() < BARE))
            case _:
                words = caption(scene, rng, full=self.wording == "full", mirrored=self.mirrored)
        return scene, words, rng

    def _scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        rng = np.random.default_rng((self.seed, index))
        if not self.lookalike_groups:
            return draw_scene(rng, self.names, shares=self.shares, patterned=self.patterned), rng
        group_rng = np.random.default_rng((self.seed, index // 4, 4))
        scene = draw_scene(group_rng, self.names, shares=self.shares, patterned=self.patterned)
        return [scene, *lookalikes(scene, group_rng, self.names)][index % 4], rng


class LabelMaps:
    """Scenes with a map in place of a caption: `maps[index]` is (RGB picture, (h,w) int64 label numbers).

    Args:
        scenes: to draw from.
        f: pixels of the picture, a side, for each place of the map; the middle one decides.

    Attributes:
        names: those of the objects.
        labels: the names, and behind them the backgrounds.
    """

    def __init__(self, scenes: Scenes, f: int) -> None:
        if scenes.patterned:
            raise ValueError("patterned: a map has one label for a background, and some of these have two colours")
        self.scenes, self.f, self.names = scenes, f, scenes.names
        self.labels = (*scenes.names, *(f"{colour} background" for colour in BACKGROUNDS))

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene, _, rng = self.scenes._draw(index)
        return self.drawn(scene, rng)

    def drawn(self, scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
        """One true picture of the scene, and its map."""
        scenes = self.scenes
        picture, layers = _render(scene, scenes.size, rng, scenes.snap, scenes.jitter)
        pixels = Image.new("I", picture.size, self.labels.index(f"{scene.background} background"))
        for name, (thing, place) in zip(scene.objects, layers, strict=True):
            covered = thing.getchannel("A").point(lambda alpha: 255 * (alpha >= 128))
            pixels.paste(self.labels.index(name), (*place, place[0] + thing.width, place[1] + thing.height), covered)
        middle = self.f // 2
        return picture, np.asarray(pixels)[middle :: self.f, middle :: self.f].astype(np.int64)
