"""Large pictures in tiles: nothing is lost, and no seam is left."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paella import tiles, vqgan
from paella.data.scenes import Scenes
from paella.images import to_tensor
from paella.pipeline import Paella
from paella.vqgan import VQGAN, VQGANConfig

# its norms and attention see the whole picture, as those of the published tokenizers do
CONFIG = VQGANConfig(32, (1, 2), 1, attn_levels=(1,), z_channels=6, embed_dim=5, n_embed=40, patch=2)


def grid(height: int, width: int, codes: int = 40, batch: int = 2) -> Tensor:
    return torch.randint(codes, (batch, height, width), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets how large a tile is, and how much tiles share, in pixels."""

    def change(tile: int, overlap: int) -> None:
        monkeypatch.setattr(vqgan, "TILE", tile)
        monkeypatch.setattr(vqgan, "OVERLAP", overlap)

    return change


@pytest.fixture(scope="module")
def builtin() -> VQGAN:
    return Paella.from_pretrained(device="cpu").vqgan


def steepness(change: Tensor) -> Tensor:
    """(B,C,H,W) -> (W-1,): how much each column differs from the one to its left, on average."""
    return (change[..., 1:] - change[..., :-1]).abs().mean((0, 1, 2))


def test_tiles_cover_everything_and_share_what_they_must() -> None:
    for length in range(1, 200):
        for longest, overlap in ((16, 2), (16, 4), (128, 16)):
            found = tiles.spans(length, longest, overlap)
            assert found[0][0] == 0 and found[-1][1] == length
            assert len({last - first for first, last in found}) == 1 and found[0][1] <= longest
            assert all(end - start >= overlap for (_, end), (start, _) in pairwise(found))
            assert all(last <= first for (_, last), (first, _) in zip(found, found[2:], strict=False))  # two at most


def test_tiles_that_agree_are_the_whole() -> None:
    """Blending, joining: where tiles agree, it does not show that there are any."""

    def paint(tokens: Tensor) -> Tensor:
        return F.interpolate(tokens[:, None].expand(-1, 3, -1, -1) / 40, scale_factor=2.0)

    def read(pixels: Tensor) -> Tensor:
        return (pixels[:, 0, ::2, ::2] * 40).round().long()

    for tokens in (grid(37, 50), grid(9, 41), grid(33, 8)):
        whole = paint(tokens)
        torch.testing.assert_close(tiles.decoded(paint, tokens, 2, 16, 4), whole, rtol=0, atol=1e-6)
        assert torch.equal(tiles.encoded(read, whole, 2, 16, 4), tokens)


def test_where_tiles_differ_one_passes_linearly_into_the_next() -> None:
    means = iter((0.0, 1.0))

    def flat(tokens: Tensor) -> Tensor:
        return torch.full((1, 3, 2 * tokens.shape[1], 2 * tokens.shape[2]), next(means))

    row = tiles.decoded(flat, grid(1, 12, batch=1), 2, 8, 4)[0, 0, 0]  # tiles 0 ... 7 and 4 ... 11
    assert row[:8].tolist() == [0] * 8 and row[16:].tolist() == [1] * 8
    torch.testing.assert_close(row[8:16], (torch.arange(8) + 0.5) / 8)


def test_half_precision_is_blended_in_float32() -> None:
    tokens = grid(37, 50)
    shades = torch.linspace(0, 1, 40).bfloat16()[tokens]

    def paint(part: Tensor) -> Tensor:
        return torch.linspace(0, 1, 40).bfloat16()[part][:, None].expand(-1, 3, -1, -1)

    found = tiles.decoded(paint, tokens, 1, 16, 4)
    torch.testing.assert_close(found, shades.float()[:, None].expand_as(found), rtol=0, atol=1e-6)


def test_only_above_a_fixed_area_are_there_tiles(small_tiles: Callable[[int, int], None]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQGAN(CONFIG).eval().requires_grad_(False)
    whole = {shape: model.decode(grid(*shape)) for shape in ((16, 16), (8, 32), (17, 16))}
    small_tiles(64, 16)  # 16 x 16 tokens
    for shape, pixels in whole.items():
        decoded = model.decode(grid(*shape))
        assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1
        assert torch.equal(decoded, pixels) == (shape != (17, 16))


@pytest.mark.parametrize(("overlap", "borders"), [(64, [64, 128]), (0, [96])])
def test_only_tiles_that_share_nothing_show_a_seam(
    builtin: VQGAN, small_tiles: Callable[[int, int], None], overlap: int, borders: list[int]
) -> None:
    pixels = to_tensor([Scenes(192)[1][0]])
    tokens = builtin.encode(pixels)
    whole = builtin.decode(tokens)
    small_tiles(128 if overlap else 96, overlap)
    # its encoder is local: beyond what tiles share, it sees nothing
    assert torch.equal(builtin.encode(pixels), tokens) == (overlap > 0)
    tiled = builtin.decode(tokens)
    if overlap:
        assert 0 < (tiled - whole).abs().mean() < 0.01
    before = torch.arange(192)[borders] - 1  # the last column, or row, ahead of each border
    for axes in ((2, 3), (3, 2)):
        sharpness = steepness(tiled.permute(0, 1, *axes)) / steepness(whole.permute(0, 1, *axes))
        assert (sharpness[before].max() > 1.2) == (overlap == 0)
