"""Does a model that was trained on labels draw what they say? Judged on emoji scenes by matching."""

from __future__ import annotations

import numpy as np

from paella.data.scene import BACKGROUNDS, Layout, Scene, draw_scene, unseen
from paella.data.scenes import LabelMaps, Scenes
from paella.evaluate.matching import Matcher, background_colour
from paella.evaluate.scenes import Rate, object_ranks, share
from paella.images import to_tensor
from paella.labels import Labels
from paella.pipeline import Paella

LABELS = 1004  # last word of the random seeds


def evaluate_labels(pipeline: Paella, n: int, seed: int = 0, *, snap: int = 1) -> dict[str, Rate]:
    """How often `n` pictures show what was asked for; all objects of the model compete in every decision.

    A model of one label for each picture is asked for its labels in turn; one of maps, for the maps of single objects
    and of held-out pairs, their sizes and places in multiples of `snap` pixels.

    Raises:
        ValueError: the model has no labels, or others than emoji scenes have.
    """
    labels = pipeline.clip
    if not isinstance(labels, Labels):
        raise ValueError("model: has a CLIP and no labels; use paella evaluate scenes")
    backgrounds = {f"{colour} background" for colour in BACKGROUNDS}
    names = [name for name in labels.config.names if name not in backgrounds]
    try:
        scenes = Scenes(pipeline.size, seed, names=names, snap=snap, jitter=0)
    except ValueError as error:
        raise ValueError(f"model: its labels are not those of emoji scenes ({error})") from error
    return by_place(pipeline, labels, scenes, n) if labels.config.per_place else by_picture(pipeline, scenes, n)


def by_picture(pipeline: Paella, scenes: Scenes, n: int) -> dict[str, Rate]:
    asked = [scenes.names[i % len(scenes.names)] for i in range(n)]
    wanted = [Scene((name,), "white", "single") for name in asked]
    pictures = to_tensor(pipeline.generate(asked, seed=scenes.seed))
    hits = object_ranks(Matcher(scenes.names, scenes.size), pictures, wanted, "single")[0] == 0
    return {"the object of the label": share(hits[:, 0])}


def by_place(pipeline: Paella, labels: Labels, scenes: Scenes, n: int) -> dict[str, Rate]:
    maps = LabelMaps(scenes, pipeline.vqgan.config.f)
    matcher, rates = Matcher(scenes.names, scenes.size), {}
    layouts: list[Layout] = ["single", "horizontal", "vertical"]
    told = []
    for layout in layouts:
        rng = np.random.default_rng((scenes.seed, len(layout), LABELS))
        wanted = [draw_scene(rng, scenes.names, layouts=[layout], accept=unseen) for _ in range(n)]
        pictures = [
            picture
            for index, scene in enumerate(wanted)
            for picture in pipeline.compose(
                labels.regions(maps.drawn(scene, rng)[1], maps.f), softness=0, seed=scenes.seed + index
            )
        ]
        pixels = to_tensor(pictures)
        hits = object_ranks(matcher, pixels, wanted, layout)[0] == 0
        rates[f"{layout}: every object where the map has it"] = share(hits.all(1))
        told += [colour == scene.background for colour, scene in zip(background_colour(pixels), wanted, strict=True)]
    rates["background"] = share(told)
    return rates
