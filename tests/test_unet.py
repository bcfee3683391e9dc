"""Laws of the token predictor."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fakes import inputs, randomised
from torch import Tensor, nn

from paella import unet
from paella.blocks import Pointwise, ResBlock, time_embedding
from paella.unet import TokenPredictor, UNetConfig

CONFIG = UNetConfig(num_labels=20, c_hidden=16, c_clip=6, c_r=5, down_levels=(1, 2, 1), up_levels=(1, 1, 2))


@pytest.fixture(scope="module")
def predictor() -> TokenPredictor:
    return randomised(lambda: TokenPredictor(CONFIG))


def naive(model: TokenPredictor, tokens: Tensor, condition: Tensor, t: Tensor) -> Tensor:
    """The forward pass as method.md says it: the condition itself is resized to each level, then mapped."""

    def block(block: ResBlock, x: Tensor, skip: Tensor | None) -> Tensor:
        c = F.interpolate(condition, size=x.shape[-2:], mode="bilinear")
        e = time_embedding(t, model.config.c_r)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        m = block.cond_mapper(torch.cat([c, e], dim=1).permute(0, 2, 3, 1))
        h = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), *block.depthwise[1].parameters(), groups=x.shape[1])
        h = h.permute(0, 2, 3, 1)
        h = block.ln.gamma * m * F.layer_norm(h, h.shape[-1:], *block.ln.ln.parameters(), eps=1e-6) + block.ln.beta * m
        if skip is not None:
            h = torch.cat([h, skip.permute(0, 2, 3, 1)], dim=-1)
        return x + (block.gamma * block.channelwise(h)).permute(0, 3, 1, 2)

    x, skips = model.embedding(tokens).permute(0, 3, 1, 2), []
    for blocks in model.down_blocks:
        for part in blocks:
            x = block(part, x, None) if isinstance(part, ResBlock) else part(x)
        skips.append(x)
    skips.pop()
    for i, blocks in enumerate(model.up_blocks):
        for j, part in enumerate(blocks):
            skip = skips.pop() if i > 0 and j == 0 else None
            x = block(part, x, skip) if isinstance(part, ResBlock) else part(x)
    return F.conv2d(x, *model.clf.parameters())


def test_a_pointwise_layer_is_a_convolution() -> None:
    layer = Pointwise(6, 5)
    convolution = nn.Conv2d(6, 5, 1)
    convolution.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    outputs = [module(x) for module in (layer, convolution)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
        for y, module in zip(outputs, (layer, convolution), strict=True)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("grid", [(8, 8), (8, 12), (16, 8)])
@pytest.mark.parametrize("map_size", [(1, 1), (8, 12), (3, 5), (20, 9)])
def test_a_map_is_resized_to_each_level(
    predictor: TokenPredictor, grid: tuple[int, int], map_size: tuple[int, int]
) -> None:
    tokens, _, t = inputs(*grid)
    condition = torch.randn(2, 6, *map_size, generator=torch.Generator().manual_seed(1))
    expected = naive(predictor, tokens, condition, t)
    torch.testing.assert_close(predictor(tokens, condition, t), expected, rtol=1e-4, atol=1e-4)


def test_grids_that_the_stride_divides_are_not_padded(
    predictor: TokenPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predictor.stride == 4
    tokens, condition, t = inputs(8, 12)
    logits, small = predictor(tokens, condition, t), inputs(9, 8)
    padded = predictor(*small)
    monkeypatch.setattr(unet, "_padding", lambda height, width, stride, least: (0, 0))
    assert torch.equal(predictor(tokens, condition, t), logits)
    with pytest.raises(RuntimeError):  # so padding is what the other grids live by
        assert predictor(*small).shape == padded.shape


def test_one_level_has_no_stride() -> None:
    model = TokenPredictor(UNetConfig(9, 8, 4, 4, (2,), (1,)))
    assert model.stride == 1
    assert model(torch.zeros(1, 3, 5, dtype=torch.int64), torch.zeros(1, 4), torch.ones(1)).shape == (1, 9, 3, 5)


def test_skip_connections_enter_the_first_block_of_every_up_level_but_the_lowest(predictor: TokenPredictor) -> None:
    extra = [
        [b.channelwise[0].in_features - b.channelwise[2].out_features for b in blocks if isinstance(b, ResBlock)]
        for blocks in predictor.up_blocks
    ]
    assert extra == [[0], [8], [4, 0]]
    assert isinstance(predictor.up_blocks[0][-1], nn.ConvTranspose2d)


def test_a_large_grid_in_parts_gives_what_it_gives_at_once(
    predictor: TokenPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, condition, t = inputs(24, 24)
    seen: list[int] = []
    block = predictor.res_blocks()[0]
    hook = block.channelwise.register_forward_pre_hook(lambda _, h: seen.append(h[0].numel()))
    with torch.no_grad():
        whole = predictor(tokens, condition, t)
        monkeypatch.setattr("paella.blocks.HIDDEN_AT_ONCE", 4000)
        parts = predictor(tokens, condition, t)
    assert len(seen) > 2 and seen[0] == sum(seen[1:])
    seen.clear()
    predictor(tokens, condition, t)  # to learn from
    hook.remove()
    assert len(seen) == 1
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", [(1,), (3,), (5,), (1, 3, 7)])
def test_kernels_come_in_turn_and_fit_grids_of_any_size(kernels: tuple[int, ...]) -> None:
    model = TokenPredictor(replace(CONFIG, kernels=kernels))
    sides = [block.depthwise[1].kernel_size[0] for block in model.modules() if isinstance(block, ResBlock)]
    assert sides == [kernels[i % len(kernels)] for i in range(8)]
    for height, width in ((1, 1), (3, 9), (8, 8), (16, 4)):
        tokens, condition, t = inputs(height, width)
        assert model(tokens, condition, t).shape == (2, 20, height, width)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kernels": (2,)},
        {"kernels": ()},
        {"down_levels": (1, 1), "up_levels": (1,)},
        {"down_levels": (), "up_levels": ()},
        {"c_hidden": 10},
    ],
)
def test_a_config_that_cannot_be_built_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unet:"):
        UNetConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 15, 64])
def test_a_time_embedding_has_its_size_and_tells_times_apart(channels: int) -> None:
    e = time_embedding(torch.tensor([0.0, 0.3, 0.31, 1.0]), channels)
    assert e.shape == (4, channels)
    assert e.isfinite().all()
    if channels % 2:
        assert (e[:, -1] == 0).all()
    if channels > 1:
        assert len(e.unique(dim=0)) == 4
        half = channels // 2
        torch.testing.assert_close(
            e[0, : 2 * half], torch.cat([torch.zeros(half), torch.ones(half)]), atol=1e-2, rtol=0
        )
