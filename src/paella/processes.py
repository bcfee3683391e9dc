"""What the processes of one run, as `torchrun` or `accelerate launch` starts them, tell each other. Gradients are not
here: Accelerate averages them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's number, and how many there are. On GPUs, each process has its own from then on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1  # and accelerate need not be there
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    return state.process_index, state.num_processes


def gathered(own: T) -> list[T]:
    """What every process has, in their order; waits for all of them."""
    if place() == (0, 1):
        return [own]
    from accelerate.utils import gather_object

    return gather_object([own])


def of_all(own: Tensor) -> Tensor:
    """The rows (P·B,...) of all P processes, in their order, for a loss over all of them that each process computes.

    A gradient reaches this process's rows (B,...) alone, times P: the mean over the processes is that of the loss.
    """
    number, processes = place()
    if processes == 1:
        return own
    from accelerate.utils import gather

    parts = list(gather(own.detach()).chunk(processes))
    parts[number] = parts[number] + processes * (own - own.detach())
    return torch.cat(parts)


def mean_of_all(own: Tensor) -> Tensor:
    """The mean of a tensor over the processes, without a gradient."""
    if place() == (0, 1):
        return own.detach()
    from accelerate.utils import reduce

    mean: Tensor = reduce(own.detach(), "mean")
    return mean


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Gives each tensor its mean over the processes, in place."""
    means = mean_of_all(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, mean in zip(tensors, means.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
