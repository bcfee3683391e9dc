"""How near pictures are to captions in a CLIP's space: the CLIP score (Hessel et al. 2021, not scaled)."""

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
    image, text = unit_embeddings(clip, pictures, captions)
    return (image * text).sum(1).cpu()


def unit_embeddings(clip: Clip, pictures: Sequence[Image.Image], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings of norm one, as the contrastive loss compares them: of the pictures (P,d) and the captions (C,d)."""
    training, clip = clip.model.training, clip.unwhitened()  # which is in evaluation mode
    image, text = [], []
    for start in range(0, len(pictures), AT_ONCE):
        image.append(clip.embed_images(to_tensor(pictures[start : start + AT_ONCE]).to(clip.model.device)))
    for start in range(0, len(captions), AT_ONCE):
        text.append(clip.embed_text(captions[start : start + AT_ONCE]))
    clip.model.train(training)
    return F.normalize(torch.cat(image).float(), dim=-1), F.normalize(torch.cat(text).float(), dim=-1)
