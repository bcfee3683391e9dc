"""How many pictures go through the predictor together: as many as pay, and on a CPU only where no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from paella.canvas import Canvas
from paella.checkpoint import Predictor
from paella.denoiser import Denoise
from paella.packing import Packed, is_packed
from paella.sampler import guided
from paella.speedups import is_compiled, is_quantized

AT_ONCE = 16
# On a CPU, as tried with the built-in model on two cores:
AT_LEAST = 4  # fewer pictures gain less than it takes to compare them
LARGE = 1024  # pictures of as many tokens gain little


class Batches:
    """Divides a run of many pictures, and remembers what it found out.

    A matrix product may round differently in a larger batch, and on a CPU a picture must not depend on its batch. Which
    kernels a library chooses depends on the sizes, not on the numbers; so the first time that a size is met, one pass
    of all pictures together is compared with those of each alone, and where a bit differs they are drawn one at a time.
    Two kernels may agree on nearly all numbers, so each layer is asked for as many random ones, too.
    """

    def __init__(self) -> None:
        self._same: dict[Hashable, bool] = {}

    def most(self, predictor: Predictor, places: int) -> int:
        """How many pictures of so many tokens may be drawn together, memory aside.

        On a CPU 8-bit layers take their scale from the whole batch, and compiled ones are compiled for each size.
        """
        alone = places >= LARGE or is_quantized(predictor) or is_compiled(predictor)
        return 1 if predictor.clf.weight.device.type == "cpu" and alone else AT_ONCE

    def parts(
        self, predictor: Predictor, canvas: Canvas, null: Tensor, weight: float, at_most: int
    ) -> Iterator[tuple[slice, Denoise]]:
        """Slices of the canvas, of at most so many pictures, and the predictor `guided` for each."""
        bind = partial(guided, predictor.conditioned, null=null, weight=weight)
        for first in range(0, len(canvas.tokens), at_most):
            part = slice(first, min(first + at_most, len(canvas.tokens)))
            together = canvas.tokens.device.type != "cpu" or self._same_bits(predictor, bind, canvas[part], weight)
            for own in [part] if together else [slice(i, i + 1) for i in range(part.start, part.stop)]:
                yield own, bind(canvas.condition[own])

    def _same_bits(
        self, predictor: Predictor, bind: Callable[[Tensor], Denoise], canvas: Canvas, weight: float
    ) -> bool:
        """Whether it is worth while to draw these pictures together, and their logits are those of each alone."""
        count = len(canvas.tokens)
        if count < AT_LEAST or canvas.start == 0:
            return False
        sizes = (canvas.tokens.shape, canvas.condition.shape, weight == 1)
        key = (predictor, predictor.clf.weight.dtype, is_packed(predictor), torch.get_num_threads(), *sizes)
        if key not in self._same:
            t = torch.full((count,), canvas.start, dtype=torch.float32)
            inputs: dict[nn.Module, Tensor] = {}
            with _noted(predictor, inputs):
                together = bind(canvas.condition)(canvas.tokens, t)
            each = (canvas[i : i + 1] for i in range(count))
            self._same[key] = all(
                torch.equal(bind(one.condition)(one.tokens, t[:1])[0], logits)
                for one, logits in zip(each, together, strict=True)
            ) and all(_agrees(layer, x, count) for layer, x in inputs.items())
        return self._same[key]


@contextmanager
def _noted(predictor: nn.Module, inputs: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Notes of what kind the inputs are, without their numbers, that the layers that multiply are given meanwhile."""
    kinds = (Packed, nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    layers = [module for module in predictor.modules() if isinstance(module, kinds)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, x: inputs.update({layer: torch.empty_like(x[0], device="meta")}))
        for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _agrees(layer: nn.Module, x: Tensor, count: int) -> bool:
    """Whether the layer says of random numbers the same bits for so many pictures together as for each alone; `x` is
    like what it is given for all, with two rows for each under guidance."""
    x = torch.empty_like(x, device="cpu").normal_(generator=torch.Generator().manual_seed(0))
    together = layer(x)
    return all(torch.equal(layer(x[i::count]), together[i::count]) for i in range(count))
