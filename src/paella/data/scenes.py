"""Emoji scenes: an endless text-picture data set that anyone can rebuild offline.

One or two objects, rendered from the vendored Noto Color Emoji font, on a plain background; the caption says what is
there. A scene is drawn in three steps, each a function: `draw_scene` (what is there), `render` (the picture) and
`caption` (the words). Everything is a function of a seed and an index, so any sample can be drawn again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from itertools import permutations
from typing import Literal, get_args

import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
BACKGROUND_JITTER = 12  # each channel, either way

Layout = Literal["single", "small", "horizontal", "vertical"]
LAYOUTS: tuple[Layout, ...] = ("single", "small", "horizontal", "vertical")
Wording = Literal["any", "full", "name"]
LAYOUT_SHARES = (0.4, 0.15, 0.225, 0.225)
# the longer side of an object, as a share of the picture's side
OBJECT_SIZES: dict[Layout, tuple[float, float]] = {
    "single": (0.65, 0.85),
    "small": (0.30, 0.45),
    "horizontal": (0.38, 0.48),
    "vertical": (0.38, 0.48),
}
OFF_CENTRE = 0.06  # how far a centred object strays, as a share of the picture's side

TRIES = 10_000  # of a scene that is accepted: a tenth of all pairs are held out, or all of a few objects' pairs

FONT_SIZE = 109  # the one size of the font's bitmaps


@dataclass(frozen=True)
class Scene:
    """What a picture shows. A pair of objects is ordered (left or upper, right or lower), whatever the wording."""

    objects: tuple[str, ...]
    background: str
    layout: Layout


def _read_names(file: str) -> dict[str, str]:
    names = resources.files("paella.data").joinpath(file).read_text(encoding="utf-8").split("\n")
    return {name: emoji.emojize(f":{name.replace(' ', '_')}:") for name in names if name}


@cache
def objects() -> dict[str, str]:
    """Name as used in captions -> emoji character, for exactly the objects of the built-in model."""
    return _read_names("objects.txt")


@cache
def all_objects() -> dict[str, str]:
    """Name as used in captions -> emoji character, for the full vocabulary (more than 1,000 objects)."""
    return _read_names("all_objects.txt")


def held_out(scene: Scene) -> bool:
    """Whether the scene is a pair kept for evaluation: a tenth of all ordered pairs, by a hash of their names."""
    return len(scene.objects) == 2 and int(hashlib.sha1("|".join(scene.objects).encode()).hexdigest(), 16) % 10 == 0


def any_held_out(names: Sequence[str]) -> bool:
    """Whether a pair of these objects is kept for evaluation."""
    return any(held_out(Scene(pair, "white", "horizontal")) for pair in permutations(names, 2))


def draw_scene(
    rng: np.random.Generator,
    names: Sequence[str],
    *,
    layouts: Sequence[Layout] = LAYOUTS,
    shares: Sequence[float] = LAYOUT_SHARES,
    accept: Callable[[Scene], bool] = lambda scene: not held_out(scene),
) -> Scene:
    """One random scene over `names` that `accept` takes: by default, one that training may see.

    Args:
        layouts: those to draw from.
        shares: how often each of `LAYOUTS` is drawn, in proportion; of a scene that is not accepted, only the objects
            and the background are drawn again.

    Raises:
        ValueError: there is no such scene over `names`.
    """
    weights = np.array([shares[LAYOUTS.index(layout)] for layout in layouts])
    layout = layouts[rng.choice(len(layouts), p=weights / weights.sum())]
    count = 2 if layout in ("horizontal", "vertical") else 1
    if count > len(names):
        raise ValueError(f"objects: a pair needs two, and there is only {len(names)}")
    for _ in range(TRIES):
        chosen = rng.choice(len(names), size=count, replace=False)
        scene = Scene(tuple(names[i] for i in chosen), list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], layout)
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
    strayed = rng.integers(-jitter, jitter + 1, size=3)
    colour = np.clip(np.array(BACKGROUNDS[scene.background]) + strayed, 0, 255)
    picture = Image.new("RGB", (size, size), tuple(int(channel) for channel in colour))
    layers = _arranged(scene, size, rng, snap)
    for thing, place in layers:
        picture.paste(thing, place, thing)
    return picture, layers


def _arranged(scene: Scene, size: int, rng: np.random.Generator, snap: int) -> list[Layer]:
    """Size and place of each object, as the scene's layout allows."""
    half = size // 2
    rooms = {  # left, top, width and height of the room that each object has
        "single": [(0, 0, size, size)],
        "small": [(0, 0, size, size)],
        "horizontal": [(0, 0, half, size), (half, 0, size - half, size)],
        "vertical": [(0, 0, size, half), (0, half, size, size - half)],
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


def _snapped(value: float, step: int, low: float, high: float) -> float:
    """The multiple of `step` nearest to `value` within low ... high; where there is none, of half the step, ..."""
    while step > 1:
        first, last = int(np.ceil(low / step)) * step, int(high // step) * step
        if first <= last:
            return min(max(round(value / step) * step, first), last)
        step //= 2
    return min(max(round(value), int(np.ceil(low))), int(high))


def article(name: str) -> str:
    """The name with its article: "an" before a vowel letter, whatever its sound."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def captions(scene: Scene) -> list[str]:
    """Every wording that describes the scene, the full ones first."""
    things = [article(name) for name in scene.objects]
    where = f"on {article(scene.background)} background"
    match scene.layout:
        case "single":
            return [f"{things[0]} {where}", things[0], scene.objects[0]]
        case "small":
            return [f"a small {scene.objects[0]} {where}"]
        case "horizontal":
            return [
                f"{things[0]} to the left of {things[1]} {where}",
                f"{things[1]} to the right of {things[0]} {where}",
            ]
        case "vertical":
            return [f"{things[0]} above {things[1]} {where}", f"{things[1]} below {things[0]} {where}"]


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False, mirrored: float = 0.5) -> str:
    """One wording at random.

    Args:
        full: leave out the short forms, which do not name the background.
        mirrored: how often a pair is worded from its right or lower object ("to the right of", "below").
    """
    wordings = [words for words in captions(scene) if not full or "background" in words]
    if len(scene.objects) == 2:
        return wordings[rng.choice(2, p=(1 - mirrored, mirrored))]
    if len(wordings) > 1:  # short forms are the exception
        return wordings[rng.choice(len(wordings), p=(0.8, 0.1, 0.1))]
    return wordings[0]


def lookalikes(scene: Scene, rng: np.random.Generator, names: Sequence[str]) -> list[Scene]:
    """Three scenes that differ from this one in one respect each: hard negatives for contrastive training.

    Of a pair, one has another object in one of the two places: without it, who stands where need only be known well
    enough to tell a pair from its mirror image.

    None of them is held out: a variant that would be is replaced by a random scene.
    """
    other_background = replace(scene, background=_other(rng, list(BACKGROUNDS), scene.background))
    if len(scene.objects) == 2:
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
        scene = draw_scene(rng, names, layouts=layouts, accept=lambda scene: len(scene.objects) == 1 or held_out(scene))
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
        wording: "any" caption, or a "full" one that names the background, or the object's "name" alone, as a label.
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
        wording: Wording = "any",
        mirrored: float = 0.5,
        lookalike_groups: bool = False,
    ) -> None:
        if len(shares) != len(LAYOUTS) or not all(share >= 0 for share in shares) or not 0 < sum(shares) < np.inf:
            raise ValueError(f"shares: must be one for each of {', '.join(LAYOUTS)}, 0 or more, not {list(shares)}")
        if not 0 <= mirrored <= 1:
            raise ValueError(f"mirrored: must be within 0 ... 1, not {mirrored}")
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

    def _draw(self, index: int) -> tuple[Scene, str, np.random.Generator]:
        rng = np.random.default_rng((self.seed, index))
        if self.lookalike_groups:
            group_rng = np.random.default_rng((self.seed, index // 4, 4))
            scene = draw_scene(group_rng, self.names, shares=self.shares)
            scene = [scene, *lookalikes(scene, group_rng, self.names)][index % 4]
        else:
            scene = draw_scene(rng, self.names, shares=self.shares)
        if self.wording == "name":
            return scene, scene.objects[0], rng
        return scene, caption(scene, rng, full=self.wording == "full", mirrored=self.mirrored), rng


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
