"""Trains the token predictor (method.md section 2) on the tokens of a VQGAN and the embeddings of a CLIP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from paella.checkpoint import load_clip, load_predictor, load_vqgan, save_model
from paella.data import length, open_data
from paella.evaluate.metrics import by_noise_level
from paella.images import contact_sheet
from paella.noise import add_noise
from paella.pipeline import Paella
from paella.sampler import SamplerSettings
from paella.train.loop import Loss, Stage, train
from paella.train.recipe import DataConfig, Recipe
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN


@dataclass
class TokenRecipe(Recipe):
    """What predictors have in common, whatever their condition."""

    model: UNetConfig = field(default_factory=UNetConfig)  # num_labels and c_clip follow from the other two parts
    vqgan: str = "builtin"  # a model folder that holds a VQGAN
    null_share: float = 0.1  # samples that see the null condition, for classifier-free guidance
    region_share: float = 0.15  # samples of which a random region stays clean, as in- and outpainting find it
    label_smoothing: float = 0.1
    name: str = "paella"  # recorded in the metadata of the model's pictures
    sampler: SamplerSettings = field(default_factory=SamplerSettings)  # the finished model's defaults


@dataclass
class PredictorRecipe(TokenRecipe):
    clip: str = "builtin"  # a model folder that holds a CLIP, or a folder or hub id of a published one
    image_share: float = 0.2  # samples that see the picture's embedding in place of the caption's


def clean_regions(batch: int, height: int, width: int, share: float) -> Tensor:
    """(B,h,w) bool: for that share of the batch, a random rectangle or all but one; for the others nothing."""
    corners = torch.rand(batch, 2, 2).sort(dim=-1).values * torch.tensor([height, width])[:, None]
    low, high = corners.floor().long().unbind(-1)  # (B,2) each
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= low[:, :1]) & (rows <= high[:, :1])
    inside_columns = (columns >= low[:, 1:]) & (columns <= high[:, 1:])
    inside = inside_rows[:, :, None] & inside_columns[:, None]
    outward = torch.rand(batch) < 0.5
    chosen = torch.rand(batch) < share
    return (inside ^ outward[:, None, None]) & chosen[:, None, None]


@torch.no_grad()
def add_codebook(clf: nn.Conv2d, vqgan: VQGAN) -> None:
    """Adds a random projection of the codebook to the weights of the last layer, so that codes that look alike start
    with logits that change alike."""
    codes = vqgan.quantize.lookup(torch.arange(vqgan.config.n_embed)[None, None])[0, :, 0]  # (C,N)
    codes = (codes - codes.mean(1, keepdim=True)) / codes.std(1, keepdim=True)
    width = clf.in_channels
    projection = torch.randn(width, len(codes)) / (width * len(codes)) ** 0.5
    clf.weight += (projection @ codes).T[:, :, None, None]


class TokenStage(Stage):
    """Trains a predictor of the tokens of a VQGAN, under a condition that the subclasses know."""

    shipped = "predictor"

    def __init__(self, recipe: TokenRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)  # of the initial weights
        self.vqgan = load_vqgan(recipe.vqgan).requires_grad_(False)
        self.data = self.open_data(recipe.data, recipe.seed)

    def open_data(self, config: DataConfig, seed: int) -> Any:
        return open_data(config, seed)

    def new_predictor(self, dim: int) -> TokenPredictor:
        """An untrained one, for embeddings of that size."""
        sizes = {"num_labels": self.vqgan.config.n_embed, "c_clip": dim}
        predictor = TokenPredictor(UNetConfig(**{**vars(self.recipe.model), **sizes}))
        add_codebook(predictor.clf, self.vqgan)
        return predictor

    def trained_predictor(self, folder: str, dim: int) -> TokenPredictor:
        """The one of a model folder, to go on with.

        Raises:
            ValueError: it is for other embeddings or another VQGAN.
        """
        predictor = load_predictor(folder).train()
        sizes = (self.vqgan.config.n_embed, dim)
        if (predictor.config.num_labels, predictor.config.c_clip) != sizes:
            raise ValueError(
                f"init_from: its predictor is not for this VQGAN of {sizes[0]} codes and embeddings of {dim}"
            )
        return predictor

    @abstractmethod
    def condition(self, pixels: Tensor, annotations: Sequence[Any]) -> Tensor:
        """What the predictor is given beside the noisy tokens, for each sample."""

    def losses(self, pixels: Tensor, annotations: Sequence[Any], step: int) -> Iterator[Loss]:
        recipe, device = self.recipe, pixels.device
        self.vqgan.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        u = self.vqgan.encode(pixels)
        batch, height, width = u.shape
        condition = self.condition(pixels, annotations)
        t = torch.rand(batch).to(device)
        noise = torch.randint(self.vqgan.config.n_embed, u.shape).to(device)
        noisy = add_noise(u, t, noise, torch.rand(u.shape).to(device))
        noisy = torch.where(clean_regions(batch, height, width, recipe.region_share).to(device), u, noisy)
        logits = self.modules["predictor"](noisy, condition, t)
        rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).float()  # contiguous: a softmax far faster
        each = F.cross_entropy(rows, u.flatten(), label_smoothing=recipe.label_smoothing, reduction="none")
        each = each.view(batch, -1).mean(1)
        right = (rows.argmax(1) == u.flatten()).float().view(batch, -1).mean(1)
        copied = (noisy == u).float().mean((1, 2))
        figures = {"loss": each, "accuracy": right, "copied": copied}
        metrics: dict[str, Tensor | float] = {name: values.mean() for name, values in figures.items()}
        for level, means in by_noise_level(t, figures).items():
            metrics |= {f"{name} t {level}": mean for name, mean in means.items()}
        yield "predictor", each.mean(), metrics

    @abstractmethod
    def pipeline(self, shipped: nn.Module) -> Paella:
        """The whole model, with these weights."""

    def save(self, shipped: nn.Module, folder: Path) -> None:
        save_model(self.pipeline(shipped), folder)


class PredictorStage(TokenStage):
    """The condition is the CLIP embedding of the caption, or of the picture."""

    recipe: PredictorRecipe

    def __init__(self, recipe: PredictorRecipe) -> None:
        super().__init__(recipe)
        self.clip = load_clip(recipe.clip)
        if recipe.init_from is None:
            predictor = self.new_predictor(self.clip.dim)
        else:
            predictor = self.trained_predictor(recipe.init_from, self.clip.dim)
        self.modules = {"predictor": predictor}

    @torch.no_grad()
    def condition(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """(B,d): the caption's embedding; the picture's own, or the null condition, for a share of the samples."""
        self.clip.to(pixels.device)
        condition = self.clip.embed_text(captions).float()
        chosen = (torch.rand(len(captions)) < self.recipe.image_share).nonzero()[:, 0].to(pixels.device)
        if len(chosen):
            condition[chosen] = self.clip.embed_images(pixels[chosen]).float()
        null = (torch.rand(len(captions)) < self.recipe.null_share).to(pixels.device)
        return condition * ~null[:, None]

    def pipeline(self, shipped: nn.Module) -> Paella:
        assert isinstance(shipped, TokenPredictor)
        recipe, names = self.recipe, getattr(self.data, "names", [])
        return Paella(
            shipped,
            self.vqgan,
            self.clip,
            recipe.sampler,
            recipe.data.size,
            name=recipe.name,
            objects=names,
            recipe=recipe.record(),
        )

    def preview(self, shipped: nn.Module) -> Image.Image:
        count = min(16, length(self.data) or 16)
        captions = [self.data[i][1] for i in range(count)]
        return contact_sheet(self.pipeline(shipped).generate(captions), captions)


def main(recipe: PredictorRecipe) -> Path:
    return train(PredictorStage(recipe), recipe)
