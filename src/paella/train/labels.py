"""Trains a predictor on labels in place of CLIP embeddings: one for each picture, or a map of them (method.md 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from paella.checkpoint import Predictor, about_argument, model_folder
from paella.data import length, open_data
from paella.fingerprint import fingerprint
from paella.gpu import sent
from paella.images import contact_sheet
from paella.labels import NULL, Labels, LabelsConfig
from paella.pipeline import Paella
from paella.train.loop import train
from paella.train.predictor import TokenRecipe, TokenStage
from paella.train.recipe import DataConfig


@dataclass
class LabelRecipe(TokenRecipe):
    per_place: bool = False  # scenes: a map that says which object, or which background, is at each place
    dim: int = 64  # d, the size of an embedding


class Labelled(nn.Module):
    """A predictor and the table of its labels: they are trained, and averaged, as one."""

    def __init__(self, predictor: Predictor, labels: Labels) -> None:
        super().__init__()
        self.predictor, self.labels = predictor, labels

    def forward(self, tokens: Tensor, labels: Tensor, t: Tensor) -> Tensor:
        """Tokens (B,h,w), label numbers (B,h',w'), t (B,) -> logits (B,N,h,w)."""
        return self.predictor(tokens, self.labels(labels), t)


class LabelStage(TokenStage):
    """Each sample of the data comes with a label's name; or, per place, with a map of label numbers."""

    recipe: LabelRecipe
    data: Any  # pictures with the names of labels, or with maps

    def __init__(self, recipe: LabelRecipe) -> None:
        super().__init__(recipe)
        if recipe.init_from is None:
            labels = Labels(LabelsConfig(self.label_names(), recipe.dim, recipe.per_place))
        else:
            with about_argument("init_from"):
                labels = Labels.load(model_folder(recipe.init_from)).train()
            if (labels.config.names, labels.config.per_place) != (self.label_names(), recipe.per_place):
                raise ValueError("init_from: its labels are not those of this recipe and its data")
        self.labels = labels
        self.modules = {"predictor": Labelled(self.open_predictor(labels.dim), labels)}

    def open_data(self, config: DataConfig, seed: int) -> Any:
        if not self.recipe.per_place:
            if config.folder is None and config.wording != "name":
                raise ValueError(f"data.wording: must be name: a scene's label is its object, not {config.wording!r}")
            return open_data(config, seed)
        if config.folder is not None:
            raise ValueError("per_place: maps of labels are drawn for scenes alone, so data.folder must not be set")
        from paella.data.scenes import LabelMaps

        return LabelMaps(open_data(config, seed), self.vqgan.config.f)  # type: ignore[arg-type]

    def meanings(self) -> str:
        return fingerprint(about=f"{super().meanings()} {self.label_names()}")

    def label_names(self) -> tuple[str, ...]:
        """Those of the scenes, or whatever the captions of a folder are."""
        if self.recipe.per_place:
            return self.data.labels
        if self.recipe.data.folder is None:
            return tuple(self.data.names)
        return tuple(sorted(set(self.data.all_captions)))

    @torch.no_grad()
    def asked(
        self, u: Tensor, pixels: Tensor, annotations: Sequence[Any], null: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B,1,1) or, per place, (B,h,w) int64, `NULL` where `null` is True; and the picture's own tokens."""
        if self.recipe.per_place:
            labels = torch.stack([torch.from_numpy(labels) for labels in annotations])
        else:
            labels = torch.tensor([self.labels.number(name) for name in annotations])[:, None, None]
        return sent(labels.masked_fill(null[:, None, None], NULL), pixels.device), u

    def pipeline(self, shipped: nn.Module) -> Paella:
        assert isinstance(shipped, Labelled)
        recipe, labels = self.recipe, shipped.labels
        return Paella(
            shipped.predictor,
            self.vqgan,
            labels,
            recipe.sampler,
            recipe.data.size,
            name=recipe.name,
            objects=labels.config.names,
            recipe=self.record(shipped.predictor) | {"dim": labels.dim},
        )

    def preview(self, shipped: nn.Module) -> Image.Image:
        assert isinstance(shipped, Labelled)
        pipeline = self.pipeline(shipped)
        samples = [self.data[i] for i in range(min(8, length(self.data) or 8))]
        if not self.recipe.per_place:
            names = [name for _, name in samples]
            return contact_sheet(pipeline.generate(names), names)
        drawn = [pipeline.compose(shipped.labels.regions(map_, self.data.f), softness=0)[0] for _, map_ in samples]
        return contact_sheet([picture for picture, _ in samples] + drawn, ["a picture"] * 8 + ["its map drawn"] * 8)


def main(recipe: LabelRecipe) -> Path:
    return train(LabelStage(recipe), recipe)
