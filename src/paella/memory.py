"""How much memory pictures take, known beforehand: a size that cannot be drawn is refused before anything crashes.

The estimate counts, for each part of a run, the tensors that are alive together where they are most. The parts come one
after the other, so the largest of them counts, beside what stays throughout.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from paella.allocator import freed_memory
from paella.blocks import ResBlock
from paella.sampler import FILTERED_AT_ONCE
from paella.vqgan import TILE, VQGAN

if TYPE_CHECKING:
    from paella.checkpoint import Predictor

FLOAT = 4  # bytes of a float32
FILTER = 40  # bytes of all that the typical filter and the draw make of one logit
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # in a container, its own limit


@dataclass(frozen=True)
class Run:
    """What is drawn, as far as memory depends on it.

    Attributes:
        height, width: of the grid, in tokens.
        count: pictures; those that are finished are kept.
        guided: both conditions go through the predictor, in one batch.
        regions: how many prompts have a region of their own; with any, the condition is a map and not one place.
        steps: how many steps of each picture are kept, decoded: none without a trajectory.
        unsure: noise is put where the predictor is least sure, which is asked everywhere.
    """

    height: int
    width: int
    count: int = 1
    guided: bool = True
    regions: int = 0
    steps: int = 0
    unsure: bool = False


def needed(predictor: Predictor, vqgan: VQGAN, run: Run, at_once: int = 1) -> int:
    """Bytes that a run takes at its peak, beside what the model itself takes.

    Args:
        at_once: how many pictures go through the networks together.
    """
    places = run.height * run.width
    pixels = places * vqgan.config.f**2
    batch = 2 if run.guided else 1
    codes, size = predictor.config.num_labels, predictor.clf.weight.element_size()
    on_gpu = predictor.clf.weight.device.type != "cpu"
    # a block: 4 around its skip, 4 + 4 hidden ones (of large grids on a CPU fewer at a time), its output
    network = batch * 13 * predictor.embedding.embedding_dim * size
    logits = max(
        # a CPU computes each picture's by themselves, puts them together, and filters few rows at a time
        codes * (size + FILTER) if on_gpu else codes * size * min(at_once, 2),
        codes * (size + 2 * FLOAT) if run.unsure or predictor.config.mask_token else 0,  # confidence, in float32
    )
    drawing = places * (network + logits)  # the sum, as the allocator does not give back all of the network's
    painting = min(pixels, TILE**2) * _decoder_bytes(vqgan) + pixels * 6 * FLOAT  # a tile; the picture, clamped
    finishing = pixels * 24 * FLOAT  # compositing: colours as float32, their differences, and these on coarser grids
    kept = run.count * (pixels * 4 + places * 24)  # RGB in PIL has four bytes; tokens, noise, what is frozen
    kept += (run.count + at_once) * run.steps * (pixels * 4 + places * 8)  # as drawn, and as finished
    if run.regions:
        d = predictor.config.c_clip
        blocks = [block for block in predictor.modules() if isinstance(block, ResBlock)]
        modulation = predictor.embedding.embedding_dim + sum(block.cond_mapper.out_features for block in blocks)
        kept += pixels * run.regions * 3 * FLOAT  # soft masks
        # twice: the embeddings as float64, the modulations of each block and of all
        embedded = run.count * d + at_once * batch * 2 * (d + modulation)
        kept += places * embedded * FLOAT
    # whatever the size: a layer's weights in an order that the processor likes, and the rows that a CPU filters
    fixed = 4 * max(parameter.nbytes for parameter in predictor.parameters()) + FILTERED_AT_ONCE * FILTER
    return fixed + kept + at_once * max(drawing, painting, finishing)


def _decoder_bytes(vqgan: VQGAN) -> int:
    """Bytes for each pixel that the decoder has before it, at the level where it takes most.

    In a residual block: its input beside the norm's and the activation's output; then beside the first convolution's
    output, the second's input and output, and both in an order that the processor likes.
    """
    config = vqgan.config
    widths = [config.ch * mult for mult in config.ch_mult]
    levels = [
        max(3 * c_in, c_in + 5 * c_out) / (config.patch**2 * 4**i)
        for i, (c_out, c_in) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True))
    ]
    return int(max(levels) * vqgan.quant_conv.weight.element_size())


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None where that cannot be known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    left = min((left for left in (_machine_left(), _container_left()) if left is not None), default=None)
    return None if left is None else left + freed_memory()


def check(predictor: Predictor, vqgan: VQGAN, run: Run, argument: str) -> None:
    """Refuses a run that does not fit the memory.

    Args:
        argument: what the size comes from, for the message.

    Raises:
        ValueError: it would take more than there is; the message says how much, and which size fits.
    """
    need, left = needed(predictor, vqgan, run), available(predictor.clf.weight.device)
    if left is None or need <= left:
        return
    f = vqgan.config.f

    def square(side: int) -> int:
        return needed(predictor, vqgan, replace(run, height=side, width=side))

    fitting = f * bisect.bisect_right(range(1, max(run.height, run.width) + 1), left, key=square)
    what = "a picture" if run.count == 1 else f"{run.count} pictures"
    advice = f"; the largest square that fits is {fitting} x {fitting}" if fitting else ""
    raise ValueError(
        f"{argument}: {what} of {run.height * f} x {run.width * f} pixels (height x width) would take about "
        f"{need / 2**30:.1f} GiB of memory, and {left / 2**30:.1f} GiB are available{advice}"
    )


def pictures_at_once(predictor: Predictor, vqgan: VQGAN, run: Run, most: int) -> int:
    """How many pictures, at least one and at most `most`, can go through the networks together."""
    if most == 1 or (left := available(predictor.clf.weight.device)) is None:
        return most
    first, second = (needed(predictor, vqgan, run, at_once) for at_once in (1, 2))
    return min(max(1 + (left - first) // (second - first), 1), most)  # each takes as much as the second


def _machine_left() -> int | None:
    kilobytes = _field(MEMINFO, "MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _container_left() -> int | None:
    """What a container's limit leaves; files that are only cached make room."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - int(used) + (_field(CGROUP / "memory.stat", "inactive_file") or 0)


def _field(file: Path, name: str) -> int | None:
    """The number behind a name, in a file with one on each line."""
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(words[1]) for words in lines if words and words[0] == name), None)
