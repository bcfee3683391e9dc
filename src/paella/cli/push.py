"""`paella push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[str, typer.Argument(help="A model folder.")],
    repo_id: Annotated[str, typer.Argument(help="The repository, like owner/name; it is made where there is none.")],
    results: Annotated[
        Path | None,
        typer.Option(help="A Markdown file of what was measured, such as the report.md of paella evaluate."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="For nobody else to see, where the repository is new.")
    ] = False,
) -> None:
    """Uploads a model to the Hugging Face hub, with a model card written from its recipe and its results.

    The files go up as they are. Others load the model by its name: --model owner/name. Log in first: hf auth login.
    """
    from paella.checkpoint import load_model, model_folder
    from paella.hub import push as push_folder
    from paella.pipeline import Paella

    try:
        text = "" if results is None else results.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"results: cannot read {results}: {getattr(error, 'strerror', 'it is not UTF-8 text')}"
        ) from error
    folder = model_folder(model)
    pipeline = Paella(**load_model(folder))
    typer.echo(push_folder(pipeline, folder, repo_id, results=text, private=private or None))
