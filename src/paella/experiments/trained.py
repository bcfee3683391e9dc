"""Experiments that train: every setting is a small predictor, trained from nothing on the same pictures.

The pictures are emoji scenes of one object in the middle; the tokenizer and CLIP are those of the model at hand. All
settings see the same pictures, in the same order, with the same learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from paella.checkpoint import save_model
from paella.data import open_loader
from paella.data.vocabulary import objects
from paella.evaluate.metrics import bootstrap
from paella.evaluate.parts import figures_of_each
from paella.evaluate.scenes import held_out_prompts, real_pictures
from paella.experiments.experiment import Figures, Tick
from paella.images import to_tensor
from paella.pipeline import Paella
from paella.train.loop import Trainer
from paella.train.predictor import PredictorRecipe, PredictorStage
from paella.train.recipe import load_recipe

OBJECTS = 20  # the first of the model's
JUDGED = 256  # pictures that the trained predictor is judged by
WINDOW = 25  # training steps to a point of a curve
LOSS, ACCURACY = "final loss, nats", "final accuracy, %"
NOTE = "Trained from nothing with one seed, whose variance is in no interval."
RECIPE = {
    "batch_size": 24,
    "ema": 0.99,
    "region_share": 0,
    "data": {"snap": 8, "jitter": 0, "shares": [1, 0, 0, 0, 0]},
    "optimizer": {"learning_rate": 3e-3, "full_rate_inputs": 96, "warmup": 0.03, "final_rate": 0.02},
}


def train_small(
    pipeline: Paella, changes: Mapping[str, Any], steps: int, seed: int, tick: Tick
) -> tuple[Paella, Figures]:
    """A predictor trained for so many steps by `RECIPE` with these changes: the model it makes, and its curves."""
    with TemporaryDirectory() as folder:  # a recipe names the parts that it builds on by the folder of a model
        save_model(pipeline, Path(folder) / "model")
        parts = {"vqgan": f"{folder}/model", "clip": f"{folder}/model", "output": folder, "steps": steps, "seed": seed}
        recipe = load_recipe(PredictorRecipe, None, _overrides({**RECIPE, **parts, **changes}))
        recipe.data.size, recipe.data.objects = pipeline.size, names(pipeline)
        recipe.sampler = pipeline.settings
        stage = PredictorStage(recipe)
    trainer = Trainer(stage, recipe)
    batches = iter(trainer.accelerator.prepare(open_loader(stage.data, recipe.batch_size, recipe.seed)))
    logged: dict[str, list[float]] = {"loss": [], "accuracy": []}
    for step in range(steps):
        (metrics,) = trainer.step(batches, step)
        trainer.check_finite()
        for name, values in logged.items():
            values.append(float(metrics[name]))
        tick(0.95 * (step + 1) / steps)
    with trainer.averaged() as shipped:
        trained = stage.pipeline(deepcopy(shipped)).to(pipeline.device, pipeline.dtype)
    return trained, {
        "training loss, nats": _curve(logged["loss"]),
        "training accuracy, %": _curve([100 * value for value in logged["accuracy"]]),
    }


def names(pipeline: Paella) -> list[str]:
    """The objects that the pictures show."""
    return list(pipeline.objects or objects())[:OBJECTS]


def judge(pipeline: Paella, trained: Paella, seed: int) -> Figures:
    """Loss (of the unsmoothed labels) and accuracy on pictures drawn as in training, at all times t alike.

    The noise is new and the pictures are of other seeds, but of so few objects most occurred in training.
    """
    prompts = held_out_prompts(JUDGED, "single", seed, names(pipeline))
    pictures = real_pictures([scene for scene, _ in prompts], pipeline.size, seed, snap=8, jitter=0)
    _, figures = figures_of_each(trained, to_tensor(pictures).to(trained.device), [words for _, words in prompts], seed)
    counted = ~torch.isnan(figures["loss"])
    return {LOSS: bootstrap(figures["loss"][counted]), ACCURACY: bootstrap(100 * figures["accuracy"][counted])}


def parameters(trained: Paella) -> dict[str, float]:
    """How many the predictor has, in millions: known, so its interval is empty."""
    millions = sum(p.numel() for p in trained.predictor.parameters()) / 1e6
    return {"value": millions, "low": millions, "high": millions}


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Nested settings as a recipe's key=value overrides."""
    lines: list[str] = []
    for key, value in settings.items():
        lines += _overrides(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={value}"]
    return lines


def _curve(values: list[float]) -> dict[str, Any]:
    """The means of every `WINDOW` steps, and the last of them with its interval."""
    parts = [values[at : at + WINDOW] for at in range(0, len(values), WINDOW)]
    points = [[min(WINDOW * (i + 1), len(values)), fmean(part)] for i, part in enumerate(parts)]
    return {**bootstrap(parts[-1]), "curve": points}
