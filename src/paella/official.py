"""The authors' published checkpoints as our own `TokenPredictor` and `VQGAN` (docs/official.md).

Configs are in the published code's own names: for the predictor its constructor's arguments, for the VQGAN the
`ddconfig`, `n_embed` and `embed_dim` of taming-transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from paella.checkpoint import (
    CheckpointError,
    about_argument,
    check_fit,
    config_from,
    load_clip,
    load_module,
    read_weights,
)
from paella.sampler import SamplerSettings
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN, Quantizer, VQGANConfig

# the published first model: a predictor of 578 M parameters on ruDALL-E's f8 Gumbel VQGAN
V1: dict[str, dict[str, Any]] = {
    "unet": {
        "num_labels": 8192,
        "c_hidden": 1280,
        "c_clip": 1024,
        "c_r": 64,
        "down_levels": [4, 8, 16],
        "up_levels": [16, 8, 4],
    },
    "gumbel_vqgan_f8": {
        "ddconfig": {
            "double_z": False,
            "z_channels": 256,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": [1, 1, 2, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [32],
            "dropout": 0.0,
        },
        "n_embed": 8192,
        "embed_dim": 256,
    },
}
V1_SETTINGS = SamplerSettings(steps=8, guidance=5, typical_mass=0.2)  # the paper's steps, the authors' demo's guidance
VQGAN_ENTRIES: dict[Quantizer, str] = {"gumbel": "gumbel_vqgan_f8", "nearest": "vqgan_f8"}  # names in such a config


@dataclass(frozen=True)
class DDConfig:
    """Sizes of taming-transformers' encoder and decoder, with its names and defaults.

    Attributes:
        resolution: side of the training pictures; only says which levels the `attn_resolutions` are. Any size works.
        dropout: of training; not used here.
    """

    z_channels: int
    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    in_channels: int
    out_ch: int
    double_z: bool = True
    dropout: float = 0.0
    resamp_with_conv: bool = True

    def __post_init__(self) -> None:
        for name, value in {"in_channels": 3, "out_ch": 3, "double_z": False, "resamp_with_conv": True}.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must be {value}, not {getattr(self, name)}: our VQGAN has no other kind")

    @property
    def attn_levels(self) -> tuple[int, ...]:
        """The levels whose side, for training pictures, is one of the `attn_resolutions`."""
        return tuple(i for i in range(len(self.ch_mult)) if self.resolution // 2**i in self.attn_resolutions)


@dataclass(frozen=True)
class TamingConfig:
    """Sizes of taming-transformers' VQModel and GumbelVQ."""

    ddconfig: Mapping[str, Any]
    n_embed: int
    embed_dim: int


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Our config of the published predictor's.

    Raises:
        CheckpointError: an unknown key, or a value that our class does not support.
    """
    with about_argument("config"):
        return config_from(UNetConfig, config, "the predictor's config")


def vqgan_config(config: Mapping[str, Any], quantizer: Quantizer) -> VQGANConfig:
    """Our config of taming-transformers'.

    Raises:
        CheckpointError: an unknown key, or a value that our class does not support.
    """
    with about_argument("config"):
        whole = config_from(TamingConfig, config, "the VQGAN's config")
        network = config_from(DDConfig, whole.ddconfig, "the VQGAN's ddconfig")
    try:
        return VQGANConfig(
            ch=network.ch,
            ch_mult=network.ch_mult,
            num_res_blocks=network.num_res_blocks,
            attn_levels=network.attn_levels,
            z_channels=network.z_channels,
            embed_dim=whole.embed_dim,
            n_embed=whole.n_embed,
            quantizer=quantizer,
        )
    except TypeError as error:
        raise CheckpointError(f"config: the VQGAN's ddconfig: {error}") from error


def load_predictor(weights: str | Path, config: Mapping[str, Any]) -> TokenPredictor:
    """A published token predictor as ours, float32, in evaluation mode.

    Args:
        weights: its state dict, .safetensors or .pt; or a training checkpoint that holds one as `state_dict`. Keys
            that begin with "loss." are left out with a warning.
        config: the arguments of the published class, such as `V1["unet"]`.

    Raises:
        CheckpointError: the file is damaged or holds code; the config is not supported; or a key is missing,
            unexpected or of a wrong shape: every such key is named.
    """
    sizes = unet_config(config)
    _report_skipped(weights)
    return load_module(lambda: TokenPredictor(sizes), lambda: _network(weights), weights)


def load_vqgan(weights: str | Path, config: Mapping[str, Any]) -> VQGAN:
    """A VQGAN of taming-transformers as ours, float32, in evaluation mode. Its keys tell which quantizer it has.

    Args:
        weights: see `load_predictor`.
        config: `ddconfig`, `n_embed` and `embed_dim`, such as `V1["gumbel_vqgan_f8"]`.

    Raises:
        CheckpointError: see `load_predictor`.
    """
    sizes = vqgan_config(config, quantizer_of(weights))
    _report_skipped(weights)
    return load_module(lambda: VQGAN(sizes), lambda: _network(weights), weights)


def quantizer_of(weights: str | Path) -> Quantizer:
    """Which quantizer the VQGAN in that file has: only a Gumbel one has `quantize.proj` and `quantize.embed`.

    Raises:
        CheckpointError: the file is damaged, or holds no VQGAN.
    """
    keys = [key for key in read_weights(Path(weights)) if key.startswith("quantize.")]
    if not keys:
        raise CheckpointError(f"model: {weights} holds no VQGAN: none of its keys begins with quantize.")
    return "gumbel" if any(key.startswith(("quantize.proj.", "quantize.embed.")) for key in keys) else "nearest"


def load_model(
    predictor: str | Path,
    vqgan: str | Path,
    clip: str | Path,
    configs: Mapping[str, Mapping[str, Any]] = V1,
) -> dict[str, Any]:
    """Everything of a published model, as the keyword arguments of `Paella`.

    Args:
        predictor, vqgan: files of weights; see `load_predictor`.
        clip: folder or hub id of the CLIP in transformers' format. Its embeddings enter as they are: neither
            normalised nor whitened.
        configs: `unet`, and `gumbel_vqgan_f8` or `vqgan_f8`, whichever the VQGAN's quantizer calls for.

    Raises:
        CheckpointError: see `load_predictor`; or an entry is missing, or the parts are not of one model.
    """
    with about_argument("vqgan"):
        entry = VQGAN_ENTRIES[quantizer_of(vqgan)]
    if missing := {"unet", entry} - configs.keys():
        raise CheckpointError(f"config: lacks {', '.join(sorted(missing))}; it has {', '.join(configs)}")
    with about_argument("predictor"):
        network = load_predictor(predictor, configs["unet"])
    with about_argument("vqgan"):
        tokenizer = load_vqgan(vqgan, configs[entry])
    with about_argument("clip"):
        encoder = load_clip(clip)
    with about_argument("predictor"):
        check_fit(network, tokenizer, encoder, f"{predictor}, {vqgan} and {clip}")
    size = configs[entry]["ddconfig"]["resolution"]
    return {"predictor": network, "vqgan": tokenizer, "clip": encoder, "settings": V1_SETTINGS, "size": size}


def _network(weights: str | Path) -> dict[str, Tensor]:
    """The file's tensors but those of the training loss (a discriminator, a perceptual network)."""
    return {key: value for key, value in read_weights(Path(weights)).items() if not key.startswith("loss.")}


def _report_skipped(weights: str | Path) -> None:
    if skipped := [key for key in read_weights(Path(weights)) if key.startswith("loss.")]:
        warnings.warn(f"weights: {len(skipped)} keys of {weights} are of a training loss, and left out", stacklevel=3)
