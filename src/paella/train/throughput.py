"""How fast a run is: the arithmetic of a step, and what the hardware could do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

T = TypeVar("T")

# torch's formulas: operations -> a function of their arguments; it lacks the attention kernels of a CPU
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices: large enough to keep the device busy
SECONDS = 0.1  # what the measurement of the peak takes, and a first product


class _Counter(TorchDispatchMode):
    """Adds up what `FORMULAS` give. torch's own FlopCounterMode takes some operations apart, which then round
    differently: a run that is counted must not become another one."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        return out


def counted(work: Callable[[], T]) -> tuple[T, int]:
    """What `work` returns, and the floating-point operations of its matrix products, convolutions and attention,
    forward and backward. Compiled code is not seen: it would run uncompiled."""
    with _Counter() as counter:
        result = work()
    return result, counter.operations


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the fastest of a few products of two square matrices in that dtype."""
    side = SIDE.get(device.type, 1024)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    _product(matrix)  # what only the first time takes
    while sum(times) < SECONDS:
        before = time.perf_counter()
        _product(matrix)
        times.append(time.perf_counter() - before)
    return 2 * side**3 / min(times)


def _product(matrix: torch.Tensor) -> None:
    (matrix @ matrix)[0, 0].item()  # a GPU answers when it is done
