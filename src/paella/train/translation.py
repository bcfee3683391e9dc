"""A trained predictor that is to read another CLIP than the one it learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paella.baselines.transformer import TransformerPredictor
from paella.checkpoint import Predictor
from paella.clip import Clip
from paella.unet import TokenPredictor

RIDGE = 1e-3  # of the mean square of the embeddings


def holds(stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors are among the stored ones, in half precision, as trained models are stored in it."""
    return all(
        key in stored and torch.equal(stored[key].cpu().half(), value.cpu().half()) for key, value in tensors.items()
    )


def same_weights(one: Clip, other: Clip) -> bool:
    """Whether two CLIPs have the same weights and whitening, in half precision."""
    first, second = one.weights(), other.weights()
    return first.keys() == second.keys() and holds(first, second)


def embedded(clip: Clip, pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """(n+m,d) float32 on the CPU: embeddings, as predictors read them, of pictures (n,3,H,W) in [0, 1] and then of m
    captions."""
    pixels = pixels.to(clip.model.device)
    return torch.cat([clip.embed_images(pixels), clip.embed_text(captions)]).float().cpu()


@torch.no_grad()
def translate(predictor: Predictor, given: Tensor, known: Tensor) -> float:
    """Makes a predictor of some embeddings read others, in place.

    What it begins with is a linear map that takes the ones to the others, by ridge regression on samples of both: where
    these say little, it changes little. It goes into the layers that read the condition, so the predictor's size stays.

    Args:
        given, known: (n,d) each, of the same captions and pictures: the embeddings that the predictor is to read, and
            those that it has learned from.

    Returns:
        The share of the variance of `known` that such a map explains, at most 1: of every fourth sample, by the others.
    """
    given, known = given.double(), known.double()
    judged = torch.arange(len(given)) % 4 == 3
    change = _ridge(given[~judged], (known - given)[~judged])
    missed = (given + given @ change - known)[judged].square().sum()
    explained = 1 - missed / (known - known.mean(0))[judged].square().sum()
    change = _ridge(given, known - given)
    for weight in _reading_weights(predictor, given.shape[1]):
        weight += weight @ change.T.to(weight)
    return explained.item()


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """(d,d'): the linear map from x (n,d) to y (n,d')."""
    square = x.T @ x
    square.diagonal().add_(RIDGE * square.trace() / len(square))
    return torch.linalg.solve(square, x.T @ y)


def _reading_weights(predictor: Predictor, dim: int) -> list[Tensor]:
    """(C,d) each: what the condition is multiplied by, as views."""
    if isinstance(predictor, TransformerPredictor):
        return [predictor.of_condition.weight]
    assert isinstance(predictor, TokenPredictor)
    return [block.cond_mapper.weight[:, :dim] for block in predictor.res_blocks()]
