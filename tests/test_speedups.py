"""Laws of the speed that is asked for."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import inputs, randomised, relative_error
from test_transformer import CONFIG as TRANSFORMER
from torch import nn

from paella import Paella
from paella.baselines.transformer import TransformerPredictor
from paella.speedups import Int8Linear, Int8Pointwise, compile_steps, quantize_int8
from paella.unet import TokenPredictor, UNetConfig

CONFIG = UNetConfig(num_labels=20, c_hidden=64, c_clip=6, c_r=5, down_levels=(1, 1), up_levels=(1, 1))

needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="the processor has no 8-bit dot products")


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_in_8_bits_is_near_the_layer(gelu: bool, dtype: torch.dtype) -> None:
    linear = randomised(lambda: nn.Linear(96, 160))
    x = torch.randn(2, 5, 7, 96, generator=torch.Generator().manual_seed(1)) + 1  # not centred: the zero point matters
    expected = nn.functional.gelu(linear(x)) if gelu else linear(x)
    found = Int8Linear.of(linear, gelu)(x.to(dtype))
    assert found.dtype == dtype and found.shape == expected.shape
    assert 0 < relative_error(found, expected) < 0.02


@needs_vnni
def test_a_layer_in_8_bits_takes_zeros_and_one_sign() -> None:
    linear = randomised(lambda: nn.Linear(32, 8))
    for x in (torch.zeros(3, 32), torch.rand(3, 32) + 1, -torch.rand(3, 32) - 1):
        assert relative_error(Int8Linear.of(linear, gelu=False)(x), linear(x)) < 0.02


@needs_vnni
@pytest.mark.parametrize(("low", "high"), [(-1.625, 4.875), (-1.9921875, 0.6640625), (-3.158219814, 2.393252849)])
def test_the_least_and_the_greatest_number_keep_their_places_where_a_zero_point_is_half_way(
    low: float, high: float
) -> None:
    linear = randomised(lambda: nn.Linear(32, 8))
    x = torch.linspace(low, high, 3 * 32).view(3, 32)
    with torch.no_grad():
        assert relative_error(Int8Linear.of(linear, gelu=False)(x), linear(x)) < 0.02


@needs_vnni
def test_both_layers_of_a_block_say_what_one_after_the_other_says_and_leave_what_goes_in() -> None:
    first, last = randomised(lambda: nn.Linear(48, 192)), randomised(lambda: nn.Linear(192, 48))
    pair = Int8Pointwise(Int8Linear.of(first, gelu=True), Int8Linear.of(last, gelu=False))
    x = torch.randn(2, 3, 5, 48, generator=torch.Generator().manual_seed(0))
    given = x.clone()
    assert torch.equal(pair(given), pair[1](pair[0](x))) and torch.equal(given, x)
    assert relative_error(pair(x), last(nn.functional.gelu(first(x)))) < 0.03
    assert pair(x.bfloat16()).dtype == torch.bfloat16


@needs_vnni
def test_a_predictor_in_8_bits_is_near_the_predictor() -> None:
    plain, quantized = (randomised(lambda: TokenPredictor(CONFIG)) for _ in range(2))
    quantize_int8(quantized)
    assert 0 < relative_error(quantized(*inputs(8, 8)), plain(*inputs(8, 8))) < 0.1


@needs_vnni
def test_a_model_in_8_bits_draws_but_is_not_saved(tmp_path: Path) -> None:
    model = Paella.from_pretrained(quantize="int8")
    assert model.generate("a fox on a green background", steps=2)[0].size == (64, 64)
    with pytest.raises(ValueError, match="quantize: a predictor in 8 bits cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@needs_vnni
def test_weights_in_8_bits_are_other_weights_and_all_of_them_are_known() -> None:
    linear = randomised(lambda: nn.Linear(96, 160))
    found = Int8Linear.of(linear, gelu=True).state_dict(prefix="it.")
    assert found.keys() == {"it.codes", "it.scale", "it.bias"}
    weight = found["it.scale"][:, None] * found["it.codes"]
    torch.testing.assert_close(weight, linear.weight, rtol=0, atol=found["it.scale"].max().item() / 2 + 1e-6)
    plain, quantized, again = (Paella.from_pretrained(quantize=how) for how in (None, "int8", "int8"))
    assert plain.fingerprint() != quantized.fingerprint() == again.fingerprint()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantize": "int4"}, "quantize: must be 'int8' or None, not 'int4'"),
        ({"quantize": "int8", "compile": True}, "compile: does not go together with quantize"),
        ({"quantize": "int8", "dtype": "float16"}, "quantize: int8 goes together with float32 and bfloat16"),
        ({"quantize": "int8", "device": "meta"}, "quantize: int8 is for the CPU, and the model is on 'meta'"),
        ({"dtype": "int8"}, "dtype: must be auto"),
        ({"device": "abacus"}, "device: 'abacus' is not available here"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("paella.checkpoint.downloaded", lambda *_: pytest.fail("a download"))
    with pytest.raises(ValueError, match=f"^{message}"):
        Paella.from_pretrained("somebody/model", **({"device": "cpu"} | wrong))


def test_what_cannot_be_quantized_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="this is a TransformerPredictor"):
        quantize_int8(TransformerPredictor(TRANSFORMER))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="VNNI"):
        quantize_int8(TokenPredictor(CONFIG))


def test_a_compiled_predictor_says_the_same() -> None:
    plain, compiled = (randomised(lambda: TokenPredictor(CONFIG)) for _ in range(2))
    compile_steps(compiled)
    assert compiled.step is not plain.step
    with torch.inference_mode():
        assert relative_error(compiled(*inputs(4, 4)), plain(*inputs(4, 4))) < 1e-5


@pytest.mark.parametrize("again", [deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copied", "pickled"])
def test_a_copy_computes_with_its_own_weights(again: Callable[[Any], Any]) -> None:
    compiled = randomised(lambda: TokenPredictor(CONFIG))
    compile_steps(compiled)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        expected = compiled(*inputs(4, 4))
        twin = again(compiled)
        assert torch.equal(twin(*inputs(4, 4)), expected)
        twin.clf.weight.zero_()
        assert not torch.equal(twin(*inputs(4, 4)), expected) and torch.equal(compiled(*inputs(4, 4)), expected)


@needs_vnni
@pytest.mark.parametrize("again", [deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copied", "pickled"])
def test_what_is_in_8_bits_is_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    quantized = randomised(lambda: TokenPredictor(CONFIG))
    quantize_int8(quantized)
    with torch.inference_mode():
        assert torch.equal(again(quantized)(*inputs(4, 4)), quantized(*inputs(4, 4)))
