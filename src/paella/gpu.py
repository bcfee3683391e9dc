"""What a GPU is spared: kernels of our own, and the time that a CPU takes to start many small ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from importlib.util import find_spec
from threading import Lock

import torch
from torch import Tensor

from paella.arguments import warn

FEW_PLACES = 8192  # of more places a GPU takes longer for each kernel than a CPU takes to start it
MOST_GRAPHS = 8  # each keeps the memory of its inputs and its output


@cache
def triton_works(gpu: torch.device) -> bool:
    """Whether the kernels of `paella.kernels` can be used there.

    Triton comes with PyTorch's builds for GPUs. To work it needs a C compiler too, and a GPU that is not too old.
    """
    if find_spec("triton") is None:
        return False
    try:
        from paella.kernels import convolved_and_normalized, drawn_typical

        one = torch.ones(1, device=gpu)
        drawn_typical(one[None], 1.0, 1, 1.0, 0 * one)
        pixel = one.view(1, 1, 1, 1)
        convolved_and_normalized(pixel, pixel, one, (one, one, one, one), 1e-6, pixel)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, a driver or a missing file may raise
        warn(f"device: Triton does not work on {gpu}, and pictures take longer: {error}")
        return False
    return True


class Replayed:
    """A function of tensors, whose kernels on a GPU are started together: as a CUDA graph.

    The graph of each size is recorded the second time that the size is met, and is replayed from then on. Calls that
    learn, that are large (`FEW_PLACES`) or not on a GPU go to the function itself.

    Args:
        function: of tensors on one device, the first (B,...,h,w), to a tensor. It must do the same for all tensors of
            these sizes, and must not wait for the GPU.
        weight: one of the parameters that the function has of its own: graphs are of the place where it lies.
    """

    def __init__(self, function: Callable[..., Tensor], weight: Tensor) -> None:
        self.function, self.weight = function, weight
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor] | None] = {}
        self._lock = Lock()

    def __call__(self, *inputs: Tensor) -> Tensor:
        first = inputs[0]
        few = first.shape[0] * first.shape[-2] * first.shape[-1] <= FEW_PLACES
        if first.device.type != "cuda" or torch.is_grad_enabled() or not few:
            return self.function(*inputs)
        sizes = tuple((one.shape, one.stride(), one.dtype) for one in inputs)
        key = (self.weight.data_ptr(), self.weight.dtype, torch.is_autocast_enabled("cuda"), sizes)
        with self._lock:
            if key not in self._graphs:  # libraries choose their kernels now
                if len(self._graphs) == MOST_GRAPHS:
                    self._graphs.clear()
                self._graphs[key] = None
                return self.function(*inputs)
            recorded = self._graphs[key]
            if recorded is None:
                recorded = self._graphs[key] = self._recorded(inputs)
            graph, places, output = recorded
            for place, one in zip(places, inputs, strict=True):
                place.copy_(one)
            graph.replay()
            return output.clone()

    def __reduce__(self) -> tuple[type[Replayed], tuple[Callable[..., Tensor], Tensor]]:
        """Copies have no graphs, which lie in the memory of one GPU."""
        return Replayed, (self.function, self.weight)

    def _recorded(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """The graph, where it reads its inputs, and where it writes its output."""
        with torch.inference_mode(False):  # so that they can be written to within that mode and without
            places = [torch.empty_like(one) for one in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self.function(*places)
        return graph, places, output
