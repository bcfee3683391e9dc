"""`paella dataset`: a look at what a model learns from, and its tokens and embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paella.cli.errors import Command, warn
from paella.cli.files import check_writable, write_picture
from paella.cli.options import Overrides, Seed
from paella.cli.progress import counting

app = typer.Typer(name="dataset", help="Look at training data, or encode it.", rich_markup_mode="markdown")


@app.callback()
def _root() -> None:
    pass


@app.command(cls=Command)
def preview(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="A folder of your own pictures, each with a .txt or a line in captions.jsonl. Default: emoji scenes."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The contact sheet, a .png file.")] = Path("sheet.png"),
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures on the sheet.", min=1)] = 32,
    size: Annotated[int, typer.Option(help="Pixels, a side of each picture.", min=8)] = 64,
    seed: Seed = 0,
    snap: Annotated[int, typer.Option(help="Scenes: as data.snap of a recipe.", min=1)] = 1,
    jitter: Annotated[int, typer.Option(help="Scenes: as data.jitter of a recipe.", min=0)] = 12,
) -> None:
    """Writes a contact sheet with captions: of emoji scenes, or of a folder, whose unusable files it names."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"output: must be a .png file, not {output}")
    check_writable(output)
    from paella.data.folder import Folder
    from paella.data.scenes import Scenes
    from paella.images import contact_sheet

    data: Folder | Scenes
    if folder is None:
        data, length = Scenes(size, seed, snap=snap, jitter=jitter), number
    else:
        try:
            data = Folder(folder, size)
        except ValueError as error:
            raise ValueError(f"folder: {error}") from error
        length = len(data)
        typer.echo(f"{folder}: {length} with a caption, {len(data.skipped)} skipped")
        for name, reason in data.skipped:
            typer.echo(f"  {name}: {reason}")
    pictures, captions = zip(*(data[index] for index in range(min(number, length))), strict=True)
    write_picture(contact_sheet(pictures, captions), output)
    typer.echo(f"{output}: a contact sheet of {len(pictures)}")


@app.command(cls=Command)
def encode(
    recipe: Annotated[
        str, typer.Argument(help="A predictor's YAML file. It says which data, which VQGAN and which CLIP.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write, for `data.encoded`.")],
    overrides: Overrides = None,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="Scenes to draw; of a folder, all pictures are encoded.")
    ] = None,
) -> None:
    """Turns pictures and captions into tokens and embeddings, so that `paella train predictor RECIPE
    data.encoded=FOLDER` has only the predictor to compute.

    What was interrupted (Ctrl-C) goes on when the same command is given again.
    """
    from paella.train import encode as encoder
    from paella.train.predictor import PredictorRecipe
    from paella.train.recipe import load_recipe

    settings = load_recipe(PredictorRecipe, recipe, overrides or [])
    check_writable(output, folder=True)
    try:
        with counting("encoding") as progress:
            pictures = encoder.encode(settings, output, number, progress)
    except KeyboardInterrupt:
        warn(f"interrupted; the same command goes on from what {output} holds")
        raise typer.Exit(130) from None
    typer.echo(f"{output}: {pictures} encoded pictures")
