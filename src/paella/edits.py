"""One small function for each ability: what is known goes in, a Canvas comes out (method.md section 5).

They combine: `free` takes any canvas, so a picture can be extended, get a hole elsewhere, and be sampled once, each
place under its own prompt (`condition_map`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from paella.canvas import Canvas
from paella.noise import add_noise


def random_tokens(generators: Sequence[torch.Generator], height: int, width: int, codes: int) -> Tensor:
    """(B,h,w) int64 on the CPU, uniform over {0 … N-1}, each picture from its own generator."""
    return torch.stack([torch.randint(codes, (height, width), generator=g, device="cpu") for g in generators])


def text_to_image(noise: Tensor, condition: Tensor) -> Canvas:
    """Nothing is known: random tokens (B,h,w) under a condition (B,d,·,·). Variations, interpolation and several
    prompts in one picture differ in the condition alone."""
    return Canvas(noise, torch.zeros_like(noise, dtype=torch.bool), condition)


def known(tokens: Tensor, condition: Tensor) -> Canvas:
    """Everything is known, tokens (B,h,w): nothing would change, until `free` makes a hole."""
    return Canvas(tokens, torch.ones_like(tokens, dtype=torch.bool), condition)


def free(canvas: Canvas, hole: Tensor, noise: Tensor) -> Canvas:
    """The canvas with a hole (h,w) bool to be filled: in- and outpainting."""
    return replace(canvas, tokens=torch.where(hole, noise, canvas.tokens), frozen=canvas.frozen & ~hole)


def renoised(tokens: Tensor, strength: float, noise: Tensor, uniform: Tensor, condition: Tensor) -> Canvas:
    """The picture's tokens (B,h,w), noised to t = strength: structural editing, to be sampled with the renoise source
    "previous". For `noise` and `uniform` see `paella.noise.add_noise`."""
    t = tokens.new_full((len(tokens),), strength, dtype=torch.float32)
    noisy = add_noise(tokens, t, noise, uniform)
    return Canvas(noisy, torch.zeros_like(tokens, dtype=torch.bool), condition, start=strength)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of two embeddings (d,): `start` itself at share 0, `end` at 1.

    Where there is no angle between them, or no one plane (opposite or zero vectors), it is linear.
    """
    cosine = F.cosine_similarity(start.double(), end.double(), dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    if not start.any() or not end.any() or angle.sin() < 1e-4:
        return start.lerp(end, share)
    before, after = (angle * (1 - share)).sin() / angle.sin(), (angle * share).sin() / angle.sin()
    return before.to(start) * start + after.to(start) * end


def soft_weights(masks: Tensor, f: int, softness: int) -> Tensor:
    """How much each region counts at each token.

    Args:
        masks: (R,H,W) bool, the regions' pixels; H and W are multiples of f.
        softness: width in pixels of the ramp across a region's border.

    Returns:
        (R+1,h,w) in [0, 1], the last of what no region covers; the sum is 1 everywhere.
    """
    weights = masks[:, None].float()
    if softness > 0:
        reach = min(softness // 2, *masks.shape[1:])
        weights = F.pad(weights, (reach,) * 4, mode="replicate")
        for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):  # a square one would cost its side times as much
            weights = F.avg_pool2d(weights, window, stride=1)
    weights = F.avg_pool2d(weights, f)[:, 0]
    rest = (1 - weights.sum(0, keepdim=True)).clamp(min=0)
    weights = torch.cat([weights, rest])
    return weights / weights.sum(0, keepdim=True)


def condition_map(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Embeddings (R,d) by weights (R,h,w) -> one condition map (1,d,h,w) (multi-conditioning)."""
    return torch.einsum("rd,rhw->dhw", embeddings, weights.to(embeddings))[None]
