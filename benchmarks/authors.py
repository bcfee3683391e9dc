"""The authors' published code, from a checkout of their repository at a commit of the first model (such as 946939c)."""

from __future__ import annotations

import argparse
import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paella.unet import UNetConfig

SIZES = ("num_labels", "c_hidden", "c_clip", "c_r", "down_levels", "up_levels")


def option(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--official", type=Path, required=required, help="a checkout of the authors' repository, at the first model"
    )


def network(parser: argparse.ArgumentParser, checkout: Path) -> Callable[..., Any]:
    """Their class of the predictor; without it, the parser's error."""
    found = runpy.run_path(str(_file(parser, checkout, "modules.py"))).get("DenoiseUNet")
    if found is None:
        parser.error(f"--official: {checkout} is not of the first model; check out such a commit, as 946939c")
    return found


def sizes(config: UNetConfig) -> dict[str, Any]:
    """What their class is made with; ours has options beside these."""
    return {name: getattr(config, name) for name in SIZES}


def sampler(parser: argparse.ArgumentParser, checkout: Path) -> Callable[..., Any]:
    """Their `sample`, taken out of its file with the functions beside it: the file imports packages that these do not
    need."""
    file = _file(parser, checkout, "utils.py")
    functions = [part for part in ast.parse(file.read_text()).body if isinstance(part, ast.FunctionDef)]
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(functions, type_ignores=[]), str(file), "exec"), names)
    if "sample" not in names:
        parser.error(
            f"--official: {file} has no function sample; check out a commit of the first model, such as 946939c"
        )
    return names["sample"]


def _file(parser: argparse.ArgumentParser, checkout: Path, name: str) -> Path:
    if not (file := checkout / name).is_file():
        parser.error(f"--official: there is no {file}; check out a commit of the first model, such as 946939c")
    return file
