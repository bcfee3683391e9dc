"""Pure functions on logits: guidance, entropy, the locally typical filter, and the draw."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: l_∅ + w·(l_c - l_∅). A weight of 1 changes nothing."""
    return unconditional + weight * (conditional - unconditional)


def entropy(logits: Tensor) -> Tensor:
    """Of each position's distribution, in nats, 0 ... ln N: logits (B,N,h,w) of any float dtype -> (B,h,w) float32.

    Row by row of the grid, so that it takes little memory beside the logits.
    """
    rows = [torch.special.entr(row.float().softmax(1)).sum(1) for row in logits.split(1, dim=2)]
    return torch.cat(rows, dim=1)


def typical_keep(logits: Tensor, mass: float, min_tokens: int = 1) -> Tensor:
    """Which tokens locally typical sampling keeps (Meister et al. 2022).

    Tokens are ranked by how far their surprise -log p is from the distribution's entropy; the smallest set whose
    probability reaches `mass` is kept.

    Args:
        logits: (n,N), any float dtype; the work is done in float32.
        mass: τ in (0, 1]; 1 keeps every token.
        min_tokens: at least this many are kept, in ranked order.

    Returns:
        (n,N) bool, at least one True in each row.
    """
    if mass >= 1:
        return torch.ones_like(logits, dtype=torch.bool)
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    expected = -(p * log_p).nan_to_num_(0.0).sum(-1, keepdim=True)  # the entropy; p = 0: 0 · -inf
    distance = (log_p + expected).abs_().nan_to_num_(torch.inf)
    # A GPU without Triton (`paella.kernels`) sorts: the other way makes it wait for the CPU.
    select = _selected if logits.device.type == "cpu" else _ranked
    return select(p, distance, mass, max(min_tokens, 1))


MARGIN = 1e-5  # for rounding, in `certain`


def certain(logits: Tensor, mass: float) -> Tensor:
    """Rows whose likeliest token is known to be all that `typical_keep` keeps with `min_tokens` 1, for a tenth of its
    work.

    Let p > 1/2 be its probability, which must reach the mass. The surprise of the others is at least -log(1-p), so it
    is the nearest to the entropy H wherever H is below the middle of -log p and -log(1-p). And H is at most what it is
    where the others are all alike.

    Args:
        logits: (n,N), any float dtype.
        mass: τ in (0, 1].

    Returns:
        (n,) bool.
    """
    log_p = logits.float().log_softmax(-1).amax(-1)
    p, others = log_p.exp(), -log_p.expm1()
    highest = others * math.log(max(logits.shape[-1] - 1, 1)) - torch.xlogy(others, others) - p * log_p
    return (p > max(mass, 0.5) + MARGIN) & (-others.log() - log_p > 2 * highest + MARGIN)


def _ranked(p: Tensor, distance: Tensor, mass: float, min_tokens: int) -> Tensor:
    """The tokens to keep (n,N), by sorting all."""
    order = distance.argsort(dim=-1, stable=True)
    before = p.gather(-1, order).double().cumsum(-1).roll(1, dims=-1)  # probability of those ranked ahead of each
    before[..., 0] = 0
    kept = before < mass
    kept[..., :min_tokens] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


BINS = 512
LOWEST = (127 - 12) << 5  # of bins that begin with a float32's exponent and 5 bits of its fraction: from 2^-12 to 2^4


def _selected(p: Tensor, distance: Tensor, mass: float, min_tokens: int) -> Tensor:
    """What `_ranked` returns, by sorting few: those of the bin of distances in which the last kept token lies.

    The bits of a float32 that is not negative order as the number does; its first ones are the bin.
    """
    bins = (distance.view(torch.int32) >> 18).sub_(LOWEST).clamp_(0, BINS - 1)
    index = bins.long()
    up_to = torch.zeros(len(p), 1 + BINS, dtype=torch.float64)  # probability of the bins before each
    up_to[:, 1:].scatter_add_(1, index, p.double())
    up_to = up_to.cumsum(-1)
    last = (up_to[:, 1:] < mass).sum(-1, keepdim=True)
    if min_tokens > 1:
        count = torch.zeros(len(p), BINS).scatter_add_(1, index, torch.ones(1, 1).expand_as(p))
        last = last.maximum((count.cumsum(-1) < min_tokens).sum(-1, keepdim=True))
    last_bin = last.int()  # of the dtype of `bins`: comparing is then several times faster
    keep = bins < last_bin

    row, token = (bins == last_bin).nonzero(as_tuple=True)
    order = (row << 32 | distance[row, token].view(torch.int32)).argsort(stable=True)
    row, token = row[order], token[order]
    first = torch.searchsorted(row, torch.arange(len(p)))  # each row's first in that bin
    before = F.pad(p[row, token].double().cumsum(0), (1, 0))
    before = before[:-1] + (up_to.gather(1, last)[:, 0] - before[first])[row]
    kept = before < mass
    if min_tokens > 1:
        kept |= torch.arange(len(row)) + (keep.sum(-1) - first)[row] < min_tokens  # their ranks
    keep[row, token] = kept
    return keep


CHOICE_TEMPERATURE = 4.5  # of the noise on confidences where all is noise: MaskGIT's published value


def confidence(logits: Tensor, tokens: Tensor, t: float, uniform: Tensor) -> Tensor:
    """How sure a predictor is of its tokens: their log-probability, plus Gumbel noise whose scale falls with t
    (MaskGIT, Chang et al. 2022).

    Args:
        logits: (B,N,h,w).
        tokens: (B,h,w) int64.
        t: in [0, 1], the time to come.
        uniform: (B,h,w) in [0, 1).

    Returns:
        (B,h,w) float32.
    """
    log_p = logits.float().log_softmax(1).gather(1, tokens[:, None])[:, 0]
    return log_p + CHOICE_TEMPERATURE * t * -(-uniform.log()).log()


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """One token per row from softmax(logits / temperature), by inverting its distribution at `uniform`.

    Args:
        logits: (..., N), -inf where a token must not come up.
        temperature: > 0.
        uniform: (...) in [0, 1), one random number a row.

    Returns:
        (...) int64.
    """
    p = (logits.float() / temperature).softmax(-1)
    cumulative = p.cumsum(-1)
    target = uniform[..., None].to(cumulative.dtype) * cumulative[..., -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return tokens.clamp(max=logits.shape[-1] - 1)
