"""CLIP scores, and intervals of means, on cases whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from paella.evaluate.clip_score import clip_scores
from paella.evaluate.metrics import bootstrap
from paella.pipeline import Paella


class Colours:
    """A CLIP of pure colours: the embedding of each is a direction of its own."""

    NAMES = ("red", "lime", "blue")
    model = SimpleNamespace(device=torch.device("cpu"), training=False, train=lambda mode: None)

    def unwhitened(self) -> Colours:
        return self

    def embed_images(self, pixels: Tensor) -> Tensor:
        return 5 * pixels.mean((2, 3))

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return 3 * F.one_hot(torch.tensor([self.NAMES.index(text) for text in texts]), 3).float()


def test_clip_scores_of_pairs_and_of_shuffled_pairs() -> None:
    clip: Any = Colours()
    names = [Colours.NAMES[i % 3] for i in range(150)]  # of more than one batch
    pictures = [Image.new("RGB", (8, 8), name) for name in names]
    assert clip_scores(clip, pictures, names).tolist() == pytest.approx([1] * 150)
    assert clip_scores(clip, pictures, [*names[1:], names[0]]).tolist() == pytest.approx([0] * 150)
    with pytest.raises(ValueError, match="150 pictures, 149 captions"):
        clip_scores(clip, pictures, names[1:])


def test_clip_scores_are_cosines_of_embeddings_that_are_not_whitened(tiny: Paella) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    (score,) = clip_scores(tiny.clip, [picture], ["a dog"])  # type: ignore[arg-type]
    plain = tiny.clip.unwhitened()  # type: ignore[union-attr]
    pixels = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 32, 32)
    image, text = plain.embed_images(pixels), plain.embed_text(["a dog"])
    assert score.item() == pytest.approx(((image @ text.T) / image.norm() / text.norm()).item(), abs=1e-6)


def test_the_bootstrap_s_interval_is_that_of_a_mean() -> None:
    assert bootstrap([0.5] * 10) == {"value": 0.5, "low": 0.5, "high": 0.5}
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = bootstrap(values)
    half = 1.96 * values.std().item() / 20
    assert found["value"] == pytest.approx(values.mean().item(), abs=1e-6)
    assert found["value"] - found["low"] == pytest.approx(half, rel=0.1)
    assert found["high"] - found["value"] == pytest.approx(half, rel=0.1)
    assert bootstrap(values) == found
