"""What the published first model computes (tests/parity/README.md). A missing file fails, it never skips."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paella.blocks import time_embedding
from paella.checkpoint import load_strictly
from paella.logits import typical_keep
from paella.noise import level
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN, VQGANConfig

PARITY = Path(__file__).parent / "parity"


def config(name: str) -> dict[str, Any]:
    return json.loads((PARITY / "config.json").read_text())[name]


def expected(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}_io.safetensors")


@pytest.fixture(scope="module")
def v1() -> dict[str, Tensor]:
    return expected("paella_v1_unet")


@pytest.mark.parametrize(("condition", "logits"), [("condition", "logits"), ("condition_map", "logits_map")])
def test_unet_logits(v1: dict[str, Tensor], condition: str, logits: str) -> None:
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in config("unet").items()}
    model = TokenPredictor(UNetConfig(**arguments))
    load_strictly(model, load_file(PARITY / "paella_v1_unet.safetensors"), "paella_v1_unet.safetensors")
    with torch.no_grad():
        output = model(v1["tokens"], v1[condition], 1 - v1["r"].double())
    torch.testing.assert_close(output, v1[logits], rtol=0, atol=1e-4)


def test_noise_level(v1: dict[str, Tensor]) -> None:
    torch.testing.assert_close(level(1 - v1["r_values"].double()), v1["noise_fraction"], rtol=0, atol=1e-6)


def test_time_embedding(v1: dict[str, Tensor]) -> None:
    ours = time_embedding(1 - v1["r_values"].double(), v1["r_embedding"].shape[1])
    r = v1["r_values"]
    torch.testing.assert_close(ours[r < 1], v1["r_embedding"][r < 1], rtol=0, atol=1e-4)
    # at t = 0 the published code, which does not clamp, has s = -4.4e-8, and 10000 times that in here
    torch.testing.assert_close(ours[r == 1], v1["r_embedding"][r == 1], rtol=0, atol=5e-4)


def test_typical_sets(v1: dict[str, Tensor]) -> None:
    names = [name for name in v1 if name.startswith("typical.keep.")]
    assert len(names) == 4
    for name in names:
        mass, min_tokens = (int("".join(filter(str.isdigit, part))) for part in name.split(".")[2:])
        assert torch.equal(typical_keep(v1["typical.logits"], mass / 100, min_tokens), v1[name]), name


def test_the_published_model_s_size_is_the_default() -> None:
    with torch.device("meta"):
        model = TokenPredictor(UNetConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 577_995_184


@pytest.mark.parametrize("quantizer", ["gumbel", "nearest"])
def test_vqgan(quantizer: Any) -> None:
    name = "gumbel_vqgan_f8" if quantizer == "gumbel" else "vqgan_f8"
    whole = config(name)
    network = whole["ddconfig"]
    sides = [network["resolution"] // 2**i for i in range(len(network["ch_mult"]))]
    model = VQGAN(
        VQGANConfig(
            ch=network["ch"],
            ch_mult=tuple(network["ch_mult"]),
            num_res_blocks=network["num_res_blocks"],
            attn_levels=tuple(i for i, side in enumerate(sides) if side in network["attn_resolutions"]),
            z_channels=network["z_channels"],
            embed_dim=whole["embed_dim"],
            n_embed=whole["n_embed"],
            quantizer=quantizer,
        )
    )
    load_strictly(model, load_file(PARITY / f"{name}.safetensors"), f"{name}.safetensors")
    io = expected(name)
    for suffix in ("", "_rect"):
        tokens = model.encode(io[f"images{suffix}"])
        assert torch.equal(tokens, io[f"indices{suffix}"])
        torch.testing.assert_close(model.decode(tokens), io[f"reconstruction{suffix}"], rtol=0, atol=1e-4)
