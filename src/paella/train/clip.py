"""Trains a small CLIP from nothing: a BPE tokenizer on the captions, then the contrastive loss with hard negatives."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from paella.clip import Clip, Whitening
from paella.data import length, open_data
from paella.data.folder import Folder
from paella.data.scenes import Scenes, hard_scenes
from paella.evaluate.clip_score import unit_embeddings
from paella.gpu import sent
from paella.images import contact_sheet
from paella.processes import of_all
from paella.train.loop import Loss, Stage, train
from paella.train.loss import contrastive
from paella.train.recipe import Recipe

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerFast

GALLERY = 1000
MAX_SCALE = 100.0  # the logit scale may not pass this (Radford et al. 2021)
WHITENED = 4096  # samples that the whitening is fitted to
THUMBNAIL = 16  # pixels, a side


@dataclass
class ClipConfig:
    dim: int = 256  # d, the size of an embedding
    width: int = 192
    heads: int = 6
    text_layers: int = 4
    vision_layers: int = 4
    patch: int = 8
    vocabulary: int = 1024
    context: int = 32


@dataclass
class ClipRecipe(Recipe):
    model: ClipConfig = field(default_factory=ClipConfig)
    tokenizer_captions: int = 20000  # how many captions the BPE is learned from
    tokenizer_wording: str | None = None  # scenes: of these captions; None = as those that are trained on
    # Weight of a second loss: the squared error of a thumbnail that a linear layer reads from an embedding. The
    # contrastive loss alone is content with embeddings that tell one picture from a batch of others; a predictor has to
    # read from them what each part of the picture looks like.
    thumbnail: float = 20.0
    text_only: bool = False  # train the text tower alone, so that pictures keep their embeddings; needs init_from


def train_tokenizer(captions: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (any text has tokens), lower case, learned from the captions."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[start, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end)


def build_clip(config: ClipConfig, image_size: int, tokenizer: PreTrainedTokenizerFast) -> Clip:
    """An untrained CLIP of that size."""
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
    }
    text = {
        **tower,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": config.text_layers,
        "max_position_embeddings": config.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **tower,
        "num_hidden_layers": config.vision_layers,
        "image_size": image_size,
        "patch_size": config.patch,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.dim))
    # transformers starts with places and patches of 0.02, made for long training: with these, retrieval rose sooner
    for name, weight in model.vision_model.named_parameters():
        if "position_embedding" in name:
            nn.init.normal_(weight)
        elif weight.ndim > 1:
            nn.init.xavier_uniform_(weight.flatten(1))
    return Clip(model, tokenizer)


def in_training(model: CLIPModel) -> CLIPModel:
    """The model, ready to learn. Without a GPU its attention is computed step by step: for as few tokens as these the
    gradient of torch's fused one takes a CPU several times as long (torch 2.13)."""
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")
    return model.train()


class Towers(nn.Module):
    """Both towers of a CLIP as one forward pass, as training needs them."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.model = in_training(clip.model)
        self.thumbnail = nn.Linear(clip.dim, 3 * THUMBNAIL**2)

    def forward(self, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token ids (B,L), prepared pixels (B,3,S,S) -> unit embeddings of texts and of pictures (B,d), logit scale,
        and the thumbnails (2,B,3·T·T) that are read from either embedding."""
        text = self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)
        image = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        text, image = (F.normalize(embedding.float(), dim=-1) for embedding in (text, image))
        thumbnails = self.thumbnail(torch.stack([text, image]) * text.shape[-1] ** 0.5)
        return text, image, self.model.logit_scale.exp(), thumbnails


class ClipStage(Stage):
    shipped = "towers"

    def __init__(self, recipe: ClipRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)  # of the initial weights
        self.data = open_data(recipe.data, recipe.seed)
        if recipe.init_from is not None:
            from paella.checkpoint import about_argument, model_folder

            with about_argument("init_from"):
                self.clip = Clip.load(model_folder(recipe.init_from) / "clip")
        elif recipe.text_only:
            raise ValueError("text_only: needs init_from, a model whose pictures keep their embeddings")
        else:
            # without drawing or reading the pictures
            if isinstance(self.data, Scenes):
                wording = recipe.tokenizer_wording or recipe.data.wording
                worded = open_data(replace(recipe.data, wording=wording), recipe.seed)
                captions = [worded.caption(index) for index in range(recipe.tokenizer_captions)]
            else:
                captions = self.data.all_captions
            tokenizer = train_tokenizer(captions, recipe.model.vocabulary)
            self.clip = build_clip(recipe.model, recipe.data.size, tokenizer)
        if recipe.text_only:
            self.clip.model.vision_model.requires_grad_(False)
            self.clip.model.visual_projection.requires_grad_(False)
        self.modules = {"towers": Towers(self.clip)}
        warn_of_cut_captions(self.clip, self.data)
        self.gallery = hard_gallery(self.data, recipe.seed + 1)

    def losses(self, pixels: Tensor, captions: list[str], step: int) -> Iterator[Loss]:
        ids = sent(self.clip.tokenize(captions), pixels.device)
        text, image, scale, thumbnails = self.modules["towers"](ids, self.clip.prepare(pixels))
        scale = scale.clamp(max=MAX_SCALE)
        logits = scale * of_all(text) @ of_all(image).T
        numbers = of_all(sent(numbered(captions), pixels.device))
        right = numbers[:, None] == numbers
        told_apart = (contrastive(logits, right) + contrastive(logits.T, right)) / 2
        seen = F.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1)  # (B,3·T·T)
        text_error, image_error = (thumbnails.float() - seen).square().mean((1, 2))
        loss = told_apart + self.recipe.thumbnail * (text_error + image_error)
        metrics = {"loss": loss, "contrastive": told_apart, "scale": scale}
        metrics |= {"thumbnail from text": text_error, "thumbnail from picture": image_error}
        found = right.gather(0, logits.argmax(0, keepdim=True))
        yield "towers", loss, {**metrics, "accuracy": found.float().mean()}

    def evaluate(self, shipped: nn.Module) -> dict[str, float]:
        numbers = numbered(self.gallery[1])
        chance = (numbers[:, None] == numbers).double().mean().item()
        return {"R@1": retrieval(self.clip, *self.gallery), "chance": chance}

    def preview(self, shipped: nn.Module) -> Image.Image:
        """Sixteen pictures of the gallery, each above the caption that it finds."""
        pictures, captions = self.gallery
        found = nearest_captions(self.clip, pictures, captions)[:16]
        return contact_sheet(pictures[:16], [captions[i] for i in found], columns=8)

    def meanings(self) -> str:
        return tokenizer_digest(self.clip)

    def save(self, shipped: nn.Module, folder: Path) -> None:
        if not self.recipe.text_only:
            self.clip.whitening = self.fitted_whitening()
        self.clip.save(folder / "clip")

    def fitted_whitening(self) -> Whitening:
        """The whitening for texts and pictures of the training data."""
        samples = [self.data[i] for i in range(min(WHITENED, length(self.data) or WHITENED))]
        pictures, captions = zip(*samples, strict=True)
        return Whitening.fit(torch.cat(unit_embeddings(self.clip, pictures, captions)))


def hard_gallery(data: Folder | Scenes, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures and captions to be told apart: groups of lookalikes, no caption twice; or a folder's first ones."""
    if isinstance(data, Scenes):
        samples = list(hard_scenes(GALLERY, data.size, seed, data.names))
    else:
        samples = [data[i] for i in range(min(GALLERY, len(data)))]
    pictures, captions = zip(*samples, strict=True)
    return list(pictures), list(captions)


def warn_of_cut_captions(clip: Clip, data: Folder | Scenes) -> None:
    """Says how many of a folder's captions CLIP does not read to their end."""
    if isinstance(data, Folder):
        warn_of_cut(clip, data.all_captions, "data.folder")


def tokenizer_digest(clip: Clip) -> str:
    """As `Stage.meanings` gives it."""
    return sha256(json.dumps(clip.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def warn_of_cut(clip: Clip, captions: Sequence[str], argument: str) -> None:
    """Says how many of the captions CLIP does not read to their end."""
    if cut := sum(map(clip.is_cut, captions)):
        warnings.warn(
            f"{argument}: {cut} of {len(captions)} captions are cut to the {clip.context} tokens that CLIP reads",
            stacklevel=3,
        )


def nearest_captions(clip: Clip, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[int]:
    """For each picture, which caption is nearest to it in CLIP space."""
    image, text = unit_embeddings(clip, pictures, captions)
    return (image @ text.T).argmax(1).tolist()


def retrieval(clip: Clip, pictures: Sequence[Image.Image], captions: Sequence[str]) -> float:
    """R@1: the share of pictures whose own caption, wherever it stands, is the nearest of all."""
    found = nearest_captions(clip, pictures, captions)
    return sum(captions[one] == own for one, own in zip(found, captions, strict=True)) / len(captions)


def numbered(captions: Sequence[str]) -> Tensor:
    """(B,) int64: the same for the same captions, in every process."""
    return torch.tensor([crc32(caption.encode()) for caption in captions])


def main(recipe: ClipRecipe) -> Path:
    return train(ClipStage(recipe), recipe)
