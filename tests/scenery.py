"""Scenes for tests, and where their objects are."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from paella.data import render as rendering
from paella.data.scene import BACKGROUNDS, Layout, Scene, draw_scene
from paella.data.vocabulary import objects

NAMES = list(objects())


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def object_masks(scene: Scene, size: int, seed: int, snap: int = 1) -> list[np.ndarray]:
    """Where each object of the scene is: (size, size) bool, by its difference from the plain background.

    Drawn before two backgrounds, for an object may have the colour of one, and with the other object of a pair
    invisible.
    """
    real, masks = rendering.scaled_sprite, []
    for seen in scene.objects:

        def only_seen(name: str, longer_side: int, seen: str = seen) -> Image.Image:
            thing = real(name, longer_side)
            return thing if name == seen else Image.new("RGBA", thing.size)

        mask = np.zeros((size, size), bool)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rendering, "scaled_sprite", only_seen)
            for background in ("white", "black"):
                plain = replace(scene, background=background)
                picture = rendering.render(plain, size, generator(seed), snap=snap, jitter=0)
                mask |= (np.abs(np.asarray(picture, int) - BACKGROUNDS[background]) > 3).any(axis=2)
        masks.append(mask)
    return masks


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def some_scenes(layout: Layout, count: int, seed: int = 0) -> list[Scene]:
    rng = generator(seed)
    return [draw_scene(rng, NAMES, layouts=[layout]) for _ in range(count)]
