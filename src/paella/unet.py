"""The token predictor: a fully convolutional U-Net without attention (method.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paella.blocks import Pointwise, ResBlock, time_embedding
from paella.denoiser import Denoiser


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a token predictor. The defaults are those of the published model, v1: 578 M parameters."""

    num_labels: int = 8192  # N, the tokenizer's codes
    c_hidden: int = 1280  # channels of the lowest level; each level above has half
    c_clip: int = 1024  # d, the size of the condition
    c_r: int = 64  # size of the time embedding
    down_levels: tuple[int, ...] = (4, 8, 16)  # residual blocks of each level, on the way down
    up_levels: tuple[int, ...] = (16, 8, 4)  # ... and on the way up, lowest level first
    kernels: tuple[int, ...] = (3,)  # sides of the blocks' depthwise convolutions, block by block in turn
    mask_token: bool = False  # one more input, number N, of which the predictor says what it hides (MaskGIT)

    def __post_init__(self) -> None:
        levels = len(self.down_levels)
        if len(self.up_levels) != levels or levels == 0:
            raise ValueError(
                f"unet: down_levels and up_levels must be equally many, at least 1, not {levels}, {len(self.up_levels)}"
            )
        if not self.kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"unet: kernels must be odd numbers, not {self.kernels}")
        if self.c_hidden % 2 ** (levels - 1):
            raise ValueError(f"unet: c_hidden must be a multiple of {2 ** (levels - 1)}, not {self.c_hidden}")


class TokenPredictor(nn.Module):
    """f_θ(ū, c, t) -> logits. Computes in its own parameters' dtype, on grids of any size; on a CPU the sums that its
    blocks add to are float32."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.down_levels)
        widths = [config.c_hidden // 2 ** (levels - 1 - i) for i in range(levels)]
        c_cond = config.c_clip + config.c_r
        kernels = cycle(config.kernels)
        self.embedding = nn.Embedding(config.num_labels + config.mask_token, widths[0])
        # The published model's layout: the convolution into a level opens its list on the way down, and the one out
        # of it closes the list on the way up.
        self.down_blocks = nn.ModuleList()
        for i, (width, count) in enumerate(zip(widths, config.down_levels, strict=True)):
            blocks: list[nn.Module] = [nn.Conv2d(widths[i - 1], width, 4, stride=2, padding=1)] if i else []
            blocks += [ResBlock(width, c_cond, 0, sum(config.down_levels), next(kernels)) for _ in range(count)]
            self.down_blocks.append(nn.ModuleList(blocks))
        self.up_blocks = nn.ModuleList()
        for i, count in enumerate(config.up_levels):
            width = widths[levels - 1 - i]
            blocks = [
                ResBlock(width, c_cond, width if j == 0 and i > 0 else 0, sum(config.up_levels), next(kernels))
                for j in range(count)
            ]
            if i < levels - 1:
                blocks.append(nn.ConvTranspose2d(width, widths[levels - 2 - i], 4, stride=2, padding=1))
            self.up_blocks.append(nn.ModuleList(blocks))
        self.clf = Pointwise(widths[0], config.num_labels)

    @property
    def stride(self) -> int:
        """The grid's side must be a multiple of this inside; other grids are padded."""
        return 2 ** (len(self.config.down_levels) - 1)

    @property
    def least(self) -> int:
        """The grid's smallest side inside: reflection needs more cells at the lowest level than it pads."""
        return self.stride * max(2, *(kernel // 2 + 1 for kernel in self.config.kernels))

    def forward(self, tokens: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """Noisy tokens -> logits of the clean ones.

        Args:
            tokens: (B,h,w) int64 in {0 … N-1}, with a mask token in {0 … N}.
            condition: (B,d), or a map (B,d,h',w') of any size.
            t: (B,) in [0, 1], 1 = pure noise (the published code's r is 1 - t).

        Returns:
            (B,N,h,w) logits.
        """
        return self.conditioned(condition)(tokens, t)

    def conditioned(self, condition: Tensor) -> Denoiser:
        """Binds the condition: returns `denoise(tokens (B,h,w), t (B,)) -> logits (B,N,h,w)`.

        The condition's share of every block's modulation is computed here, once, and not at every step; the time's is
        one product for all blocks. A map is resized bilinearly to each level's grid; as the modulation is linear in it,
        resizing may come last.
        """
        condition = condition.to(_exact())
        if condition.ndim == 2:
            condition = condition[:, :, None, None]
        condition, c_clip = condition.permute(0, 2, 3, 1), self.config.c_clip
        mappers = [block.cond_mapper for block in self.res_blocks()]
        # the bias comes with the time's share
        shares = [F.linear(condition, mapper.weight[:, :c_clip].to(_exact())).float() for mapper in mappers]
        of_condition = torch.cat(shares, dim=-1).permute(0, 3, 1, 2)
        weight = torch.cat([mapper.weight[:, c_clip:] for mapper in mappers]).to(_exact())
        bias = torch.cat([mapper.bias for mapper in mappers]).to(_exact())

        def features(tokens: Tensor, t: Tensor) -> Tensor:
            e = time_embedding(t, self.config.c_r).to(weight.dtype)
            return self.step(tokens, of_condition, F.linear(e, weight, bias))

        return Denoiser(features, self.logits)

    def logits(self, features: Tensor) -> Tensor:
        """The last layer: what `step` returns (B,C,h,w) -> (B,N,h,w), of each place alone."""
        return self.clf(features.to(self.embedding.weight.dtype) if _summed(features) else features)

    def res_blocks(self) -> list[ResBlock]:
        """In the order in which they run; each reads the condition."""
        halves = [*self.down_blocks, *self.up_blocks]
        return [block for blocks in halves for block in blocks.children() if isinstance(block, ResBlock)]

    def step(self, tokens: Tensor, of_condition: Tensor, of_time: Tensor) -> Tensor:
        """What is computed at every step and everywhere: features (B,C,h,w) for the last layer, given what all blocks'
        modulations together, ΣC numbers, have of the condition (B,ΣC,h',w') and of the time (B,ΣC)."""
        height, width = tokens.shape[-2:]
        bottom, right = _padding(height, width, self.stride, self.least)
        x = self.embedding(_padded(tokens, bottom, right)).permute(0, 3, 1, 2)
        summed, inner = _summed(x), x.dtype
        x = x.float() if summed else x
        everywhere = of_condition.shape[-2:] == (1, 1)  # the same: then all blocks' sums at once
        if everywhere:
            of_condition = (of_condition + of_time[:, :, None, None]).to(inner)
        else:
            of_condition = _padded_like(of_condition, height, width, bottom, right)
        widths = [len(block.gamma) for block in self.res_blocks()]
        shares = zip(of_condition.split(widths, dim=1), of_time.split(widths, dim=1), strict=True)

        def run(block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
            if not isinstance(block, ResBlock):
                return block(x.to(inner)).float() if summed else block(x)
            m, shift = next(shares)
            if not everywhere:
                if m.shape[-2:] != x.shape[-2:]:
                    m = F.interpolate(m, size=x.shape[-2:], mode="bilinear")
                m = m + shift[:, :, None, None]
            return block(x, m.permute(0, 2, 3, 1).to(inner if summed else x.dtype), skip)

        skips = []
        for blocks in self.down_blocks:
            for block in blocks.children():
                x = run(block, x)
            skips.append(x)
        skips.pop()
        for i, blocks in enumerate(self.up_blocks):
            for j, block in enumerate(blocks.children()):
                x = run(block, x, skips.pop() if j == 0 and i > 0 else None)
        return x[..., :height, :width]


def _summed(x: Tensor) -> bool:
    """Whether what the blocks add up is kept in float32, as on a CPU: dozens of sums, each rounded, are most of what
    bfloat16 is off by."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def _exact() -> torch.dtype:
    """What modulations are computed in: one that is rounded is off everywhere in a picture. In float64, for which
    training has no time, they come to the same in a batch of any size."""
    return torch.float32 if torch.is_grad_enabled() else torch.float64


def _padding(height: int, width: int, stride: int, least: int) -> tuple[int, int]:
    """Rows and columns to add: to a multiple of the stride that is no less than `least`."""
    bottom, right = (max(-(-side // stride) * stride, least) - side for side in (height, width))
    return bottom, right


def _padded(tokens: Tensor, bottom: int, right: int) -> Tensor:
    """The grid with its last row and column repeated so often."""
    if not (bottom or right):
        return tokens
    return F.pad(tokens[:, None].float(), (0, right, 0, bottom), mode="replicate")[:, 0].long()


def _padded_like(m: Tensor, height: int, width: int, bottom: int, right: int) -> Tensor:
    """A modulation map brought to the grid's size and padded as the grid is."""
    if not (bottom or right):
        return m
    if m.shape[-2:] != (height, width):
        m = F.interpolate(m, size=(height, width), mode="bilinear")
    return F.pad(m, (0, right, 0, bottom), mode="replicate")
