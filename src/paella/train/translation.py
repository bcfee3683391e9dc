"""A trained predictor that is to read another CLIP than the one it learned from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paella.baselines.transformer import TransformerPredictor
from paella.checkpoint import Predictor
from paella.clip import Clip
from paella.unet import TokenPredictor

AT_ONCE = 256  # bounds the memory
RIDGE = 1e-3  # of the mean square of the embeddings


def same_embeddings(one: Clip, other: Clip) -> bool:
    """Whether two CLIPs give the same embeddings, but for the half precision that trained models are stored in."""
    first, second = one.weights(), other.weights()
    return first.keys() == second.keys() and all(
        value.shape == second[name].shape and torch.equal(value.cpu().half(), second[name].cpu().half())
        for name, value in first.items()
    )


def embedded(clip: Clip, pixels: Tensor, captions: Sequence[str]) -> list[Tensor]:
    """Embeddings (m,d), as predictors read them, of pictures (B,3,H,W) in [0, 1] and of captions."""
    texts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    return [*map(clip.embed_images, pixels.split(AT_ONCE)), *map(clip.embed_text, texts)]


@torch.no_grad()
def translate(predictor: Predictor, given: Tensor, known: Tensor) -> float:
    """Makes a predictor of some embeddings read others, in place.

    What it begins with is the linear map with the least squared error between the two, on samples of both; where these
    say little, the one nearer to changing nothing (ridge regression). It goes into the layers that read the condition,
    so the predictor's size stays.

    Args:
        given, known: (n,d) each, of the same captions and pictures: the embeddings that the predictor is to read, and
            those that it has learned from.

    Returns:
        The share of the variance of `known` that the map explains, at most 1.
    """
    given, known = given.double(), known.double()
    square = given.T @ given
    square.diagonal().add_(RIDGE * square.trace() / len(square))
    change = torch.linalg.solve(square, given.T @ (known - given))  # (d,d)
    missed = (given + given @ change - known).square().sum() / (known - known.mean(0)).square().sum()
    for weight in _reading_weights(predictor, len(square)):
        weight += weight @ change.T.to(weight)
    return 1 - missed.item()


def _reading_weights(predictor: Predictor, dim: int) -> list[Tensor]:
    """(C,d) each: what the condition is multiplied by, as views."""
    if isinstance(predictor, TransformerPredictor):
        return [predictor.of_condition.weight]
    assert isinstance(predictor, TokenPredictor)
    return [block.cond_mapper.weight[:, :dim] for block in predictor.res_blocks()]
