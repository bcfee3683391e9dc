"""The kernels for GPUs give what torch's give in several; TRITON_INTERPRET=1 tests them without a GPU, slowly."""

import copy
import os
from collections.abc import Callable

import pytest
import torch
from fakes import randomised, relative_error

from paella import sampler
from paella.blocks import ModulatedLayerNorm, ResBlock
from paella.denoiser import Logits
from paella.logits import draw, typical_keep
from paella.sampler import SamplerSettings, draw_typical
from paella.unet import TokenPredictor, UNetConfig

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)

from paella.kernels import convolved_and_normalized, drawn_typical  # noqa: E402

ROWS = 5 if DEVICE == "cpu" else 1000
BELOW_ONE = 1 - 2**-24


def normal(codes: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, codes, generator=torch.Generator().manual_seed(codes))


def some_impossible(codes: int) -> torch.Tensor:
    logits = normal(codes, 2.0)
    logits[:, 1::3] = -torch.inf
    return logits


def one_possible(codes: int) -> torch.Tensor:
    logits = torch.full((ROWS, codes), -torch.inf)
    logits[torch.arange(ROWS), torch.arange(ROWS) % codes] = 1.0
    return logits


LOGITS: dict[str, Callable[[int], torch.Tensor]] = {
    "alike": lambda codes: torch.zeros(ROWS, codes),
    "flat": lambda codes: normal(codes, 0.05),
    "normal": normal,
    "peaked": lambda codes: normal(codes, 12.0),
    "tied": lambda codes: normal(codes, 1.5).round(),
    "some impossible": some_impossible,
    "one possible": one_possible,
}
SETTINGS = [(0.1, 1, 1.0), (0.2, 3, 0.5), (0.5, 5, 2.0), (0.95, 1, 0.7), (1.0, 1, 1.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [1, 7, 301])  # a mass of as many tokens as are alike would be for rounding to decide
@pytest.mark.parametrize("kind", LOGITS)
def test_the_fused_draw_is_the_slow_one(kind: str, codes: int, dtype: torch.dtype) -> None:
    rows = LOGITS[kind](codes).to(DEVICE, dtype)
    uniform = torch.rand(ROWS, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for mass, min_tokens, temperature in SETTINGS:
        keep = typical_keep(rows, mass, min_tokens)
        slow = draw((rows.masked_fill(~keep, -torch.inf) / temperature).softmax(-1), uniform)
        fused = drawn_typical(rows, mass, min_tokens, temperature, uniform)
        assert fused.dtype == torch.int64 and fused.shape == (ROWS,)
        assert (fused != slow).float().mean() <= 0.01, (mass, min_tokens)  # rounding decides between neighbours


@pytest.mark.parametrize("mass", [0.2, 0.6])
@pytest.mark.parametrize("min_tokens", [1, 13])
def test_ties_go_to_the_lower_token(mass: float, min_tokens: int) -> None:
    rows = torch.zeros(2, 16, device=DEVICE)
    tokens = drawn_typical(rows, mass, min_tokens, 1.0, torch.tensor([0.0, BELOW_ONE], device=DEVICE))
    kept = typical_keep(rows[:1], mass, min_tokens).sum().item()
    assert tokens.tolist() == [0, kept - 1]


@pytest.mark.parametrize("mass", [0.2, 0.9, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
def test_the_ends_of_uniform_give_a_possible_token(uniform: float, mass: float) -> None:
    rows = some_impossible(100)
    rows[:, 0] = rows[:, -1] = -torch.inf
    tokens = drawn_typical(rows.to(DEVICE), mass, 1, 1.0, torch.full((ROWS,), uniform, device=DEVICE))
    assert rows.gather(1, tokens.cpu()[:, None]).isfinite().all()


def test_rows_may_have_any_strides() -> None:
    rows, uniform = normal(40).to(DEVICE), torch.rand(2 * ROWS, device=DEVICE)[::2]
    expected = drawn_typical(rows, 0.5, 1, 1.0, uniform.contiguous())
    for strided in (rows.T.contiguous().T, rows.repeat(1, 2)[:, :40]):
        assert torch.equal(drawn_typical(strided, 0.5, 1, 1.0, uniform), expected)
    assert drawn_typical(rows[:0], 0.5, 1, 1.0, uniform[:0]).shape == (0,)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_a_gpu_draws_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sampler, "_drawn")  # the slow way
    logits, uniform = torch.randn(2, 50, 9, 7, device=DEVICE), torch.rand(2, 9, 7, device=DEVICE)
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    expected = drawn_typical(rows, 0.8, 2, 0.7, uniform.flatten()).view(2, 9, 7)
    settings = SamplerSettings(typical_mass=0.8, temperature=0.7, min_tokens=2)
    assert torch.equal(
        draw_typical(Logits(logits), settings, uniform, torch.ones_like(uniform, dtype=torch.bool)), expected
    )


def spatial(block: ResBlock, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    convolution, ln = block.depthwise[-1], block.ln.ln
    norm = (ln.weight, ln.bias, block.ln.gamma, block.ln.beta)
    return convolved_and_normalized(x, convolution.weight, convolution.bias, norm, ln.eps, m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "height", "width", "kernel"), [(10, 5, 7, 3), (33, 4, 3, 5), (64, 2, 2, 1)])
def test_convolution_and_norm_are_those_of_torch(
    channels: int, height: int, width: int, kernel: int, dtype: torch.dtype
) -> None:
    block = randomised(lambda: ResBlock(channels, 4, 0, 1, kernel)).to(DEVICE)
    exact = copy.deepcopy(block).double()
    x = torch.randn(2, channels, height, width, device=DEVICE)
    m = torch.randn(2, height, width, channels, device=DEVICE)
    for modulation in (m, m[:, :1, :1]):
        expected = exact.ln(exact.depthwise(x.double()).permute(0, 2, 3, 1), modulation.double())
        block.to(dtype)
        block.ln.float()  # its parameters may have a dtype of their own
        fused = [
            spatial(block, own, modulation.to(dtype))
            for own in (x.to(dtype), x.to(dtype, memory_format=torch.channels_last))
        ]
        assert fused[0].dtype == dtype and torch.equal(*fused)
        assert relative_error(fused[0], expected) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_many_places_are_shared_out_among_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    block = randomised(lambda: ResBlock(8, 4, 0, 1)).to(DEVICE)
    x, m = torch.randn(1, 8, 3, 11, device=DEVICE), torch.randn(1, 1, 1, 8, device=DEVICE)
    expected = spatial(block, x, m)
    monkeypatch.setattr("paella.kernels.PROGRAMS", 8)  # four places each
    assert torch.equal(spatial(block, x, m), expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_a_gpu_denoises_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = randomised(lambda: TokenPredictor(UNetConfig(16, 64, 8, 8, (1, 1), (1, 1)))).to(DEVICE)
    tokens, condition = torch.randint(16, (2, 8, 8), device=DEVICE), torch.randn(2, 8, device=DEVICE)
    learning = predictor(tokens, condition, torch.full((2,), 0.5, device=DEVICE))
    monkeypatch.delattr(ModulatedLayerNorm, "forward")
    with torch.inference_mode():
        assert relative_error(predictor(tokens, condition, torch.full((2,), 0.5, device=DEVICE)), learning) < 1e-2
