"""The Transformer token predictor that the paper compares its U-Net with: every token attends to every other.

It has the U-Net's inputs, outputs, modulation and time embedding, so that what a comparison compares is attention and
convolutions. Its default sizes are MaskGIT's (Chang et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paella.blocks import ModulatedLayerNorm, Pointwise, time_embedding
from paella.denoiser import Denoiser


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a Transformer token predictor."""

    num_labels: int = 8192  # N, the tokenizer's codes
    width: int = 768  # channels
    c_clip: int = 1024  # d, the size of the condition
    c_r: int = 64  # size of the time embedding
    layers: int = 24
    heads: int = 8
    grid: int = 32  # side of the grid that the positions are learned for
    mask_token: bool = False  # one more input, number N, of which the predictor says what it hides (MaskGIT)

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"transformer: {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"transformer: width must be a multiple of heads ({self.heads}), not {self.width}")


class TransformerBlock(nn.Module):
    """Self-attention over the whole grid, then two pointwise layers; each behind a modulated LayerNorm, each added to
    its input.

    Args:
        channels: C.
        heads: of the attention; they divide C.
        depth: how many blocks there are; the more, the less each adds at the start.
    """

    def __init__(self, channels: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_ln = ModulatedLayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.channelwise_ln = ModulatedLayerNorm(channels)
        self.channelwise = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.cond_mapper = nn.Linear(channels, channels)
        nn.init.ones_(self.cond_mapper.bias)  # as in the U-Net: the modulation starts near one
        with torch.no_grad():
            for last in (self.out, self.channelwise[-1]):
                last.weight.mul_((1 / depth) ** 0.5)  # type: ignore[operator]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B,h,w,C), context (B,h,w,C) or (B,1,1,C) -> (B,h,w,C)."""
        m = self.cond_mapper(context)
        x = x + self.out(self._attention(self.qkv(self.attention_ln(x, m))))
        return x + self.channelwise(self.channelwise_ln(x, m))

    def _attention(self, qkv: Tensor) -> Tensor:
        """(B,h,w,3·C) -> (B,h,w,C)."""
        batch, height, width, _ = qkv.shape
        q, k, v = qkv.view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, h·w, C/heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, -1)


class TransformerPredictor(nn.Module):
    """f_θ(ū, c, t) -> logits. Computes in its own parameters' dtype.

    A position is the sum of a learned row and a learned column. On a grid of another size than the trained one both
    tables are resized linearly (so positions bilinearly): such grids work, and nothing was trained on them.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_labels + config.mask_token, config.width)
        self.rows = nn.Embedding(config.grid, config.width)
        self.columns = nn.Embedding(config.grid, config.width)
        self.of_condition = nn.Linear(config.c_clip, config.width)
        self.of_time = nn.Linear(config.c_r, config.width)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, config.heads, config.layers) for _ in range(config.layers)
        )
        self.ln = nn.LayerNorm(config.width, eps=1e-6)
        self.clf = Pointwise(config.width, config.num_labels)

    def forward(self, tokens: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """Noisy tokens -> logits of the clean ones.

        Args:
            tokens: (B,h,w) int64 in {0 … N-1}, with a mask token in {0 … N}.
            condition: (B,d), or a map (B,d,h',w') of any size.
            t: (B,) in [0, 1], 1 = pure noise.

        Returns:
            (B,N,h,w) logits.
        """
        return self.conditioned(condition)(tokens, t)

    def conditioned(self, condition: Tensor) -> Denoiser:
        """Binds the condition: returns `denoise(tokens (B,h,w), t (B,)) -> logits (B,N,h,w)`."""
        condition = condition.to(self.clf.weight.dtype)
        if condition.ndim == 2:
            condition = condition[:, :, None, None]
        map_ = self.of_condition(condition.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B,C,h',w')

        def features(tokens: Tensor, t: Tensor) -> Tensor:
            return self.step(tokens, map_, time_embedding(t, self.config.c_r))

        return Denoiser(features, self.clf)

    def step(self, tokens: Tensor, map_: Tensor, e: Tensor) -> Tensor:
        """What is computed at every step and everywhere: features (B,C,h,w) for the last layer, given the condition's
        share of the context (B,C,h',w') and the time embedding (B,c_r)."""
        height, width = tokens.shape[-2:]
        if map_.shape[-2:] not in ((1, 1), (height, width)):
            map_ = F.interpolate(map_, size=(height, width), mode="bilinear")
        context = F.silu(map_.permute(0, 2, 3, 1) + self.of_time(e.to(map_.dtype))[:, None, None])
        x = self.embedding(tokens) + resized(self.rows.weight, height)[:, None] + resized(self.columns.weight, width)
        for block in self.blocks:
            x = block(x, context)
        return self.ln(x).permute(0, 3, 1, 2)


def resized(table: Tensor, size: int) -> Tensor:
    """A table (n,C) for `size` places, resized linearly where n is another number."""
    return table if len(table) == size else F.interpolate(table.T[None], size=size, mode="linear")[0].T
