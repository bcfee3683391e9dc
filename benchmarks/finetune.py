"""Does a model learn a new object from 50 pictures, and keep what it knew?

    python benchmarks/finetune.py

Draws the pictures, trains by recipes/finetune.yaml, and asks the model before and after: for the new object, and for
held-out emoji scenes of its own, several of one object among them. Tokenizer and CLIP stay as they are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from paella import Paella
from paella.cli.info import machine
from paella.data.scene import draw_scene
from paella.data.scenes import Scenes
from paella.data.vocabulary import all_objects
from paella.data.wordings import told
from paella.evaluate.counts import evaluate_counts
from paella.evaluate.scenes import KINDS, Rate, held_out_prompts, score_scenes
from paella.train.loop import CHECKPOINT
from paella.train.predictor import PredictorRecipe, main
from paella.train.recipe import load_recipe

PICTURES = 50
RECIPE = Path(__file__).parents[1] / "recipes/finetune.yaml"
ROWS = {
    "single_top1": "old ones, in the middle",
    "small_top1": "old ones, small",
    "pair_both_top1": "old pairs, both",
    "background": "old ones, background",
    "exact": "old ones, as many as asked for",
}


def draw_folder(folder: Path, name: str, size: int) -> None:
    """`PICTURES` pictures of the object in the middle, each with a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = Scenes(size, seed=1, names=[name], shares=(1, 0, 0, 0, 0), wording="plain")  # no two alike
    for index in range(PICTURES):
        picture, words = scenes[index]
        picture.save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(words + "\n", encoding="utf-8")


def asked_for_new(pipeline: Paella, name: str, n: int, seed: int) -> Rate:
    """How often the new object is drawn by its name; it and all that the model knew compete."""
    rng = np.random.default_rng((seed, 50))
    scenes = [draw_scene(rng, [name], layouts=["single"]) for _ in range(n)]
    captions = [told("en", name, scene.background) for scene in scenes]
    names = [*dict.fromkeys([*pipeline.objects, name])]
    return score_scenes(pipeline.generate(captions, seed=seed), scenes, captions, names)["single_top1"]


def asked_for_old(pipeline: Paella, n: int, seed: int) -> dict[str, Rate]:
    """How often held-out scenes of the objects that it knew are drawn right."""
    prompts = [prompt for kind in KINDS for prompt in held_out_prompts(n, kind, seed, pipeline.objects)]
    scenes, captions = [scene for scene, _ in prompts], [words for _, words in prompts]
    rates = score_scenes(pipeline.generate(captions, seed=seed), scenes, captions, pipeline.objects)
    return rates | evaluate_counts(pipeline, n, seed, names=pipeline.objects, snap=8)["generated"]


def run(name: str, model: str | None, output: Path, n: int, overrides: list[str]) -> str:
    """The table."""
    before = Paella.from_pretrained(model)
    if name in before.objects or name not in all_objects():
        raise SystemExit(f"object: must be in the vocabulary, and new to the model; not {name!r}")
    output /= name.replace(" ", "-")
    if (output / CHECKPOINT).exists():
        raise SystemExit(f"output: {output} holds a run already; remove it, or name another folder")
    folder = output / "pictures"
    draw_folder(folder, name, before.size)
    parts = [f"{part}={model or 'builtin'}" for part in ("init_from", "vqgan", "clip")]
    settings: Any = load_recipe(
        PredictorRecipe,
        RECIPE,
        [*parts, f"data.folder={folder}", f"data.size={before.size}", f"output={output}", *overrides],
    )
    started = time.perf_counter()
    main(settings)
    seconds = time.perf_counter() - started
    after = Paella.from_pretrained(output / "model")
    columns = [{"new": asked_for_new(it, name, n, 0), **asked_for_old(it, n, 0)} for it in (before, after)]
    lines = [
        f"{PICTURES} pictures of a new object, {name}: {settings.steps} steps of {settings.batch_size} in"
        f" {seconds:.0f} s; {n} prompts of each kind. {'; '.join(machine().values())}.",
        "",
        "| named right, % | before | after |",
        "|---|---|---|",
    ]
    for row, meaning in {"new": "the new object, in the middle", **ROWS}.items():
        cells = (
            f"{100 * it[row]['rate']:.1f} ({100 * it[row]['low']:.1f}–{100 * it[row]['high']:.1f})" for it in columns
        )
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--object", default="violin", help="its name")
    parser.add_argument("--model", help="a model folder; default: the built-in model")
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-check"))
    parser.add_argument("-n", type=int, default=200, help="prompts of each kind")
    parser.add_argument("overrides", nargs="*", help="key=value, of the recipe")
    given = parser.parse_args()
    print(run(given.object, given.model, given.output, given.n, given.overrides))
