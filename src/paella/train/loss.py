"""Losses: the predictor's, cross-entropy with label smoothing (method.md section 2) at little cost on a CPU; CLIP's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CACHED = 2**18  # logits at a time on a CPU: with what is computed from them they fit its cache


class SmoothedCrossEntropy(torch.autograd.Function):
    """torch's `cross_entropy` with label smoothing, unreduced, and whether no other label is likelier: logits (n,N) of
    any float dtype, labels (n,) -> losses (n,) float32, right (n,) bool.

    Exponentials are what takes the time on a CPU: each is computed once, for loss and gradient alike, where torch
    computes it twice. Nothing of the logits' size is kept but their gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        codes = logits.shape[1]
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        at_once = max(CACHED // codes, 1) if logits.device.type == "cpu" else len(logits)
        losses, right = [], []
        for start in range(0, len(logits), at_once):
            part = slice(start, start + at_once)
            x, label = logits[part].float(), labels[part, None]
            p = x.softmax(1)
            highest, own = x.amax(1), x.gather(1, label)[:, 0]
            log_sum = highest - p.amax(1).log()  # of exp(x): the likeliest has p = exp(highest) / sum
            losses.append(log_sum - (1 - smoothing) * own - smoothing * x.mean(1))
            right.append(own == highest)
            if gradient is not None:
                p.sub_(smoothing / codes)
                gradient[part] = p.scatter_add_(1, label, torch.full_like(p[:, :1], smoothing - 1))
        ctx.gradient = gradient
        result = torch.cat(losses), torch.cat(right)
        ctx.mark_non_differentiable(result[1])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        of_logits, ctx.gradient = ctx.gradient, None  # it is changed, so a second backward pass must not find it
        factors = gradient[:, None].to(of_logits.dtype)  # of another dtype they would cost two copies of the logits
        return of_logits.mul_(factors), None, None


def contrastive(logits: Tensor, right: Tensor) -> Tensor:
    """The mean over rows (B,n) of -log of the probability of all columns that are right, (B,n) bool: a caption that is
    there twice is as right in both places. In float32: autocast on a CPU would leave it in bfloat16."""
    logits = logits.float()
    return (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).mean()
