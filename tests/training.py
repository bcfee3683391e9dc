"""Runs and stages of the training tests: models so tiny that they train in seconds."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch.optim import AdamW

from paella.data import collate
from paella.train.loop import Stage
from paella.train.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parent.parent / "recipes"
SCHEMAS = {"vqgan": "VQGANRecipe", "clip": "ClipRecipe", "predictor": "PredictorRecipe", "labels": "LabelRecipe"}
SCHEMAS["wordings"] = "WordingsRecipe"
STAGES = {"vqgan": "VQGANStage", "clip": "ClipStage", "predictor": "PredictorStage", "labels": "LabelStage"}
STAGES["wordings"] = "WordingsStage"
TINY = {
    "vqgan": "ch=32 ch_mult=[1,1] num_res_blocks=1 attn_levels=[] mid_attention=false z_channels=8 embed_dim=4 "
    "n_embed=16 patch=2",
    "clip": "dim=16 width=16 heads=2 text_layers=1 vision_layers=1 vocabulary=300",
    "predictor": "c_hidden=32 c_r=8 down_levels=[1,1] up_levels=[1,1]",
    "labels": "c_hidden=32 c_r=8 down_levels=[1,1] up_levels=[1,1]",
    "wordings": "",
}


def schema(kind: str) -> type[Recipe]:
    return getattr(import_module(f"paella.train.{kind}"), SCHEMAS[kind])


def settings(kind: str, model: Path, output: Path, *more: str) -> list[str]:
    """The overrides of a tiny run; a predictor takes its VQGAN and CLIP from `model`."""
    own = [f"model.{entry}" for entry in TINY[kind].split()]
    if kind == "clip":
        own += ["tokenizer_captions=50"]
    if kind == "wordings":
        own += [f"init_from={model}"]
    if kind == "predictor":
        own += [f"vqgan={model}", f"clip={model}", "sampler.steps=2"]
    if kind == "labels":
        own += [f"vqgan={model}", "sampler.steps=2", "per_place=true"]
    return [*own, f"output={output}", "batch_size=4", "log_every=1", "preview_every=1000", "data.size=16", *more]


def make_stage(kind: str, model: Path, *more: str) -> Stage:
    recipe: Any = load_recipe(schema(kind), None, settings(kind, model, Path("unused"), *more))
    return getattr(import_module(f"paella.train.{kind}"), STAGES[kind])(recipe)


def train(kind: str, model: Path, output: Path, *more: str) -> Path:
    """A run as `paella train` makes it."""
    module = import_module(f"paella.train.{kind}")
    return module.main(load_recipe(schema(kind), None, settings(kind, model, output, *more)))


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_overfits(stage: Any) -> None:
    """A predictor that is shown four samples again and again knows them by heart."""
    pixels, captions = collate([stage.data[i] for i in range(4)])
    latent = stage.vqgan.latent(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    stage.vqgan.quantize.embedding.weight.copy_(latent[::2])  # untrained codes would leave all but a few unused
    assert len(stage.vqgan.encode(pixels).unique()) > 16
    optimizer = AdamW(stage.modules["predictor"].parameters(), 5e-3)
    losses = []
    for step in range(150):
        ((_, loss, metrics),) = stage.losses(pixels, captions, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), float(metrics["accuracy"])))
    assert losses[0][0] > 2
    loss, accuracy = np.mean(losses[-20:], axis=0)
    assert loss < 0.3
    assert accuracy > 0.9
