"""What a scene of emoji shows: one to four objects, where they stand, and the background. No picture is drawn here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, get_args

import numpy as np

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

Layout = Literal["single", "small", "horizontal", "vertical", "count"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
LAYOUT_SHARES = (0.4, 0.15, 0.225, 0.225, 0.0)
COUNTS = (2, 3, 4)  # how many there may be of one object
TRIES = 10_000  # of a scene that is accepted: a tenth of all pairs are held out, or all of a few objects' pairs


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


def colours(background: str) -> tuple[str, ...]:
    """The names of a background's colours: one, or two of left and right, or of top and bottom."""
    return tuple(background.removesuffix(" gradient").replace(" to ", " and ").split(" and "))


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
    """One of the choices that is none of these.

    Raises:
        ValueError: there is no other.
    """
    rest = [choice for choice in choices if choice not in these]
    if not rest:
        raise ValueError(f"objects: there must be more than {len(choices)}: none is left beside {' and '.join(these)}")
    return rest[rng.integers(len(rest))]
