"""Packed weights say what plain ones say."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from fakes import inputs, randomised, relative_error
from torch import Tensor, nn

from paella import Paella
from paella.packing import (
    Packed,
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLinear,
    PackedPointwise,
    can_pack,
    is_packed,
    pack,
    unpack,
)
from paella.placement import set_dtype
from paella.speedups import compile_steps, is_quantized, quantize_int8
from paella.unet import TokenPredictor, UNetConfig

CONFIG = UNetConfig(num_labels=20, c_hidden=64, c_clip=6, c_r=5, down_levels=(1, 1), up_levels=(1, 1))
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Packed], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(48, 80), lambda layer: PackedLinear(layer, gelu=False), (2, 3, 5, 48)),
    "pointwise": (lambda: nn.Conv2d(32, 48, 1), PackedPointwise, (2, 32, 6, 10)),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32), PackedConv2d, (2, 32, 6, 10)),
    "halving": (lambda: nn.Conv2d(16, 32, 4, stride=2, padding=1), PackedConv2d, (2, 16, 6, 10)),
    "doubling": (lambda: nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), PackedConvTranspose2d, (2, 32, 3, 5)),
}

pytestmark = [
    pytest.mark.skipif(not can_pack(torch.zeros(1)), reason="torch was built without oneDNN"),
]
needs_bfloat16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the processor multiplies no bfloat16"
)


def layer_and_input(kind: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer, the same packed, and what both may be asked."""
    make, packed, shape = LAYERS[kind]
    layers = [randomised(make).to(dtype) for _ in range(2)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if kind != "linear":
        layers = [layer.to(memory_format=torch.channels_last) for layer in layers]  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    return layers[0], packed(layers[1]), x


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_says_what_the_layer_says(kind: str, dtype: torch.dtype) -> None:
    layer, packed, x = layer_and_input(kind, dtype)
    with torch.no_grad():
        assert packed(x).dtype == dtype
        assert relative_error(packed(x), layer(x)) < (1e-5 if dtype == torch.float32 else 3e-3)


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="only AMX adds up few rows in another order")
@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (4, 4), (5, 4), (8, 8)])
@pytest.mark.parametrize("channels", [(2048, 512), (1024, 256)])
def test_a_long_sum_is_the_same_in_a_batch_as_for_a_guided_pair_alone(
    channels: tuple[int, int], grid: tuple[int, int]
) -> None:
    layer = PackedLinear(randomised(lambda: nn.Linear(*channels)).bfloat16(), gelu=False)
    x = torch.randn(32, *grid, channels[0], generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad():
        pairs = torch.cat([layer(x[i : i + 2]) for i in range(0, 32, 2)])
        for count in (8, 10, 14, 24, 32):
            assert torch.equal(layer(x[:count]), pairs[:count])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_passes_gradients_on(kind: str) -> None:
    layer, packed, x = layer_and_input(kind, torch.float32)
    gradients = []
    for it in (layer.requires_grad_(), packed.requires_grad_(False)):
        it.bias.requires_grad_()
        given = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(it(given).sin().sum(), (given, it.bias)))
        gradients.append(torch.autograd.grad(it(x).sin().sum(), (it.bias,)))  # where no gradient comes in
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[3])


@needs_bfloat16
def test_a_depthwise_convolution_of_one_place_is_no_product_over_channels() -> None:
    plain, packed = (randomised(lambda: TokenPredictor(replace(CONFIG, kernels=(1, 3)))).bfloat16() for _ in range(2))
    pack(packed)
    with torch.no_grad():
        assert relative_error(packed(*inputs(8, 8)), plain(*inputs(8, 8))) < 0.02


@needs_bfloat16
@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_knows_autocast(kind: str) -> None:
    layer, packed, x = layer_and_input(kind, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x.float()), layer(x.float()))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_keeps_names_and_weights_and_gives_the_layer_back(kind: str) -> None:
    layer, packed, x = layer_and_input(kind, torch.float32)
    for again in (packed, packed.plain_layer()):
        found = again.state_dict(prefix="it.")
        assert found.keys() == {"it.weight", "it.bias"}
        assert all(torch.equal(found[f"it.{name}"], value) for name, value in layer.state_dict().items())
    assert type(packed.plain_layer()) is type(layer) and torch.equal(packed.plain_layer()(x), layer(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_packed_layer_that_is_moved_or_cast_goes_on(kind: str) -> None:
    layer, packed, x = layer_and_input(kind, torch.float32)
    with torch.no_grad():
        assert torch.equal(packed.double()(x.double()), layer.double()(x.double()))
        assert torch.equal(deepcopy(packed)(x.double()), layer(x.double()))
        assert packed.to("meta")(x.double().to("meta")).shape == layer(x.double()).shape


def test_an_exact_gelu_is_computed_in_the_same_pass() -> None:
    layer, _, x = layer_and_input("linear", torch.float32)
    packed = PackedLinear(randomised(LAYERS["linear"][0]), gelu=True)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), nn.functional.gelu(layer(x)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed(x.requires_grad_()), nn.functional.gelu(layer(x)))


def predictor(dtype: torch.dtype) -> TokenPredictor:
    made = randomised(lambda: TokenPredictor(CONFIG)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_dtype(made, dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_a_packed_predictor_says_the_same_and_is_unpacked_as_it_was(dtype: torch.dtype) -> None:
    plain, packed = predictor(dtype), predictor(dtype)
    pack(packed)
    convolutions = {"depthwise": 4, "halving": 1, "doubling": 1}
    layers = sum(convolutions.values()) + (9 if dtype == torch.bfloat16 else 0)  # the pointwise ones
    assert sum(isinstance(module, Packed) for module in packed.modules()) == layers
    sizes = [sum(parameter.numel() for parameter in it.parameters()) for it in (plain, packed)]
    assert sizes[0] == sizes[1]
    with torch.inference_mode():
        asked = inputs(8, 8)
        expected, found = plain(*asked), packed(*asked)
        assert relative_error(found, expected) < (1e-5 if dtype == torch.float32 else 1e-2)
        pack(packed)  # what is packed stays as it is
        assert torch.equal(packed(*asked), found)
        unpack(packed)
        assert torch.equal(packed(*asked), expected)
    assert repr(packed) == repr(plain)
    assert all(torch.equal(packed.state_dict()[key], value) for key, value in plain.state_dict().items())


def test_what_is_unpacked_is_let_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = predictor(torch.float32)
    pack(packed)
    there = WeakSet(module for module in packed.modules() if isinstance(module, Packed))
    plain_layer, counts = Packed.plain_layer, [len(there)]

    def counted(layer: Packed) -> nn.Module:
        counts.append(len(there))
        return plain_layer(layer)

    monkeypatch.setattr(Packed, "plain_layer", counted)
    unpack(packed)
    assert counts[0] == 6 and counts[-1] <= 2 and len(there) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_not_packed(dtype: torch.dtype) -> None:
    plain, packed = predictor(dtype), predictor(dtype)
    pack(packed)
    assert repr(packed) == repr(plain)


@needs_bfloat16
def test_a_model_goes_to_another_dtype_and_back() -> None:
    model = Paella.from_pretrained(dtype="bfloat16")
    assert any(isinstance(module, Packed) for module in model.predictor.modules())
    before, drawn = model.fingerprint(), model.generate("a fox", steps=2)[0].tobytes()
    model.to(dtype=torch.float32)
    assert {p.dtype for p in model.predictor.parameters()} == {torch.float32}
    model.to(dtype=torch.bfloat16)
    assert model.fingerprint() == before and model.generate("a fox", steps=2)[0].tobytes() == drawn


@pytest.mark.parametrize("again", [deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copied", "pickled"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_a_packed_predictor_is_copied_and_pickled(again: Callable[[Any], Any], dtype: torch.dtype) -> None:
    packed = predictor(dtype)
    pack(packed)
    with torch.inference_mode():
        expected = packed(*inputs(8, 8))
        twin = again(packed)
        assert repr(twin) == repr(packed) and torch.equal(twin(*inputs(8, 8)), expected)
        unpack(packed)  # it is no other's weights
        assert torch.equal(twin(*inputs(8, 8)), expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_a_packed_predictor_is_filled(dtype: torch.dtype, assign: bool) -> None:
    packed, other = predictor(dtype), predictor(dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.1
        pack(packed)
        assert is_packed(packed)
        packed.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(packed(*inputs(8, 8)), other(*inputs(8, 8))) and not is_packed(packed)


def test_bfloat16_is_not_packed_for_a_processor_that_onednn_cannot_multiply_it_on() -> None:
    code = (
        "import torch; from paella import Paella; from paella.packing import is_packed\n"
        "model = Paella.from_pretrained(dtype='bfloat16')\n"
        "assert not is_packed(model.predictor) and model.generate('a fox', steps=1)"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True)


@needs_bfloat16
def test_a_packed_model_is_saved_whole(tmp_path: Path) -> None:
    model = Paella.from_pretrained(dtype="bfloat16")
    model.save_pretrained(tmp_path / "model")
    again = Paella.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert again.fingerprint() == model.fingerprint()


@needs_bfloat16
def test_what_is_in_8_bits_or_compiled_starts_from_plain_layers() -> None:
    quantized, compiled = predictor(torch.bfloat16), predictor(torch.bfloat16)
    pack(quantized)
    pack(compiled)
    quantize_int8(quantized)
    assert is_quantized(quantized) and any(isinstance(module, Packed) for module in quantized.modules())
    compile_steps(compiled)
    assert [module for module in compiled.modules() if isinstance(module, Packed)] == [compiled.clf]
