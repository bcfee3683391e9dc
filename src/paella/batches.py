"""How many pictures go through the predictor together: as many as pay, and on a CPU only where no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial

import torch
from torch import Tensor

from paella.canvas import Canvas
from paella.checkpoint import Predictor
from paella.sampler import Denoise, guided
from paella.speedups import is_compiled

AT_ONCE = 16
FILLING = 1024  # places of a grid that keep a CPU's cores busy by themselves


class Batches:
    """Divides a run of many pictures, and remembers what it found out.

    A matrix product may round differently in a larger batch, and on a CPU a picture must not depend on its batch. Which
    kernels a library chooses depends on the sizes, not on the numbers; so the first time that a size is met, one pass
    of all pictures together is compared with those of each alone, and where a bit differs they are drawn one at a time.
    """

    def __init__(self) -> None:
        self._same: dict[Hashable, bool] = {}

    def most(self, predictor: Predictor, places: int) -> int:
        """How many pictures of so many tokens it is worth while to draw together, memory aside."""
        on_cpu = predictor.clf.weight.device.type == "cpu"
        return 1 if on_cpu and (places >= FILLING or is_compiled(predictor)) else AT_ONCE

    def parts(
        self, predictor: Predictor, canvas: Canvas, null: Tensor, weight: float, at_most: int
    ) -> Iterator[tuple[slice, Denoise]]:
        """Slices of the canvas, of at most so many pictures, and the predictor `guided` for each."""
        bind = partial(guided, predictor.conditioned, null=null, weight=weight)
        for first in range(0, len(canvas.tokens), at_most):
            part = slice(first, min(first + at_most, len(canvas.tokens)))
            together = self._same_bits(predictor, bind, canvas[part], weight)
            size = at_most if together else 1
            for start in range(part.start, part.stop, size):
                own = slice(start, min(start + size, part.stop))
                yield own, bind(canvas.condition[own])

    def _same_bits(
        self, predictor: Predictor, bind: Callable[[Tensor], Denoise], canvas: Canvas, weight: float
    ) -> bool:
        """Whether the logits of these pictures are the same alone; on a GPU that is not asked."""
        if len(canvas.tokens) == 1 or canvas.tokens.device.type != "cpu":
            return True
        sizes = (canvas.tokens.shape, canvas.condition.shape, weight == 1)
        key = (predictor, predictor.clf.weight.dtype, torch.get_num_threads(), *sizes)
        if key not in self._same:
            t = torch.full((len(canvas.tokens),), canvas.start)
            together = bind(canvas.condition)(canvas.tokens, t)
            alone = [
                bind(condition)(tokens, t[:1])
                for tokens, condition in zip(canvas.tokens.split(1), canvas.condition.split(1), strict=True)
            ]
            self._same[key] = torch.equal(together, torch.cat(alone))
        return self._same[key]
