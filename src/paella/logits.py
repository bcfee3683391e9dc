"""Pure functions on logits: guidance, entropy, the locally typical filter, and the draw."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: l_∅ + w·(l_c - l_∅), for any w, rounded once. A weight of 1 changes nothing."""
    return torch.lerp(unconditional, conditional, weight)


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
    return _kept(log_p, log_p.exp(), mass, min_tokens).bool()


def typical_weights(log_p: Tensor, mass: float, min_tokens: int, temperature: float) -> Tensor:
    """What to draw from: p^(1/temperature) of the tokens that `typical_keep` keeps and 0 for others, up to a factor.

    Args:
        log_p: (n,N) float32, normalized, -inf where a token must not come up.
        mass, min_tokens: see `typical_keep`.
        temperature: > 0.

    Returns:
        (n,N) float32.
    """
    if mass >= 1:
        return (log_p / temperature).softmax(-1)
    p = log_p.exp()
    kept = _kept(log_p, p, mass, min_tokens)
    if temperature == 1:
        return p.mul_(kept)
    # What is left out goes before the softmax: beside a likely token that is, all that are kept might be too small for
    # a float. Not as -inf, as 0 · inf is no number.
    left_out = (kept - 1) * torch.finfo(log_p.dtype).max
    return (log_p / temperature).add_(left_out).softmax(-1)


def _kept(log_p: Tensor, p: Tensor, mass: float, min_tokens: int) -> Tensor:
    """(n,N), 1 for the tokens to keep and 0 for others, as floats: with these a CPU is several times faster than with
    booleans, so comparisons give them too."""
    expected = -(p * log_p).nan_to_num_(0.0).sum(-1, keepdim=True)  # the entropy; p = 0: 0 · -inf
    distance = (log_p + expected).abs_().nan_to_num_(torch.inf)
    # A GPU without Triton (`paella.kernels`) sorts: the other way makes it wait for the CPU.
    select = _selected if log_p.device.type == "cpu" else _ranked
    return select(p, distance, mass, max(min_tokens, 1))


MARGIN = 1e-5  # for rounding, in `certain`


def certain(log_p: Tensor, mass: float) -> Tensor:
    """Rows whose likeliest token is known to be all that `typical_keep` keeps with `min_tokens` 1, for a tenth of its
    work.

    Let p > 1/2 be its probability, which must reach the mass. The surprise of the others is at least -log(1-p), so it
    is the nearest to the entropy H wherever H is below the middle of -log p and -log(1-p). And H is at most what it is
    where the others are all alike.

    Args:
        log_p: (n,N) float32, normalized.
        mass: τ in (0, 1].

    Returns:
        (n,) bool.
    """
    best = log_p.amax(-1)
    if (best <= math.log(max(mass, 0.5))).all():
        return torch.zeros_like(best, dtype=torch.bool)
    p, others = best.exp(), -best.expm1()
    highest = others * math.log(max(log_p.shape[-1] - 1, 1)) - torch.xlogy(others, others) - p * best
    return (p > max(mass, 0.5) + MARGIN) & (-others.log() - best > 2 * highest + MARGIN)


def _ranked(p: Tensor, distance: Tensor, mass: float, min_tokens: int) -> Tensor:
    """`_kept` by sorting all."""
    order = distance.argsort(dim=-1, stable=True)
    before = p.gather(-1, order).double().cumsum(-1).roll(1, dims=-1)  # probability of those ranked ahead of each
    before[..., 0] = 0
    kept = before < mass
    kept[..., :min_tokens] = True
    return torch.empty_like(p).scatter_(-1, order, kept.to(p.dtype))


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
    keep = torch.lt(bins, last_bin, out=torch.empty_like(p))

    found = np.flatnonzero(bins.numpy() == last_bin.numpy())  # which torch takes three times as long for
    row, token = torch.from_numpy(found // p.shape[1]), torch.from_numpy(found % p.shape[1])
    order = (row << 32 | distance[row, token].view(torch.int32)).argsort(stable=True)
    row, token = row[order], token[order]
    first = torch.searchsorted(row, torch.arange(len(p)))  # each row's first in that bin
    before = F.pad(p[row, token].double().cumsum(0), (1, 0))
    before = before[:-1] + (up_to.gather(1, last)[:, 0] - before[first])[row]
    kept = before < mass
    if min_tokens > 1:
        kept |= torch.arange(len(row)) + (keep.sum(-1).long() - first)[row] < min_tokens  # their ranks
    keep[row, token] = kept.to(keep.dtype)
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


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One token per row, in proportion to its weight, by inverting their distribution at `uniform`.

    It is done in two steps, a group of tokens and then one of the group, as adding up a whole row takes a CPU longer
    than all else.

    Args:
        weights: (..., N) float32, 0 or more, not all 0.
        uniform: (...) in [0, 1), one random number a row.

    Returns:
        (...) int64.
    """
    groups = weights.unflatten(-1, (-1, math.gcd(weights.shape[-1], 64)))
    sums = groups.sum(-1)
    up_to = sums.cumsum(-1)
    target = uniform[..., None].to(weights.dtype) * up_to[..., -1:]
    group = _first_above(up_to, target)
    within = (target - (up_to - sums).gather(-1, group)).clamp_(min=0)
    own = groups.take_along_dim(group[..., None], -2).squeeze(-2)
    return (group * own.shape[-1] + _first_above(own.cumsum(-1), within)).squeeze(-1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """Where a sum is above the target for the first time, or as high as any: (..., n), (..., 1) -> (..., 1)."""
    return torch.searchsorted(cumulative, target, right=True).minimum(cumulative.argmax(-1, keepdim=True))
