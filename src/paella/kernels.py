"""The locally typical filter and the draw in one kernel, for GPUs: no sort, and nothing that waits for the CPU.

The only room that needs Triton; whoever has none does not import it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Probabilities become whole numbers of this fraction. Their sums are exact in whatever order the threads add them, so
# that bisection, ties and draw cannot disagree; float64 would be nearly as good, and is slow on all but a few GPUs.
# Fewer than 2^19 tokens fit an int64, and what is lost of a float32 lies below 2^-44.
ONE = tl.constexpr(2.0**44)


def drawn_typical(rows: Tensor, mass: float, min_tokens: int, temperature: float, uniform: Tensor) -> Tensor:
    """One token per row, out of its locally typical ones: `logits.draw` of `logits.typical_weights`.

    A row's sums may round otherwise than there, which decides between tokens in few rows.

    Args:
        rows: logits (n,N) of any float dtype and any strides, on a GPU; the work is done in float32.
        mass: τ in (0, 1]; 1 keeps every token.
        min_tokens: at least this many are kept, in ranked order.
        temperature: > 0.
        uniform: (n,) in [0, 1), one random number a row.

    Returns:
        (n,) int64.
    """
    count, codes = rows.shape
    tokens = torch.empty(count, dtype=torch.int64, device=rows.device)
    if count == 0:
        return tokens
    enough = math.ceil(mass * ONE.value) if mass < 1 else 2**62  # more than all together have
    block = triton.next_power_of_2(codes)
    with torch.cuda.device_of(rows):  # Triton runs on the current one
        _draw_row[(count,)](
            rows,
            *rows.stride(),
            uniform.contiguous(),
            tokens,
            codes,
            enough,
            float(temperature),
            MIN_TOKENS=min(max(min_tokens, 1), codes),
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),  # 16 tokens a thread up to 8,192
        )
    return tokens


# `int` as a type would mean 32 bits to Triton.
@triton.jit(do_not_specialize=["enough"])
def _draw_row(
    rows: tl.tensor,
    row_stride: tl.tensor,
    token_stride: tl.tensor,
    uniform: tl.tensor,
    tokens: tl.tensor,
    codes: tl.tensor,
    enough: tl.tensor,
    temperature: tl.tensor,
    MIN_TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    real = index < codes  # the rest fills up to a power of 2
    start = rows + row * row_stride
    logits = tl.load(start + index.to(tl.int64) * token_stride, mask=real, other=-float("inf")).to(tl.float32)

    shifted = logits - tl.max(logits, 0)
    log_p = shifted - tl.log(tl.sum(tl.exp(shifted), 0))
    p = tl.exp(log_p)
    entropy = -tl.sum(tl.where(p > 0, p * log_p, 0.0), 0)  # p = 0: 0 · -inf
    # The bits of a float32 that is not negative order as the number does. Those that fill up come after all.
    distance = tl.where(real, tl.abs(log_p + entropy).to(tl.int32, bitcast=True), 0x7FFFFFFF)
    p = (p * ONE).to(tl.int64)

    # The last distance of which any is kept: the least within which there is enough probability, and enough tokens.
    low = tl.min(distance, 0)
    last = tl.max(tl.where(real, distance, 0), 0)
    while low < last:
        middle = low + (last - low) // 2
        within = distance <= middle
        reached = tl.sum(tl.where(within, p, 0), 0) >= enough
        if MIN_TOKENS > 1:
            reached = reached & (tl.sum(within.to(tl.int32), 0) >= MIN_TOKENS)
        last = tl.where(reached, middle, last)
        low = tl.where(reached, low, middle + 1)

    # Of those at that distance the first ones are kept, until there is enough with the nearer ones.
    nearer, tied = distance < last, distance == last
    of_tied = tl.where(tied, p, 0)
    kept = tl.sum(tl.where(nearer, p, 0), 0) + tl.cumsum(of_tied, 0) - of_tied < enough
    if MIN_TOKENS > 1:
        kept = kept | (tl.sum(nearer.to(tl.int32), 0) + tl.cumsum(tied.to(tl.int32), 0) <= MIN_TOKENS)
    kept = nearer | (tied & kept)

    logits = tl.where(kept, logits, -float("inf"))
    weight = (tl.exp((logits - tl.max(logits, 0)) / temperature) * ONE).to(tl.int64)
    total = tl.sum(weight, 0)
    target = (tl.load(uniform + row).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    target = tl.minimum(target, total - 1)  # it may have been rounded up
    # The first token whose cumulative weight lies above: its own weight is not 0, so it is a kept one.
    token = tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
    tl.store(tokens + row, tl.minimum(token, codes - 1).to(tl.int64))  # beyond: only in a row without numbers
