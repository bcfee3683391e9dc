"""Teaches CLIP's text tower other words, orders and languages: each caption to mean what the plain one means.

No picture is needed, and none is drawn: the targets are the embeddings that the tower itself, or an earlier one, gave
to plain captions before it learned. Pictures keep their embeddings, and so does the space that a predictor reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from paella.checkpoint import about_argument, model_folder
from paella.clip import Clip
from paella.data import open_data
from paella.data.scenes import Scenes
from paella.fingerprint import fingerprint
from paella.gpu import sent
from paella.images import contact_sheet
from paella.train.clip import in_training, numbered, tokenizer_digest, train_tokenizer, warn_of_cut
from paella.train.loop import Loss, Stage, train
from paella.train.loss import contrastive
from paella.train.recipe import Recipe, check_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GALLERY = 1000
SHOWN = 16
GROUPS = 4  # of texts of about one length


@dataclass
class WordingsRecipe(Recipe):
    vocabulary: int | None = None  # of a new BPE, learned from the varied captions; None = the tokenizer stays
    tokenizer_captions: int = 40_000  # how many a new BPE is learned from
    context: int | None = None  # the longest text that the new tower reads, in tokens; None = as long as before
    scale: float = 20.0  # of the logits: how near a caption must be to its own plain one rather than to another
    teacher: str | None = None  # the model whose CLIP gives the targets; None = that of init_from
    rehearse: float = 0.0  # how often a plain caption is to be read itself, so that it stays where it was

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shares(self, "", "rehearse")
        lowest = {"vocabulary": 258, "context": 3, "tokenizer_captions": 1}  # 256 bytes, start and end; a token between
        for key, least in lowest.items():
            if (value := getattr(self, key)) is not None and value < least:
                raise ValueError(f"{key}: must be at least {least}, not {value}")


class Reworded:
    """The data set: `[index]` is a scene's (varied caption, plain caption that says the same); of a share of the
    indices, evenly spread, it is the plain one twice."""

    def __init__(self, scenes: Scenes, rehearse: float) -> None:
        self.scenes, self.rehearse = scenes, rehearse

    def __getitem__(self, index: int) -> tuple[str, str]:
        varied, plain = self.scenes.wordings(index)
        before, after = (floor(count * self.rehearse) for count in (index, index + 1))  # plain ones
        return (varied if before == after else plain), plain


class TextTower(nn.Module):
    """Token ids -> unit embeddings, as one forward pass, as training needs it."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        model = in_training(clip.model)
        self.text_model, self.text_projection = model.text_model, model.text_projection
        self.end = clip.tokenizer.eos_token_id

    def forward(self, ids: Tensor) -> Tensor:
        """(B,L) int64, each text with its end in it -> (B,d) float32.

        On a CPU texts of about one length go together, as half of what a batch is padded to would be padding.
        """
        if ids.device.type != "cpu":  # it would have to wait for the lengths
            return self.embedded(ids)
        lengths = (ids == self.end).int().argmax(1) + 1
        order = lengths.argsort()
        groups = order.chunk(GROUPS)
        embedded = torch.cat([self.embedded(ids[group, : int(lengths[group[-1]])]) for group in groups])
        return embedded[order.argsort()]

    def embedded(self, ids: Tensor) -> Tensor:
        return F.normalize(self.text_projection(self.text_model(input_ids=ids).pooler_output).float(), dim=-1)


class WordingsStage(Stage):
    shipped = "text"

    def __init__(self, recipe: WordingsRecipe) -> None:
        self.recipe = recipe
        scenes = open_data(recipe.data, recipe.seed)
        if not isinstance(scenes, Scenes):
            raise ValueError("data.folder: other words are known of emoji scenes alone")
        if recipe.init_from is None:
            raise ValueError("init_from: must be a model whose CLIP is to learn other words")
        with about_argument("init_from"):
            self.clip = Clip.load(model_folder(recipe.init_from) / "clip")
        with about_argument("teacher"):
            self.teacher = Clip.load(model_folder(recipe.teacher or recipe.init_from) / "clip")
        if self.teacher.dim != self.clip.dim:
            raise ValueError(f"teacher: must have embeddings of {self.clip.dim} numbers, not {self.teacher.dim}")
        self.clip.whitening = self.teacher.whitening  # of the space that is learned
        self.data = Reworded(scenes, recipe.rehearse)
        if recipe.vocabulary is not None:
            captions = [scenes.wordings(index)[0] for index in range(recipe.tokenizer_captions)]
            self.clip = retokenized(self.clip, train_tokenizer(captions, recipe.vocabulary), self.clip.context)
        if recipe.context is not None:
            self.clip = retokenized(self.clip, self.clip.tokenizer, recipe.context)
        self.modules = {"text": TextTower(self.clip)}
        others = open_data(recipe.data, recipe.seed + 1)
        assert isinstance(others, Scenes)
        warn_of_cut(self.clip, [scenes.wordings(index)[0] for index in range(GALLERY)], "init_from")
        self.gallery = distinct([others.wordings(index) for index in range(2 * GALLERY)])[:GALLERY]
        # what a predictor reads of plain captions varies by this much; of one batch alone it might be nothing
        self.variance = self.clip.whitened(self.targets([plain for _, plain in self.gallery])).var(0).mean().item()

    def losses(self, pixels: Sequence[str], annotations: Sequence[str], step: int) -> Iterator[Loss]:
        varied, plain = pixels, annotations
        text = self.modules["text"](sent(self.clip.tokenize(varied), self.device))
        target = self.targets(plain)
        logits = self.recipe.scale * text @ target.T
        numbers = sent(numbered(plain), self.device)
        told_apart = contrastive(logits, numbers[:, None] == numbers)
        read, meant = self.clip.whitened(text), self.clip.whitened(target)  # as predictors read them
        distance = (read - meant).square().mean() / self.variance
        yield "text", told_apart + distance, {"contrastive": told_apart, "distance": distance}

    @torch.no_grad()
    def targets(self, plain: Sequence[str]) -> Tensor:
        """(B,d): the unit embeddings that the teacher gives."""
        self.teacher.to(self.device)
        return F.normalize(self.teacher.unwhitened().embed_text(plain).float(), dim=-1)

    def found(self, tower: nn.Module, count: int) -> list[int]:
        """For each of the gallery's first varied captions, which of all plain ones is nearest to it."""
        varied, plain = zip(*self.gallery, strict=True)
        text = tower(self.clip.tokenize(varied[:count]).to(self.device))
        return (text @ self.targets(plain).T).argmax(1).tolist()

    def evaluate(self, shipped: nn.Module) -> dict[str, float]:
        right = sum(found == own for own, found in enumerate(self.found(shipped, len(self.gallery))))
        return {"R@1": right / len(self.gallery), "chance": 1 / len(self.gallery)}

    def preview(self, shipped: nn.Module) -> Image.Image:
        """Varied captions of the gallery, each with the plain one that it finds."""
        blank = Image.new("RGB", (128, 4), "white")
        pairs = [
            f"{self.gallery[own][0]} -> {self.gallery[other][1]}"
            for own, other in enumerate(self.found(shipped, SHOWN))
        ]
        return contact_sheet([blank] * len(pairs), pairs, columns=4)

    def meanings(self) -> str:
        return fingerprint(self.teacher.weights(), about=tokenizer_digest(self.clip))

    def save(self, shipped: nn.Module, folder: Path) -> None:
        self.clip.save(folder / "clip")


def retokenized(clip: Clip, tokenizer: PreTrainedTokenizerFast, context: int) -> Clip:
    """The CLIP with another byte-level BPE, reading texts of up to `context` tokens.

    The CLIP's own must be one too, as `train_tokenizer` makes it. What it has as a token keeps its embedding; another
    token begins with the mean of those that the old one makes of it, and places beyond those that the tower knew begin
    as the last one.
    """
    from transformers import CLIPModel

    embeddings, old = clip.model.text_model.embeddings, clip.tokenizer
    known, pieces = old.get_vocab(), old.backend_tokenizer.model
    before, vocabulary = embeddings.token_embedding.weight.detach(), tokenizer.get_vocab()
    tokens = torch.empty(len(vocabulary), before.shape[1])
    for token, index in vocabulary.items():
        ids = [known[token]] if token in known else [piece.id for piece in pieces.tokenize(token)]
        tokens[index] = before[ids].mean(0)
    places = embeddings.position_embedding.weight.detach()
    places = places[torch.arange(context).clamp(max=len(places) - 1)]

    config = deepcopy(clip.model.config)
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokens), len(places)
    for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, special, getattr(tokenizer, special))
    model = CLIPModel(config)
    changed = {"token_embedding": tokens, "position_embedding": places}
    tensors = {f"text_model.embeddings.{name}.weight": value for name, value in changed.items()}
    model.load_state_dict(clip.model.state_dict() | tensors)
    return Clip(model, tokenizer, whitening=clip.whitening, mean=clip.mean, std=clip.std)


def distinct(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs, of each plain caption the first."""
    return [(varied, plain) for plain, varied in {plain: varied for varied, plain in reversed(pairs)}.items()]


def main(recipe: WordingsRecipe) -> Path:
    return train(WordingsStage(recipe), recipe)
