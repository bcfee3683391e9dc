"""Trains the token predictor (method.md section 2) on the tokens of a VQGAN and the embeddings of a CLIP."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paella.baselines.transformer import TransformerBlock, TransformerConfig, TransformerPredictor
from paella.blocks import ResBlock
from paella.checkpoint import (
    Predictor,
    about_argument,
    load_clip,
    load_predictor,
    load_vqgan,
    model_folder,
    read_tensors,
    save_model,
)
from paella.clip import Clip
from paella.data import collate, length, open_data
from paella.data.encoded import Embeddings, Encoded, fingerprints
from paella.data.folder import Folder
from paella.data.rehearsed import Rehearsed
from paella.data.scenes import Scenes
from paella.evaluate.metrics import by_noise_level, mean_where
from paella.fingerprint import fingerprint
from paella.gpu import sent
from paella.images import blanked, contact_sheet, moved
from paella.method import method_of
from paella.pipeline import Paella
from paella.placement import resolve_device
from paella.sampler import SamplerSettings, for_variations
from paella.train.clip import warn_of_cut_captions
from paella.train.growth import grown
from paella.train.loop import CHECKPOINT, Loss, Stage, train
from paella.train.loss import SmoothedCrossEntropy
from paella.train.recipe import DataConfig, Recipe, check_shares
from paella.train.translation import embedded, holds, same_weights, translate
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN

TRANSLATED = 2048  # pictures and captions by which the embeddings of two CLIPs are compared
AT_ONCE = 256  # of these: bounds the memory
MOVING = 0.5  # share of the pictures asked for by their embedding that `image_shift` moves


@dataclass
class TokenRecipe(Recipe):
    """What predictors have in common, whatever their condition."""

    model: UNetConfig = field(default_factory=UNetConfig)  # num_labels and c_clip follow from the other two parts
    transformer: TransformerConfig | None = None  # in the U-Net's place; `model` then counts for nothing
    # Give the U-Net of init_from as many blocks as `model` says; the new ones begin by adding nothing.
    grow: bool = False
    checkpointing: bool = False  # keep of each block its input alone, and compute it again in the backward pass
    vqgan: str = "builtin"  # a model folder that holds a VQGAN
    null_share: float = 0.1  # samples that see the null condition, for classifier-free guidance
    region_share: float = 0.3  # samples of which a random region stays clean, as in- and outpainting find it
    region_null_share: float = 0.5  # of these, samples that see the null condition: inpainting without a prompt
    # t is u ** t_power, u uniform in 0 ... 1. Below 1, more samples are so noisy that only the condition says what they
    # show; the paper has 1.
    t_power: float = 1.0
    label_smoothing: float = 0.1
    name: str = "paella"  # recorded in the metadata of the model's pictures
    sampler: SamplerSettings = field(default_factory=SamplerSettings)  # the finished model's defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "", "null_share", "region_share", "region_null_share", "label_smoothing")
        if not 0 < self.t_power < math.inf:
            raise ValueError(f"t_power: must be a finite number above 0, not {self.t_power}")
        if self.grow and self.init_from is None:
            raise ValueError("grow: needs init_from, a model whose U-Net is to grow")


@dataclass
class PredictorRecipe(TokenRecipe):
    clip: str = "builtin"  # a model folder that holds a CLIP, or a folder or hub id of a published one
    image_share: float = 0.2  # samples that see the picture's embedding in place of the caption's
    # How far half of these are to draw the picture from where it was, either way, as a share of its side, in steps of
    # `data.snap` and whole tokens: variations of a picture then have in other places what it shows.
    image_shift: float = 0.0
    # Of samples with a clean region and no caption, those that see the embedding of the picture as far as it is clean:
    # a predictor that is told so what there is paints in context, and is asked so where a prompt is empty.
    context_share: float = 0.0
    variations: dict[str, float] = field(default_factory=dict)  # what `vary` has in place of the sampler's settings
    rehearse: float = 0.0  # with data.folder: share of the samples that are emoji scenes, so as not to forget these

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "", "image_share", "context_share", "rehearse")
        for_variations(self.sampler, self.variations)
        if not 0 <= self.image_shift < 1:
            raise ValueError(f"image_shift: must be at least 0 and less than 1, not {self.image_shift}")
        if self.context_share and not (self.region_share and self.region_null_share):
            raise ValueError("context_share: is of samples with a clean region and no caption, and there are none")
        if self.rehearse and self.data.encoded is not None:
            raise ValueError("rehearse: goes with data.folder, not with data.encoded")


def clean_regions(batch: int, height: int, width: int, share: float) -> Tensor:
    """(B,h,w) bool: for that share of the batch, a random rectangle or all but one; for the others nothing.

    Each side of a rectangle is at the grid's edge as often as not, so stripes and halves are frequent.
    """
    edges = torch.tensor([[0, height - 1], [0, width - 1]])
    corners = (torch.rand(batch, 2, 2).sort(dim=-1).values * torch.tensor([height, width])[:, None]).floor().long()
    low, high = torch.where(torch.rand(batch, 2, 2) < 0.5, edges, corners).unbind(-1)  # (B,2) each
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


def checkpoint_blocks(predictor: Predictor) -> None:
    """Makes each block keep its input alone for the backward pass, which computes the rest again (Chen et al. 2016)."""
    for block in predictor.modules():
        if isinstance(block, ResBlock | TransformerBlock):
            # nothing in a block is random
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]


class TokenStage(Stage):
    """Trains a predictor of the tokens of a VQGAN, under a condition that the subclasses know."""

    shipped = "predictor"
    learns_apart = True

    def __init__(self, recipe: TokenRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)  # of the initial weights
        with about_argument("vqgan"):
            self.vqgan = load_vqgan(recipe.vqgan).requires_grad_(False)
        recipe.data.check_fits(self.vqgan.config.f)
        self.data = self.open_data(recipe.data, recipe.seed)

    def open_data(self, config: DataConfig, seed: int) -> Any:
        return open_data(config, seed)

    def meanings(self) -> str:
        return fingerprint(self.vqgan.tokenizing_weights())

    def open_predictor(self, dim: int) -> Predictor:
        """The one to train, for embeddings of that size: a new one, or that of `init_from`."""
        start = self.recipe.init_from
        predictor = self._new_predictor(dim) if start is None else self._trained_predictor(start, dim)
        self.method = method_of(predictor)
        if self.recipe.checkpointing:
            checkpoint_blocks(predictor)
        return predictor

    def _new_predictor(self, dim: int) -> Predictor:
        recipe, codes = self.recipe, self.vqgan.config.n_embed
        predictor: Predictor
        if recipe.transformer is None:
            predictor = TokenPredictor(replace(recipe.model, num_labels=codes, c_clip=dim))
        else:
            grid = recipe.data.size // self.vqgan.config.f
            predictor = TransformerPredictor(replace(recipe.transformer, num_labels=codes, c_clip=dim, grid=grid))
        add_codebook(predictor.clf, self.vqgan)
        return predictor

    def _trained_predictor(self, folder: str, dim: int) -> Predictor:
        """The one of a model folder, to go on with.

        Raises:
            ValueError: it is for other embeddings or another VQGAN.
        """
        with about_argument("init_from"):
            predictor = load_predictor(folder).train()
        sizes = (self.vqgan.config.n_embed, dim)
        if (predictor.config.num_labels, predictor.config.c_clip) != sizes:
            raise ValueError(
                f"init_from: its predictor is not for this VQGAN of {sizes[0]} codes and embeddings of {dim}"
            )
        key = "model" if self.recipe.transformer is None else "transformer"
        if key == "transformer" and not isinstance(predictor, TransformerPredictor):
            raise ValueError(f"transformer: init_from is to go on with, and {folder} has a U-Net")
        if getattr(self.recipe, key).mask_token and not predictor.config.mask_token:
            raise ValueError(f"{key}.mask_token: init_from is to go on with, and {folder} has a predictor without one")
        if self.recipe.grow:
            if not isinstance(predictor, TokenPredictor):
                raise ValueError("grow: is for U-Nets, and init_from is a Transformer")
            predictor = grown(predictor, tuple(self.recipe.model.down_levels), tuple(self.recipe.model.up_levels))
        path = model_folder(folder) / "vqgan.safetensors"
        if path.is_file() and not holds(read_tensors(path), self.vqgan.tokenizing_weights()):
            warnings.warn(
                f"init_from: the predictor of {folder} was trained with another VQGAN than {self.recipe.vqgan}, and "
                "has to learn this one anew",
                stacklevel=2,
            )
        return predictor

    @abstractmethod
    def asked(
        self, u: Tensor, pixels: Tensor, annotations: Any, null: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the predictor is given beside the noisy tokens, nothing that says what is asked for where `null` (B,)
        bool is True; and the tokens (B,h,w) that it is to draw then, the picture's own `u` or others. `regions` (B,h,w)
        bool are clean."""

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B,h,w): the pictures as the predictor is to draw them."""
        self.vqgan.to(pixels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.vqgan.encode(pixels)

    def losses(self, pixels: Tensor, annotations: Any, step: int) -> Iterator[Loss]:
        recipe, device = self.recipe, pixels.device
        u = self.tokens(pixels)
        batch, height, width = u.shape
        regions = clean_regions(batch, height, width, recipe.region_share)
        null_share = torch.where(regions.flatten(1).any(1), recipe.region_null_share, recipe.null_share)
        condition, u = self.asked(u, pixels, annotations, torch.rand(batch) < null_share, regions)
        t = torch.rand(batch, device=device).pow(recipe.t_power)
        noise = torch.randint(self.vqgan.config.n_embed, u.shape, device=device)
        noisy = self.method.corrupt(u, t, noise, torch.rand(u.shape, device=device))
        noisy = torch.where(sent(regions, device), u, noisy)
        counted = self.method.counted(noisy)
        logits = self.modules["predictor"](noisy, condition, t)
        rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])  # contiguous: a softmax far faster
        losses, right = SmoothedCrossEntropy.apply(rows, u.flatten(), recipe.label_smoothing)
        each, right = losses.view_as(u), right.view_as(u)
        places = {"loss": each, "accuracy": right, "copied": noisy == u}
        figures = {name: mean_where(values, counted) for name, values in places.items()}
        metrics: dict[str, Tensor | float] = {name: values.nanmean() for name, values in figures.items()}
        for level, means in by_noise_level(t, figures).items():
            metrics |= {f"{name} t {level}": mean for name, mean in means.items()}
        yield "predictor", (each * counted).sum() / counted.sum().clamp(min=1), metrics

    def record(self, predictor: Predictor) -> dict[str, Any]:
        """What the model says of its making: the recipe, with the sizes that the predictor has in the end."""
        key = "model" if isinstance(predictor, TokenPredictor) else "transformer"
        return self.recipe.record() | {key: asdict(predictor.config)}

    @abstractmethod
    def pipeline(self, shipped: nn.Module) -> Paella:
        """The whole model, with these weights."""

    def save(self, shipped: nn.Module, folder: Path) -> None:
        save_model(self.pipeline(shipped), folder)


class PredictorStage(TokenStage):
    """The condition is the CLIP embedding of the caption, or of the picture."""

    recipe: PredictorRecipe
    data: Any  # scenes, a folder, or what was encoded

    def __init__(self, recipe: PredictorRecipe) -> None:
        super().__init__(recipe)
        with about_argument("clip"):
            self.clip = load_clip(recipe.clip)
        warn_of_cut_captions(self.clip, getattr(self.data, "folder", self.data))
        self.modules = {"predictor": self.open_predictor(self.clip.dim)}

    def open_data(self, config: DataConfig, seed: int) -> Any:
        data = super().open_data(config, seed)
        if not self.recipe.rehearse:
            return data
        if not isinstance(data, Folder):
            raise ValueError("rehearse: goes with data.folder; without one, all pictures are emoji scenes")
        scenes = open_data(replace(config, folder=None), seed)
        assert isinstance(scenes, Scenes)
        return Rehearsed(data, scenes, self.recipe.rehearse, seed)

    def meanings(self) -> str:
        return " ".join(fingerprints(self.vqgan, self.clip).values())

    def _trained_predictor(self, folder: str, dim: int) -> Predictor:
        predictor = super()._trained_predictor(folder, dim)
        path = model_folder(folder) / "clip"
        if (Path(self.recipe.output) / CHECKPOINT).exists() or not path.is_dir():
            return predictor  # a run that goes on has read the new CLIP before
        with about_argument("init_from"):
            own = Clip.load(path)
        if not same_weights(own, self.clip):
            explained = translate(predictor, *self._embedded_by(self.clip, own))
            warnings.warn(
                f"init_from: the predictor of {folder} was trained with another CLIP than {self.recipe.clip}, and "
                f"begins with a linear map from the one to the other, which explains {explained:.0%} of the variance",
                stacklevel=2,
            )
        return predictor

    def _embedded_by(self, *clips: Clip) -> list[Tensor]:
        """By each CLIP the embeddings (n,d) of the data's first pictures and captions."""
        count = min(TRANSLATED, length(self.data) or TRANSLATED)
        device = resolve_device("auto")
        rows: list[list[Tensor]] = []
        for start in range(0, count, AT_ONCE):
            pixels, captions = self.some(range(start, min(start + AT_ONCE, count)))
            rows.append([embedded(clip.to(device), pixels, captions) for clip in clips])
        return [torch.cat(of_one) for of_one in zip(*rows, strict=True)]

    def some(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Pictures (n,3,H,W) in [0, 1] of the data, and their captions."""
        return collate([self.data[i] for i in indices])

    @torch.no_grad()
    def asked(
        self, u: Tensor, pixels: Tensor, annotations: Any, null: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The caption's embedding (B,d), or for a share of the samples the picture's, of which the tokens are moved;
        where `null` is True zero, or for a share of those with a clean region the embedding of what is clean."""
        of_picture = torch.rand(len(u)) < self.recipe.image_share
        condition = self.embeddings(pixels, annotations, of_picture) * sent(~null[:, None], u.device)
        if self.recipe.image_shift:
            moving = of_picture & ~null & (torch.rand(len(u)) < MOVING)
            offsets = self.random_offsets(len(u)) * moving[:, None]
            u = moved(u, sent(offsets, u.device))
        return self.with_context(condition, pixels, null, regions), u

    def embeddings(self, pixels: Tensor, annotations: Any, of_picture: Tensor) -> Tensor:
        """(B,d): the pictures' embeddings where `of_picture` (B,) bool, elsewhere the captions'."""
        self.clip.to(pixels.device)
        embeddings = self.clip.embed_text(annotations).float()
        chosen = sent(of_picture.nonzero()[:, 0], pixels.device)
        if len(chosen):
            embeddings[chosen] = self.clip.embed_images(pixels[chosen]).float()
        return embeddings

    def random_offsets(self, count: int) -> Tensor:
        """(count,2) int64: tokens down and right, as far as `image_shift` allows."""
        recipe, f = self.recipe, self.vqgan.config.f
        step = math.lcm(recipe.data.snap, f) // f
        furthest = int(recipe.image_shift * recipe.data.size / (f * step))
        return torch.randint(-furthest, furthest + 1, (count, 2)) * step

    def with_context(self, condition: Tensor, data: Tensor, null: Tensor, regions: Tensor) -> Tensor:
        """The condition (B,d) where what is clean is embedded for its share of the samples. `data`: as of `losses`."""
        if not self.recipe.context_share:
            return condition
        of_region = null & regions.flatten(1).any(1)
        seen = of_region & (torch.rand(len(null)) < self.recipe.context_share)
        chosen = sent(seen.nonzero()[:, 0], data.device)
        if len(chosen):
            visible = blanked(self.pixels(data[chosen]), sent(regions, data.device)[chosen])
            condition[chosen] = self.clip.to(data.device).embed_images(visible).float()
        return condition

    def pixels(self, data: Tensor) -> Tensor:
        """(B,3,H,W) in [0, 1] of the training data as `losses` has them."""
        return data

    def pipeline(self, shipped: nn.Module) -> Paella:
        assert isinstance(shipped, Predictor)
        recipe, names = self.recipe, getattr(self.data, "names", [])
        return Paella(
            shipped,
            self.vqgan,
            self.clip,
            recipe.sampler,
            recipe.data.size,
            name=recipe.name,
            objects=names,
            recipe=self.record(shipped),
            variations=recipe.variations,
        )

    def preview(self, shipped: nn.Module) -> Image.Image:
        data = getattr(self.data, "folder", self.data)
        captions = [data.caption(i) for i in range(min(16, length(data) or 16))]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "prompt: ")  # of captions that are cut: `warn_of_cut_captions` said so
            pictures = self.pipeline(shipped).generate(captions)
        return contact_sheet(pictures, captions)


class EncodedStage(PredictorStage):
    """The same on tokens and embeddings that are there already: a step costs only the predictor."""

    data: Encoded

    def open_predictor(self, dim: int) -> Predictor:
        self.data.check_fits(self.vqgan, self.clip, self.recipe.data)
        return super().open_predictor(dim)

    def open_data(self, config: DataConfig, seed: int) -> Encoded:
        assert config.encoded is not None
        try:
            return Encoded(config.encoded)
        except ValueError as error:
            raise ValueError(f"data.encoded: {error}") from error

    def tokens(self, tokens: Tensor) -> Tensor:
        return tokens

    def embeddings(self, tokens: Tensor, annotations: Embeddings, of_picture: Tensor) -> Tensor:
        return torch.where(sent(of_picture[:, None], tokens.device), annotations.image, annotations.text)

    def some(self, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
        tokens = torch.stack([self.data[i][0] for i in indices])
        return self.pixels(tokens), [self.data.caption(i) for i in indices]

    def pixels(self, tokens: Tensor) -> Tensor:
        return self.vqgan.to(tokens.device).decode(tokens)


def main(recipe: PredictorRecipe) -> Path:
    stage = PredictorStage if recipe.data.encoded is None else EncodedStage
    return train(stage(recipe), recipe)
