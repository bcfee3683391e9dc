"""The paper's experiments at a scale that runs here, one file for each: `paella experiment NAME`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paella.experiments.experiment import Experiment

NAMES = ("kernels", "steps", "guidance", "ablation", "maskgit", "sweep", "batch")


def load(name: str) -> Experiment:
    """The experiment of that name: `EXPERIMENT` in the module of that name."""
    return import_module(f"paella.experiments.{name}").EXPERIMENT
