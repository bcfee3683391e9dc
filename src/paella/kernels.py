"""Kernels for GPUs: what torch does in several, each of which reads and writes everything, done in one.

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
    """One token per row, out of its locally typical ones: `logits.draw` of `logits.typical_weights`, without a sort and
    without anything that waits for the CPU.

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


PROGRAMS = 4096  # enough for any GPU to be busy; where there are more places, each does several


def convolved_and_normalized(
    x: Tensor, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor, Tensor, Tensor], eps: float, m: Tensor
) -> Tensor:
    """A depthwise convolution whose borders are reflected, and the modulated LayerNorm of what it gives. In float32
    inside: rounded once, where torch's kernels round thrice.

    Args:
        x: (B,C,h,w) of any float dtype and any strides (channels last is fast), on a GPU; h and w above half a kernel.
        weight, bias: of the convolution, (C,1,k,k) and (C,).
        norm: weight and bias of the LayerNorm, (C,) each, and the scalars g and b (`blocks.ModulatedLayerNorm`); they
            may have a dtype of their own.
        eps: of the LayerNorm.
        m: the modulation, (B,h,w,C) or (B,1,1,C).

    Returns:
        (B,h,w,C) in m's dtype.
    """
    count, channels, height, width = x.shape
    out = torch.empty(count, height, width, channels, dtype=m.dtype, device=x.device)
    each = min(max(count * height * width // PROGRAMS, 1), width)
    block = triton.next_power_of_2(channels)
    m = m.expand(out.shape)  # strides of 0 where it is the same everywhere
    with torch.cuda.device_of(x):
        _convolve_and_normalize_row[(count * height, triton.cdiv(width, each))](
            x,
            *x.stride(),
            weight,
            weight.stride(0),
            weight.stride(2),
            weight.stride(3),
            bias,
            *norm,
            m,
            *m.stride(),
            out,
            channels,
            height,
            width,
            each,
            eps,
            KERNEL=weight.shape[-1],
            BLOCK=block,
            num_warps=min(max(block // 256, 1), 8),
        )
    return out


@triton.jit
def _convolve_and_normalize_row(
    x: tl.tensor,
    x_picture: tl.tensor,
    x_channel: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    weight: tl.tensor,
    weight_channel: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    bias: tl.tensor,
    ln_weight: tl.tensor,
    ln_bias: tl.tensor,
    gamma: tl.tensor,
    beta: tl.tensor,
    m: tl.tensor,
    m_picture: tl.tensor,
    m_row: tl.tensor,
    m_column: tl.tensor,
    m_channel: tl.tensor,
    out: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    each: tl.tensor,
    eps: tl.tensor,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    picture = (tl.program_id(0) // height).to(tl.int64)
    row = tl.program_id(0) % height
    channel = tl.arange(0, BLOCK)
    real = channel < channels  # the rest fills up to a power of 2
    x += picture * x_picture + channel * x_channel
    m += picture * m_picture + row * m_row + channel * m_channel
    out += tl.program_id(0).to(tl.int64) * width * channels + channel
    weight += channel * weight_channel
    scale = tl.load(gamma).to(tl.float32)
    shift = scale * tl.load(ln_bias + channel, mask=real, other=0.0).to(tl.float32) + tl.load(beta).to(tl.float32)
    scale *= tl.load(ln_weight + channel, mask=real, other=0.0).to(tl.float32)
    first = tl.program_id(1) * each
    for column in range(first, tl.minimum(first + each, width)):
        total = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
        for i in tl.static_range(KERNEL):
            above = tl.abs(row + i - KERNEL // 2)
            from_row = tl.minimum(above, 2 * height - 2 - above)
            for j in tl.static_range(KERNEL):
                left = tl.abs(column + j - KERNEL // 2)
                from_column = tl.minimum(left, 2 * width - 2 - left)
                own = tl.load(x + from_row * x_row + from_column * x_column, mask=real, other=0.0)
                tap = tl.load(weight + i * weight_row + j * weight_column, mask=real, other=0.0)
                total += own.to(tl.float32) * tap.to(tl.float32)
        mean = tl.sum(total, 0) / channels
        centred = tl.where(real, total - mean, 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
        modulation = tl.load(m + column * m_column, mask=real, other=0.0).to(tl.float32)
        normalized = modulation * (centred / deviation * scale + shift)
        tl.store(out + column * channels, normalized.to(out.dtype.element_ty), mask=real)
