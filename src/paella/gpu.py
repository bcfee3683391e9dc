"""What a GPU is spared: kernels of our own, and the time that a CPU takes to start many small ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from importlib.util import find_spec
from threading import Lock
from weakref import WeakMethod

import torch
from torch import Tensor

from paella.arguments import warn

FEW_PLACES = 8192  # of more places a GPU takes longer for each kernel than a CPU takes to start it
MOST_SIZES = 8  # that are remembered
_RECORDING = Lock()  # a process can record one graph at a time

Recorded = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]  # where it reads its inputs, and writes its output


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device. A GPU fetches it when it comes to it, and nobody waits: a plain copy waits until all
    that the GPU was given before is done."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


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
    """A method of tensors, whose kernels on a GPU are started together: as a CUDA graph.

    The graph of each size is recorded the second time that the size is met, and is replayed from then on. Graphs keep
    the memory that the method works in. Calls that learn, that are large (`FEW_PLACES`) or not on a GPU go to the
    method itself, and so do those of a size that cannot be recorded.

    Args:
        method: of tensors on one device, the first (B,...,h,w), to a tensor. It must do the same for all tensors of
            these sizes, and must not wait for the GPU. Its object is not kept alive.
        weight: one of the object's parameters: when it lies elsewhere, all graphs are forgotten.
    """

    def __init__(self, method: Callable[..., Tensor], weight: Tensor) -> None:
        self.method, self.weight = WeakMethod(method), weight
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, Recorded | None] = {}
        self._stream: torch.cuda.Stream | None = None
        self._address = self.weight.data_ptr()

    def __call__(self, *inputs: Tensor) -> Tensor:
        method, first = self.method(), inputs[0]
        assert method is not None
        few = first.shape[0] * first.shape[-2] * first.shape[-1] <= FEW_PLACES
        if first.device.type != "cuda" or torch.is_grad_enabled() or not few:
            return method(*inputs)
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        key = (autocast, *((one.shape, one.stride(), one.dtype) for one in inputs))
        with self._lock:
            if self._address != self.weight.data_ptr() or len(self._seen | {key}) > MOST_SIZES:
                self._forget()
            if key not in self._seen:  # libraries choose their kernels now
                self._seen.add(key)
                return method(*inputs)
            if key not in self._graphs:
                self._graphs[key] = self._recorded(method, inputs)
            if (recorded := self._graphs[key]) is None:
                return method(*inputs)
            graph, places, output = recorded
            for place, one in zip(places, inputs, strict=True):
                place.copy_(one)
            graph.replay()
            return output.clone()

    def __reduce__(self) -> tuple[type[Replayed], tuple[Callable[..., Tensor] | None, Tensor]]:
        """Copies have no graphs, which lie in the memory of one GPU."""
        return Replayed, (self.method(), self.weight)

    def _recorded(self, method: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Recorded | None:
        device = inputs[0].device
        with torch.inference_mode(False):  # so that they can be written to within that mode and without
            places = [torch.empty_like(one) for one in inputs]
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        self._stream = self._stream or torch.cuda.Stream(device)
        # As outputs are copied at once, all graphs can work in the same memory.
        pool = next((one[0].pool() for one in self._graphs.values() if one is not None), None)
        try:
            with _RECORDING, torch.cuda.device(device):
                torch.clear_autocast_cache()  # weights of another dtype that would not outlive it
                with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                    output = method(*places)
        except RuntimeError as error:
            torch.cuda.set_stream(current)
            warn(f"device: {device} could not record what it computes, and pictures take longer: {error}")
            return None
        finally:
            torch.clear_autocast_cache()
        return graph, places, output
