"""A trained predictor that is to read another CLIP than the one it learned from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paella.baselines.transformer import TransformerPredictor
from paella.checkpoint import Predictor
from paella.clip import Clip
from paella.unet import TokenPredictor

AT_ONCE = 256  # captions


def same_embeddings(one: Clip, other: Clip) -> bool:
    """Whether two CLIPs give the same embeddings, but for the half precision that trained models are stored in."""
    first, second = one.weights(), other.weights()
    return first.keys() == second.keys() and all(
        value.shape == second[name].shape and torch.equal(value.cpu().half(), second[name].cpu().half())
        for name, value in first.items()
    )


@torch.no_grad()
def translate(predictor: Predictor, own: Clip, other: Clip, captions: Sequence[str]) -> float:
    """Makes a predictor of the embeddings of `own` read those of `other`, in place.

    What it begins with is the linear map from `other` to `own` that has the least squared error over the captions; of
    several, the one nearest to changing nothing. It goes into the layers that read the condition, so the predictor's
    size stays.

    Args:
        own, other: with embeddings of one size d.

    Returns:
        The share of the variance of the embeddings of `own` that the map explains, at most 1.
    """
    known, given = (torch.cat(_embedded(clip, captions)).double() for clip in (own, other))
    change = torch.linalg.lstsq(given, known - given, driver="gelsd").solution  # (d,d)
    missed = (given + given @ change - known).square().sum() / (known - known.mean(0)).square().sum()
    for weight in _reading_weights(predictor, own.dim):
        weight += weight @ change.T.to(weight)
    return 1 - missed.item()


def _embedded(clip: Clip, captions: Sequence[str]) -> list[Tensor]:
    return [
        clip.embed_text(captions[start : start + AT_ONCE]).float().cpu() for start in range(0, len(captions), AT_ONCE)
    ]


def _reading_weights(predictor: Predictor, dim: int) -> list[Tensor]:
    """(C,d) each: what the condition is multiplied by, as views."""
    if isinstance(predictor, TransformerPredictor):
        return [predictor.of_condition.weight]
    assert isinstance(predictor, TokenPredictor)
    return [block.cond_mapper.weight[:, :dim] for block in predictor.res_blocks()]
