"""Building blocks of the token predictor (method.md section 4; names of parameters as in the published model)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paella.gpu import triton_works
from paella.noise import cosine

HIDDEN_AT_ONCE = 2**23  # numbers between two pointwise layers: more leave the caches, and are new memory at each call


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """e(t): sinusoidal features of 10000·s(t), first all sines, then all cosines, a zero behind where odd.

    s(t) is not clamped here, as the published model was trained without.

    Args:
        t: (B,) in [0, 1].
        channels: c_r.

    Returns:
        (B,c_r) float32.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=t.device).float() * (-math.log(10000) / max(half - 1, 1)))
    angles = (cosine(t) * 10000)[:, None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, channels % 2))


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, (B,C,h,w) -> (B,C',h,w), as the product over channels that it is: on a CPU a convolution's
    backward pass brings both gradients into another order and back, which takes longer than to compute them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ModulatedLayerNorm(nn.Module):
    """g·m·LN(x) + b·m: a LayerNorm scaled and shifted by the modulation m; g and b are scalars."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels, eps=1e-6)
        self.gamma = nn.Parameter(torch.ones(1, 1, 1))
        self.beta = nn.Parameter(torch.ones(1, 1, 1))

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        """x (B,h,w,C), m (B,h,w,C) or (B,1,1,C) -> (B,h,w,C), computed as m·(g·LN(x) + b), which rounds less often.

        On a CPU the parameters may be float32 where x is not: see `paella.placement.set_dtype`.
        """
        gamma, beta = self.gamma.flatten(), self.beta.flatten()
        scale, shift = gamma * self.ln.weight, gamma * self.ln.bias + beta
        if x.device.type != "cpu":  # there torch wants one dtype
            scale, shift = scale.to(x.dtype), shift.to(x.dtype)
        return m * F.layer_norm(x, x.shape[-1:], scale, shift, self.ln.eps)


class ResBlock(nn.Module):
    """Depthwise convolution, modulated LayerNorm, two pointwise layers, layer scale; added to its input.

    Args:
        channels: C.
        c_cond: channels of the condition and the time embedding together.
        c_skip: channels of the skip connection from the encoder, 0 = none.
        depth: how many blocks share this half of the network; the more, the less each adds at the start.
        kernel: side of the depthwise convolution, odd.
    """

    def __init__(self, channels: int, c_cond: int, c_skip: int, depth: int, kernel: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            nn.ReflectionPad2d(kernel // 2), nn.Conv2d(channels, channels, kernel, groups=channels)
        )
        self.ln = ModulatedLayerNorm(channels)
        self.channelwise = nn.Sequential(
            nn.Linear(channels + c_skip, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gamma = nn.Parameter(torch.ones(channels))
        self.cond_mapper = nn.Linear(c_cond, channels)
        # The published model starts with a layer scale of 1e-6 and random g, b: safe for weeks of training, slow for
        # hours. Here the modulation starts near one, and the branch's share is set by its last layer alone.
        nn.init.ones_(self.cond_mapper.bias)
        with torch.no_grad():
            self.channelwise[-1].weight.mul_(math.sqrt(1 / depth))  # type: ignore[operator]

    def forward(self, x: Tensor, m: Tensor, skip: Tensor | None = None) -> Tensor:
        """x (B,C,h,w), modulation m (B,h,w,C) or (B,1,1,C), skip (B,C',h,w) -> (B,C,h,w), in x's dtype; all but the sum
        is computed in that of m."""
        h = self._among_places(x.to(m.dtype), m)
        if skip is not None:
            h = torch.cat([h, skip.permute(0, 2, 3, 1).to(h.dtype)], dim=-1)
        return torch.addcmul(x.permute(0, 2, 3, 1), self.gamma, self._pointwise(h)).permute(0, 3, 1, 2)

    def _among_places(self, x: Tensor, m: Tensor) -> Tensor:
        """Depthwise convolution and modulated LayerNorm: x (B,C,h,w), m -> (B,h,w,C). On a GPU, where nothing is
        learned, they are one kernel: each of the five that they are otherwise reads and writes all of x."""
        by_torch = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if x.device.type == "cuda" and not by_torch and triton_works(x.device):
            from paella.kernels import convolved_and_normalized

            convolution, ln = self.depthwise[-1], self.ln.ln
            norm = (ln.weight, ln.bias, self.ln.gamma, self.ln.beta)
            return convolved_and_normalized(x, convolution.weight, convolution.bias, norm, ln.eps, m)  # type: ignore[arg-type]
        return self.ln(self.depthwise(x).permute(0, 2, 3, 1), m)

    def _pointwise(self, h: Tensor) -> Tensor:
        """The pointwise layers: (B,h,w,C+C') -> (B,h,w,C). On a CPU, where nothing is learned, as many places at a
        time as its caches hold; 8-bit layers have a scale for each time."""
        places, hidden = h.flatten(0, 2), 4 * len(self.gamma)
        parts = math.ceil(len(places) * hidden / HIDDEN_AT_ONCE)
        if parts <= 1 or h.device.type != "cpu" or torch.is_grad_enabled():
            return self.channelwise(h)
        return torch.cat([self.channelwise(part) for part in places.chunk(parts)]).unflatten(0, h.shape[:3])
