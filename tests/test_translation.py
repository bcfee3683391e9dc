"""Laws of a predictor's start with another CLIP than its own."""

from copy import deepcopy

import pytest
import torch
from fakes import randomised

from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.clip import Clip, Whitening
from paella.data.scenes import Scenes
from paella.pipeline import Paella
from paella.train.translation import embedded, same_weights, translate
from paella.unet import TokenPredictor, UNetConfig

NETWORKS = {
    "unet": lambda d: TokenPredictor(UNetConfig(20, 16, d, 8, down_levels=(1, 1), up_levels=(1, 1))),
    "transformer": lambda d: TransformerPredictor(
        TransformerConfig(num_labels=20, width=16, heads=2, layers=2, c_clip=d, c_r=8, grid=4)
    ),
}
CAPTIONS = [Scenes(seed=3).caption(index) for index in range(200)]


def whitened(clip: Clip, whitening: Whitening) -> Clip:
    return Clip(clip.model, clip.tokenizer, whitening=whitening)


@pytest.fixture(scope="module")
def own(tiny: Paella) -> Clip:
    embeddings = tiny.clip.unwhitened().embed_text(CAPTIONS)
    return whitened(tiny.clip, Whitening.fit(embeddings / embeddings.norm(dim=1, keepdim=True)))


@pytest.fixture(scope="module")
def turned(own: Clip) -> Clip:
    """The same embeddings, turned about the origin and twice as long."""
    assert own.whitening is not None
    square = torch.randn(own.dim, own.dim, generator=torch.Generator().manual_seed(0))
    return whitened(own, Whitening(own.whitening.mean, own.whitening.matrix @ (2 * torch.linalg.qr(square).Q)))


@pytest.mark.parametrize("network", NETWORKS)
def test_what_differs_by_a_linear_map_is_read_alike(own: Clip, turned: Clip, network: str) -> None:
    predictor = randomised(lambda: NETWORKS[network](own.dim))
    translated = deepcopy(predictor)
    explained = translate(translated, turned.embed_text(CAPTIONS), own.embed_text(CAPTIONS))
    assert explained == pytest.approx(1, abs=0.01)
    tokens, t = torch.randint(20, (8, 4, 4)), torch.full((8,), 0.5)
    unseen = [Scenes(seed=4).caption(index) for index in range(8)]
    known, at_first = (predictor(tokens, clip.embed_text(unseen), t) for clip in (own, turned))
    error = (translated(tokens, turned.embed_text(unseen), t) - known).norm()
    assert error < 0.03 * (at_first - known).norm()
    nothing = torch.zeros(8, own.dim)
    assert torch.equal(translated(tokens, nothing, t), predictor(tokens, nothing, t))


def test_few_samples_change_little_and_an_unchanged_clip_changes_nothing(own: Clip, turned: Clip) -> None:
    """A sample says nothing about directions that it has no part in: what was read of these stays."""
    predictor = randomised(lambda: NETWORKS["unet"](own.dim))
    weights = [block.cond_mapper.weight.clone() for block in predictor.res_blocks()]
    known, given = own.embed_text(CAPTIONS[:1]), turned.embed_text(CAPTIONS[:1])
    translate(predictor, known, known)
    for block, before in zip(predictor.res_blocks(), weights, strict=True):
        torch.testing.assert_close(block.cond_mapper.weight, before, rtol=1e-4, atol=1e-4)
    translate(predictor, given, known)
    for block, before in zip(predictor.res_blocks(), weights, strict=True):
        change = (block.cond_mapper.weight - before)[:, : own.dim]
        along = torch.outer(change @ given[0], given[0]) / given[0].square().sum()
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(change, along, rtol=1e-3, atol=1e-3)


def test_embeddings_are_those_of_the_pictures_and_then_those_of_the_captions(own: Clip) -> None:
    pixels = torch.rand(30, 3, 32, 32)
    together = embedded(own, pixels, CAPTIONS[:20])
    apart = [own.embed_images(pixels[:1]), own.embed_images(pixels[-1:]), own.embed_text(CAPTIONS[:1])]
    torch.testing.assert_close(together[[0, 29, 30]], torch.cat(apart), rtol=1e-3, atol=1e-3)
    assert len(together) == 50


def test_the_same_weights_are_told_from_others(own: Clip, turned: Clip) -> None:
    assert same_weights(own, own)
    assert not same_weights(own, turned)
    assert not same_weights(own, own.unwhitened())
