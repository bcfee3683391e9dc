"""The tokenizer: a VQGAN turns pictures into grids of tokens and back (Esser et al. 2021, taming-transformers' design).

Parameter names follow taming-transformers, so that its published checkpoints load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paella import tiles

Quantizer = Literal["nearest", "gumbel"]

# Pictures of more than TILE x TILE pixels pass in tiles of at most this side. At this size the published decoder takes
# about 3 GiB beside its weights, somewhat more than the published predictor does. Smaller tiles would take less, and
# see less of the picture.
TILE = 1024
OVERLAP = 128  # pixels that neighbouring tiles share at least, and over which one passes into the next


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN. The defaults are those of the published f8 model."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)  # one level each; every level but the last halves the grid
    num_res_blocks: int = 2
    attn_levels: tuple[int, ...] = (3,)  # levels with self-attention behind each residual block
    mid_attention: bool = True
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 8192
    patch: int = 1  # side of the pixel-unshuffle stem: 2 skips the costly full-resolution level
    quantizer: Quantizer = "nearest"
    # A local encoder sees little more than a token's own patch (kernels of 1, norms per position). With the
    # usual one a background changed four in five tokens inside an object; whether that slows a predictor is not shown.
    local: bool = False

    def __post_init__(self) -> None:
        if self.quantizer not in get_args(Quantizer):
            raise ValueError(f"quantizer: must be one of {', '.join(get_args(Quantizer))}, not {self.quantizer!r}")

    @property
    def f(self) -> int:
        """Compression: pixels per token, along one side."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)


class PositionNorm(nn.LayerNorm):
    """LayerNorm over the channels (B,C,h,w) of each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(channels: int, local: bool = False) -> nn.Module:
    return PositionNorm(channels, eps=1e-6) if local else nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, local: bool = False) -> None:
        super().__init__()
        kernel = 1 if local else 3
        self.norm1 = norm(c_in, local)
        self.conv1 = nn.Conv2d(c_in, c_out, kernel, padding="same")
        self.norm2 = norm(c_out, local)
        self.conv2 = nn.Conv2d(c_out, c_out, kernel, padding="same")
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # (B, 1, h·w, C): with a dimension of heads, and channels last, torch makes no (h·w, h·w) matrix of scores
        q, k, v = (m(h).flatten(2).transpose(1, 2)[:, None] for m in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int, local: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 2 if local else 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        overlap = self.conv.kernel_size[0] - 2
        return self.conv(F.pad(x, (0, overlap, 0, overlap)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Mid(nn.Module):
    def __init__(self, channels: int, attention: bool, local: bool = False) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, local)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, local)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks (and attention) of one resolution."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attention: bool, local: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if j == 0 else c_out, c_out, local) for j in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(c_out) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        for resample in ("downsample", "upsample"):  # the way to the next level, where there is one
            if hasattr(self, resample):
                x = getattr(self, resample)(x)
        return x


class Encoder(nn.Module):
    """Pixels (B,3,H,W) in [-1, 1] -> latent (B, z_channels, H/f, W/f)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        local, blocks = config.local, config.num_res_blocks
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            level = Level(c_in, c_out, blocks, i in config.attn_levels, local)
            if i < len(widths) - 1:
                level.downsample = Downsample(c_out, local)
            self.down.append(level)
        self.mid = Mid(widths[-1], config.mid_attention, local)
        self.norm_out = norm(widths[-1], local)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1 if local else 3, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent (B, z_channels, h, w) -> pixels (B,3,f·h,f·w), about [-1, 1]."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Mid(widths[-1], config.mid_attention)
        self.up = nn.ModuleList()  # up[i] is level i, as in the encoder; they run from the last to the first
        for i, (c_out, c_in) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            level = Level(c_in, c_out, config.num_res_blocks + 1, i in config.attn_levels)
            if i > 0:
                level.upsample = Upsample(c_out)
            self.up.append(level)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


class NearestQuantizer(nn.Module):
    """Each latent vector becomes its nearest code, by Euclidean distance."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)

    def tokens(self, z: Tensor) -> Tensor:
        """Latent (B,C,h,w) -> tokens (B,h,w) int64. In float32: half precision swaps close neighbours."""
        with torch.autocast(z.device.type, enabled=False):
            codes = self.embedding.weight.float()
            flat = z.permute(0, 2, 3, 1).float()  # (B, h, w, C)
            distance = codes.square().sum(1) - 2 * flat @ codes.T  # |z|² is the same for every code
            return distance.argmin(-1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens (B,h,w) -> latent (B,C,h,w)."""
        return self.embedding(tokens).permute(0, 3, 1, 2)


class GumbelQuantizer(nn.Module):
    """Each latent vector becomes the argmax of a 1x1 convolution: taming-transformers' GumbelVQ without its noise."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.z_channels, config.n_embed, 1)
        self.embed = nn.Embedding(config.n_embed, config.embed_dim)

    def tokens(self, z: Tensor) -> Tensor:
        """Latent (B,C,h,w) -> tokens (B,h,w) int64. In float32, as half precision makes ties."""
        assert self.proj.bias is not None
        with torch.autocast(z.device.type, enabled=False):
            return F.conv2d(z.float(), self.proj.weight.float(), self.proj.bias.float()).argmax(1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens (B,h,w) -> latent (B,C,h,w)."""
        return self.embed(tokens).permute(0, 3, 1, 2)


class VQGAN(nn.Module):
    """Pictures <-> tokens. Computes in its own parameters' dtype."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        # the Gumbel projection reads z_channels, the nearest codebook embed_dim
        latent = config.embed_dim if config.quantizer == "nearest" else config.z_channels
        self.quantize: NearestQuantizer | GumbelQuantizer = (
            NearestQuantizer(config) if config.quantizer == "nearest" else GumbelQuantizer(config)
        )
        self.quant_conv = nn.Conv2d(config.z_channels, latent, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def latent(self, pixels: Tensor) -> Tensor:
        """Pixels (B,3,H,W) in [0, 1] -> unquantized latent (B,C,H/f,W/f)."""
        return self.quant_conv(self.encoder(2 * pixels - 1))

    def decode_latent(self, z: Tensor) -> Tensor:
        """Quantized latent (B,C,h,w) -> pixels (B,3,f·h,f·w), not clamped: about [0, 1]."""
        return (self.decoder(self.post_quant_conv(z)) + 1) / 2

    def tokenizing_weights(self) -> dict[str, Tensor]:
        """By name, the weights that decide which tokens a picture has: all but the decoder's."""
        weights = self.state_dict().items()
        return {name: value for name, value in weights if not name.startswith(("decoder.", "post_quant_conv."))}

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B,3,H,W) in [0, 1] -> tokens (B,H/f,W/f) int64 in {0 … N−1}.

        Pictures of more than TILE x TILE pixels are encoded in tiles; see `decode`. With a local encoder without
        attention the tokens are those of the whole picture.

        Raises:
            ValueError: H or W is not a multiple of f.
        """
        if pixels.shape[-2] % self.config.f or pixels.shape[-1] % self.config.f:
            height, width = pixels.shape[-2:]
            raise ValueError(f"pixels: height and width must be multiples of {self.config.f}, not {height} x {width}")

        def encode(part: Tensor) -> Tensor:
            return self.quantize.tokens(self.latent(part.to(self.quant_conv.weight.dtype)))

        if pixels.shape[-2] * pixels.shape[-1] <= TILE**2:
            return encode(pixels)
        return tiles.encoded(encode, pixels, self.config.f, *self._tile_and_overlap)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B,h,w) -> pixels (B,3,f·h,f·w) in [0, 1], float32 whatever the network computes in.

        Pictures of more than TILE x TILE pixels are decoded in overlapping tiles, which are blended: what the decoder
        needs does not grow any more. This is an approximation, as its norms and its attention see one tile at a time
        and not the whole picture. Which tiles there are depends on the size alone.
        """

        def decode(part: Tensor) -> Tensor:
            return self.decode_latent(self.quantize.lookup(part)).clamp(0, 1)

        if tokens.shape[-2] * tokens.shape[-1] * self.config.f**2 <= TILE**2:
            return decode(tokens).float()
        return tiles.decoded(decode, tokens, self.config.f, *self._tile_and_overlap)

    @property
    def _tile_and_overlap(self) -> tuple[int, int]:
        """The longest tile and the least overlap, in tokens."""
        return TILE // self.config.f, OVERLAP // self.config.f
