"""`paella train`: runs a recipe."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from paella.cli.errors import warn
from paella.cli.files import check_writable
from paella.cli.options import Overrides


class StageName(StrEnum):
    vqgan = "vqgan"
    clip = "clip"
    wordings = "wordings"
    predictor = "predictor"
    labels = "labels"


RECIPES = {
    StageName.vqgan: "VQGANRecipe",
    StageName.clip: "ClipRecipe",
    StageName.wordings: "WordingsRecipe",
    StageName.predictor: "PredictorRecipe",
    StageName.labels: "LabelRecipe",
}


def train(
    stage: Annotated[
        StageName,
        typer.Argument(
            help="Which part of a model to train. wordings: other words for CLIP. The predictor comes last; "
            "labels: one without CLIP."
        ),
    ],
    recipe: Annotated[str, typer.Argument(help="A YAML file, such as recipes/vqgan.yaml.")],
    overrides: Overrides = None,
) -> None:
    """Trains one part of a model, as a recipe says.

    The folder that the recipe names as its output gets the checkpoint, metrics, previews and the finished model. A run
    that was interrupted (Ctrl-C) goes on when the same command is given again.
    """
    from paella.train.loop import CHECKPOINT
    from paella.train.recipe import Recipe, load_recipe

    module = import_module(f"paella.train.{stage}")
    settings: Recipe = load_recipe(getattr(module, RECIPES[stage]), recipe, overrides or [])
    output = Path(settings.output)
    check_writable(output, folder=True)
    before = _written(output / CHECKPOINT)
    try:
        module.main(settings)
    except KeyboardInterrupt:
        if (output / CHECKPOINT).exists():
            warn(f"interrupted; {output / CHECKPOINT} is written, and the same command goes on from there")
        else:
            warn("interrupted before the first step; nothing is written")
        raise typer.Exit(130) from None
    if before is not None and _written(output / CHECKPOINT) == before:
        typer.echo(f"{output / 'model'}: was trained for {settings.steps} steps or more before; nothing was left to do")
    else:
        typer.echo(f"{output / 'model'}: trained for {settings.steps} steps")


def _written(path: Path) -> int | None:
    """When the file was last written, if ever. A run that does a step writes its checkpoint at the end."""
    return path.stat().st_mtime_ns if path.exists() else None
