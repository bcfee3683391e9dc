"""Emoji scenes: an endless text-picture data set that anyone can rebuild offline.

A sample is drawn in three steps, each a function: `scene.draw_scene` (what is there), `render.render` (the picture) and
a wording (`paella.data.wordings`). Everything is a function of a seed and an index, so any sample can be drawn again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from PIL import Image

from paella.data.render import BACKGROUND_JITTER, render, render_layers
from paella.data.scene import (
    BACKGROUNDS,
    LAYOUT_SHARES,
    LAYOUTS,
    Scene,
    any_held_out,
    draw_scene,
    lookalikes,
    unseen,
)
from paella.data.vocabulary import all_objects, objects
from paella.data.wordings import caption, plain, varied

__all__ = ["BARE", "LabelMaps", "Scenes", "Wording", "all_objects", "hard_scenes", "objects"]

Wording = Literal["any", "full", "name", "plain", "varied"]
BARE = 0.2  # share of the plain and varied captions that do not name the background


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
            raise ValueError(f"wording: name is of one object, and shares {list(shares)} ask for several too")

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
            raise ValueError("data.patterned: a map has one label for a background, and some of these have two colours")
        self.scenes, self.f, self.names = scenes, f, scenes.names
        self.labels = (*scenes.names, *(f"{colour} background" for colour in BACKGROUNDS))

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene, _, rng = self.scenes._draw(index)
        return self.drawn(scene, rng)

    def drawn(self, scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
        """One true picture of the scene, and its map."""
        scenes = self.scenes
        picture, layers = render_layers(scene, scenes.size, rng, scenes.snap, scenes.jitter)
        pixels = Image.new("I", picture.size, self.labels.index(f"{scene.background} background"))
        for name, (thing, place) in zip(scene.objects, layers, strict=True):
            covered = thing.getchannel("A").point(lambda alpha: 255 * (alpha >= 128))
            pixels.paste(self.labels.index(name), (*place, place[0] + thing.width, place[1] + thing.height), covered)
        middle = self.f // 2
        return picture, np.asarray(pixels)[middle :: self.f, middle :: self.f].astype(np.int64)
