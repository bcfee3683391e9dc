"""`paella import-checkpoint`: the authors' published weights become a model folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from paella.cli.files import check_writable


class DType(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def import_checkpoint(
    predictor: Annotated[
        Path, typer.Option(help="The token predictor's weights: .safetensors, .pt or .ckpt.", metavar="FILE")
    ],
    vqgan: Annotated[
        Path, typer.Option(help="The VQGAN's weights, in the keys of taming-transformers.", metavar="FILE")
    ],
    clip: Annotated[
        str,
        typer.Option(
            help="The CLIP that the predictor was trained with: a folder in transformers' format, or a hub id.",
            metavar="CLIP",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write, with all three in it.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file with the sizes of both networks, in the published code's names. Default: those of the "
            "published first model.",
            metavar="FILE",
        ),
    ] = None,
    dtype: Annotated[
        DType, typer.Option(help="How the weights are stored. float32 keeps them exactly, the others take half of it.")
    ] = DType.float32,
    name: Annotated[str, typer.Option(help="The model's name, for the metadata of its pictures.")] = "paella-v1",
) -> None:
    """Makes a model folder of the published model's weights, for all other commands (--model) and for Python.

    Its default settings are those of the published model; model.json holds them. No code in a checkpoint is run.
    """
    check_writable(output, folder=True)
    if (output / "model.json").exists():
        raise ValueError(f"output: {output} holds a model already; give a new folder")
    import torch

    from paella import official
    from paella.checkpoint import about_argument, read_json
    from paella.pipeline import Paella

    with about_argument("config"):
        configs = official.V1 if config is None else read_json(config)
    parts = official.load_model(predictor, vqgan, clip, configs)
    for module in (parts["predictor"], parts["vqgan"], parts["clip"].model):  # here, as saving would hold both kinds
        module.to(getattr(torch, dtype))
    Paella(**parts, name=name).save_pretrained(output)
    count = sum(parameter.numel() for parameter in parts["predictor"].parameters())
    typer.echo(f"{output}: {name}, a predictor of {count / 1e6:.1f} M parameters with its VQGAN and CLIP, in {dtype}")
