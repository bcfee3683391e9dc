"""What the published first model computes (tests/parity/README.md). A missing file fails, it never skips."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paella import official
from paella.blocks import time_embedding
from paella.logits import typical_keep
from paella.noise import level
from paella.unet import TokenPredictor, UNetConfig

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
    model = official.load_predictor(PARITY / "paella_v1_unet.safetensors", config("unet"))
    with torch.no_grad():
        output = model(v1["tokens"], v1[condition], 1 - v1["r"].double())
    torch.testing.assert_close(output, v1[logits], rtol=0, atol=1e-4)


def test_noise_level(v1: dict[str, Tensor]) -> None:
    torch.testing.assert_close(level(1 - v1["r_values"].double()), v1["noise_fraction"], rtol=0, atol=1e-6)


def test_time_embedding(v1: dict[str, Tensor]) -> None:
    for t in (1 - v1["r_values"], 1 - v1["r_values"].double()):
        ours = time_embedding(t, v1["r_embedding"].shape[1])
        torch.testing.assert_close(ours, v1["r_embedding"], rtol=0, atol=1e-4)


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


@pytest.mark.parametrize("name", ["gumbel_vqgan_f8", "vqgan_f8"])
@pytest.mark.parametrize("grid", ["", "_rect"])
def test_vqgan(name: str, grid: str) -> None:
    model = official.load_vqgan(PARITY / f"{name}.safetensors", config(name))
    io = expected(name)
    tokens = model.encode(io[f"images{grid}"])
    assert torch.equal(tokens, io[f"indices{grid}"])
    torch.testing.assert_close(model.decode(tokens), io[f"reconstruction{grid}"], rtol=0, atol=1e-4)
