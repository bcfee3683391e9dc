"""CLIP score: how near pictures are to their captions in a CLIP's space (Hessel et al. 2021, not scaled)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from paella.images import to_tensor

if TYPE_CHECKING:
    from paella.clip import Clip

AT_ONCE = 100  # bounds the memory


def clip_scores(clip: Clip, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
    """The cosine of each picture's embedding and its caption's, as CLIP learned to compare them: (n,) on the CPU.

    What chance gives is the score of the same pictures with one another's captions. A model that draws what its own
    CLIP asks for is judged by the one that asked: such scores compare settings of one model, and not models.

    Args:
        clip: whitened embeddings are compared as they were before.
        pictures: RGB, of one size; one to a caption.

    Raises:
        ValueError: not one to a caption.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures, {len(captions)} captions: not one to one")
    clip = clip.unwhitened()
    scores = []
    for start in range(0, len(pictures), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        image = clip.embed_images(to_tensor(pictures[part]).to(clip.model.device))
        text = clip.embed_text(list(captions[part]))
        scores.append(F.cosine_similarity(image.float(), text.float()).cpu())
    return torch.cat(scores)
