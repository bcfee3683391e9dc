"""Labels in CLIP's place: an embedding for each class, of a picture or of each place in it (method.md section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

NULL = -1  # the label of the null condition, whose embedding is zero


@dataclass(frozen=True)
class LabelsConfig:
    """What the labels are. A prompt is one of the names.

    Attributes:
        names: label number i is `names[i]`.
        dim: d, the size of an embedding.
        per_place: whether the predictor was trained on maps of labels; else, on one label for each picture.
    """

    names: tuple[str, ...]
    dim: int
    per_place: bool

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError("names: must be one or more labels, all different")


class Labels(nn.Module):
    """A table of embeddings that is trained along with the predictor."""

    def __init__(self, config: LabelsConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(len(config.names), config.dim)

    @property
    def dim(self) -> int:
        """d, the size of an embedding."""
        return self.config.dim

    def forward(self, labels: Tensor) -> Tensor:
        """Label numbers (B,h,w) int64, `NULL` where there is none -> a condition map (B,d,h,w)."""
        embeddings = self.embedding(labels.clamp(min=0)) * (labels != NULL)[..., None]
        return embeddings.permute(0, 3, 1, 2)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Names of labels -> embeddings (B,d).

        Raises:
            ValueError: there is no such label.
        """
        numbers = torch.tensor([self.number(text) for text in texts], device=self.embedding.weight.device)
        return self.embedding(numbers)

    def number(self, name: str) -> int:
        """The number of the label of that name.

        Raises:
            ValueError: there is none.
        """
        names = self.config.names
        if name not in names:
            known = ", ".join(names[:20]) + ", …" * (len(names) > 20)
            raise ValueError(f"prompt: must be one of this model's labels, {known}; not {name!r}")
        return names.index(name)

    def regions(self, labels: np.ndarray, f: int) -> list[tuple[str, np.ndarray]]:
        """A map of label numbers (h,w) as the regions of `Paella.compose`: each name with a mask (h·f,w·f) bool."""
        pixels = labels.repeat(f, 0).repeat(f, 1)
        return [(self.config.names[number], pixels == number) for number in np.unique(labels)]

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Always raises ValueError: a table cannot look at pictures."""
        raise ValueError("image: this model knows labels alone, so no picture can stand in for a prompt")

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        from paella.checkpoint import save_module, write_json

        save_module(self, folder / "labels.safetensors", dtype)
        write_json(asdict(self.config), folder / "labels.json")

    @classmethod
    def load(cls, folder: Path) -> Labels:
        """The labels of a model folder, float32.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        from paella.checkpoint import config_from, load_module, read_json, read_tensors

        config = config_from(LabelsConfig, read_json(folder / "labels.json"), folder / "labels.json")
        weights = folder / "labels.safetensors"
        return load_module(lambda: cls(config), lambda: read_tensors(weights), weights)
