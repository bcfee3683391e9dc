"""Laws of the tokenizer. What the published ones compute is in test_parity.py."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from paella.vqgan import VQGAN, VQGANConfig

# levels of 32 and 64 channels, f = 4, attention at the lowest level and behind
CONFIG = VQGANConfig(32, (1, 2), 1, attn_levels=(1,), z_channels=6, embed_dim=5, n_embed=40, patch=2)


def build(config: VQGANConfig, seed: int = 0) -> VQGAN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQGAN(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    return build(CONFIG)


def pixels(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("changes", "f"),
    [({}, 4), ({"patch": 1}, 2), ({"ch_mult": (1, 1, 2)}, 8), ({"quantizer": "gumbel"}, 4), ({"ch_mult": (1,)}, 2)],
)
def test_pictures_of_any_multiple_of_f_become_grids_and_pictures_again(changes: dict[str, object], f: int) -> None:
    model = build(replace(CONFIG, **changes))  # type: ignore[arg-type]
    assert model.config.f == f
    for rows, columns in ((1, 1), (3, 5)):
        tokens = model.encode(pixels(rows * f, columns * f))
        assert tokens.shape == (2, rows, columns)
        assert tokens.dtype == torch.int64
        assert tokens.min() >= 0 and tokens.max() < 40
        output = model.decode(tokens)
        assert output.shape == (2, 3, rows * f, columns * f)
        assert output.min() >= 0 and output.max() <= 1


@pytest.mark.parametrize("size", [(8, 10), (7, 8), (3, 4)])
def test_other_sizes_are_refused(vqgan: VQGAN, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"pixels: .* multiples of 4, not {size[0]} x {size[1]}"):
        vqgan.encode(pixels(*size))


def test_each_latent_becomes_its_nearest_code(vqgan: VQGAN) -> None:
    picture = pixels(32, 32)
    z = vqgan.latent(picture)
    codes = vqgan.quantize.embedding.weight
    distance = (z[:, None] - codes[None, :, :, None, None]).square().sum(2)  # (B,N,h,w)
    assert torch.equal(vqgan.encode(picture), distance.argmin(1))


def test_every_code_is_nearest_to_itself(vqgan: VQGAN) -> None:
    tokens = torch.arange(40).view(2, 4, 5)
    z = vqgan.quantize.lookup(tokens)
    assert z.shape == (2, 5, 4, 5)
    assert torch.equal(z[1, :, 2, 3], vqgan.quantize.embedding.weight[tokens[1, 2, 3]])
    assert torch.equal(vqgan.quantize.tokens(z), tokens)


def test_a_gumbel_token_is_the_argmax_of_the_projection() -> None:
    model = build(replace(CONFIG, quantizer="gumbel"))
    picture = pixels(16, 16)
    assert torch.equal(model.encode(picture), model.quantize.proj(model.latent(picture)).argmax(1))
    assert model.quantize.lookup(torch.tensor([[[3]]]))[0, :, 0, 0].tolist() == model.quantize.embed.weight[3].tolist()


def close_codes(quantizer: str) -> tuple[VQGAN, Tensor, Tensor]:
    """A tokenizer whose codes lie so close that half-precision arithmetic swaps them, a latent, and its tokens."""
    generator = torch.Generator().manual_seed(1)
    model = build(VQGANConfig(32, (1,), 1, (), False, 16, 16, 256, quantizer=quantizer))  # type: ignore[arg-type]
    codes = 1 + 0.05 * torch.randn(256, 16, generator=generator)
    z = 1 + 0.05 * torch.randn(2, 16, 12, 12, generator=generator)
    if quantizer == "nearest":
        model.quantize.embedding.weight.copy_(codes)
    else:
        model.quantize.proj.weight.copy_(codes[:, :, None, None])
        model.quantize.proj.bias.copy_(-codes.square().sum(1) / 2)
    model.bfloat16()  # from here on, what is exact is what these weights say
    z = z.bfloat16()
    quantize = build(model.config).quantize
    quantize.load_state_dict(model.quantize.state_dict())
    return model, z, quantize.tokens(z.float())


@pytest.mark.parametrize("quantizer", ["nearest", "gumbel"])
def test_half_precision_weights_give_the_float32_lookup(quantizer: str) -> None:
    model, z, tokens = close_codes(quantizer)
    assert len(tokens.unique()) > 10
    assert torch.equal(model.quantize.tokens(z), tokens)


@pytest.mark.parametrize("quantizer", ["nearest", "gumbel"])
def test_the_lookup_is_float32_under_autocast(quantizer: str) -> None:
    model, z, tokens = close_codes(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.float().quantize.tokens(z.float()), tokens)


def test_it_computes_in_its_own_dtype(vqgan: VQGAN) -> None:
    half = build(CONFIG)
    half.load_state_dict(vqgan.state_dict())
    half.bfloat16()
    tokens = vqgan.encode(pixels(16, 16))
    assert half.latent(pixels(16, 16).bfloat16()).dtype == torch.bfloat16
    assert half.encode(pixels(16, 16)).shape == tokens.shape
    assert half.decode_latent(half.quantize.lookup(tokens)).dtype == torch.bfloat16
    torch.testing.assert_close(half.decode(tokens), vqgan.decode(tokens), rtol=0, atol=0.05)  # both float32


def test_pictures_of_a_batch_do_not_see_each_other(vqgan: VQGAN) -> None:
    picture = pixels(16, 16, batch=3)
    alone = torch.cat([vqgan.latent(one) for one in picture.split(1)])
    torch.testing.assert_close(vqgan.latent(picture), alone, rtol=1e-4, atol=1e-5)
