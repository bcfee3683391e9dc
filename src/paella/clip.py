"""CLIP embeddings of texts and pictures, by transformers' CLIPModel: our own small one, or any published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from paella.gpu import sent

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerFast

WHITENING = "whitening.safetensors"
_IMPORTING = Lock()

# what published CLIP models expect where their folder does not say otherwise (Radford et al. 2021)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Whitening:
    """An affine map of unit embeddings (B,d) onto ones of mean zero whose components are uncorrelated, variance one.

    A small contrastive model spends most of its variance on a few dimensions. Whether a predictor learns sooner from
    whitened embeddings is not shown (docs/results.md).

    Attributes:
        mean: (d,) float32.
        matrix: (d,d) float32.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, embeddings: Tensor, floor: float = 1e-4) -> Whitening:
        """The map for embeddings (n,d).

        Args:
            floor: directions of less than this share of the greatest variance are noise, and stay small.
        """
        mean = embeddings.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov(embeddings.T.double()))
        scale = (variances.clamp(min=0) + floor * variances.max()).rsqrt()
        return cls(mean, (directions * scale @ directions.T).float())

    def __call__(self, embeddings: Tensor) -> Tensor:
        mean, matrix = self.mean.to(embeddings), self.matrix.to(embeddings)
        return (embeddings - mean) @ matrix


def fitted(pixels: Tensor, size: int) -> Tensor:
    """Pictures (B,3,H,W) in [0, 1] -> (B,3,size,size): the shorter side resized (bicubic, antialiased), the middle cut
    out; those of that size stay as they are."""
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    scale = size / min(height, width)
    target = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = F.interpolate(pixels, size=target, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return pixels[..., top : top + size, left : left + size]


class Clip:
    """Texts and pictures -> embeddings of one space.

    Args:
        model: a CLIPModel; embeddings are computed in its parameters' dtype.
        tokenizer: the tokenizer that belongs to it.
        whitening: what embeddings, scaled to norm one, go through; None = they stay as the encoder gives them, as
            published predictors take them.
        mean, std: of the pixel values, per channel.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        whitening: Whitening | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        self.model, self.tokenizer, self.whitening = model.eval(), tokenizer, whitening
        self.mean, self.std = tuple(mean), tuple(std)

    @property
    def dim(self) -> int:
        """d, the size of an embedding."""
        return self.model.config.projection_dim

    @property
    def context(self) -> int:
        """The longest text that the encoder reads, in tokens, start and end included."""
        return self.model.config.text_config.max_position_embeddings

    def to(self, device: torch.device | None) -> Clip:
        """Moves the model and the whitening to that device; None = where they are."""
        self.model.to(device)
        if self.whitening is not None:
            self.whitening = Whitening(self.whitening.mean.to(device=device), self.whitening.matrix.to(device=device))
        return self

    def weights(self) -> dict[str, Tensor]:
        """By name, all numbers that decide the embeddings: the network's, and of the whitening where there is one."""
        return self.model.state_dict() | ({} if self.whitening is None else vars(self.whitening))

    def unwhitened(self) -> Clip:
        """The same model with embeddings as the contrastive loss compares them."""
        return Clip(self.model, self.tokenizer, mean=self.mean, std=self.std)

    def is_cut(self, text: str) -> bool:
        """Whether the text is longer than the encoder reads."""
        return len(self.tokenizer(text)["input_ids"]) > self.context

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> token ids (B,L) int64, padded; a text longer than the encoder reads is cut."""
        ids = self.tokenizer(list(texts))["input_ids"]
        ids = [own if len(own) <= self.context else [*own[: self.context - 1], own[-1]] for own in ids]
        length = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        return torch.tensor([own + [pad] * (length - len(own)) for own in ids])

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> embeddings (B,d). A text's embedding does not depend on the others."""
        ids = sent(self.tokenize(texts), self.model.device)
        pooled = self.model.text_model(input_ids=ids).pooler_output
        return self.whitened(self.model.text_projection(pooled))

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pictures (B,3,H,W) in [0, 1] -> embeddings (B,d), resized and centre-cropped to what the encoder takes."""
        pooled = self.model.vision_model(pixel_values=self.prepare(pixels)).pooler_output
        return self.whitened(self.model.visual_projection(pooled))

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pictures (B,3,H,W) in [0, 1] -> what the image encoder takes (B,3,S,S)."""
        pixels = fitted(pixels, self.model.config.vision_config.image_size)
        mean, std = (
            sent(torch.tensor(v, dtype=pixels.dtype), pixels.device).view(3, 1, 1) for v in (self.mean, self.std)
        )
        return ((pixels - mean) / std).to(self.model.dtype)

    def whitened(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B,d) as the encoders give them -> as predictors take them (B,d)."""
        return embeddings if self.whitening is None else self.whitening(F.normalize(embeddings, dim=-1))

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder in transformers' format; where there is a whitening, a file and a key of ours say so."""
        from paella.checkpoint import save_module, write_json, write_tensors

        save_module(self.model, folder / "model.safetensors", dtype)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)  # half as many bytes
        if self.whitening is not None:
            write_tensors(asdict(self.whitening), folder / WHITENING)
        settings = {"image_mean": self.mean, "image_std": self.std, "whitening": self.whitening is not None}
        write_json(settings, folder / "preprocessor_config.json")

    @classmethod
    @torch.inference_mode(False)  # whose tensors can never be changed or learn
    def load(cls, folder: str | Path) -> Clip:
        """The model of a folder in transformers' format (or of a hub id), float32.

        Its weights are safetensors or, where there are none, a pickle; one file, or several with an index.

        Raises:
            CheckpointError: the folder lacks a file, or one is damaged.
        """
        with _IMPORTING:  # two threads at once would find a half of transformers
            from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

        from paella import checkpoint
        from paella.checkpoint import CheckpointError, read_json

        path = Path(folder)
        if not path.is_dir():
            path = checkpoint.downloaded(folder, ["*.json", "*.txt", "model*.safetensors"])
            if not [*path.glob("model*.safetensors")]:
                path = checkpoint.downloaded(folder, ["pytorch_model*.bin"])
        config = CLIPConfig(**read_json(path / "config.json"))
        weights = checkpoint.weights_of(path)

        def read() -> dict[str, Tensor]:  # all but a constant, which is not in every file
            tensors = checkpoint.read_weights(weights)
            return {key: value for key, value in tensors.items() if not key.endswith("position_ids")}

        model = checkpoint.load_module(lambda: CLIPModel(config), read, weights)
        for tower in (model.text_model, model.vision_model):
            tower.embeddings.position_ids = torch.arange(tower.embeddings.position_embedding.num_embeddings)[None]
        about = path / "preprocessor_config.json"  # only a published CLIP can do without
        settings = read_json(about) if about.is_file() or (path / WHITENING).is_file() else {}
        whitening = None
        if settings.get("whitening"):
            tensors, d = checkpoint.read_tensors(path / WHITENING), config.projection_dim
            if {key: tuple(value.shape) for key, value in tensors.items()} != {"mean": (d,), "matrix": (d, d)}:
                raise CheckpointError(f"model: {path / WHITENING} must hold a mean ({d}) and a matrix ({d}, {d})")
            whitening = Whitening(**tensors)
        if not (path / "tokenizer.json").is_file():
            raise CheckpointError(f"model: {path / 'tokenizer.json'} is missing")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"model: {path / 'tokenizer.json'} cannot be read ({error})") from error
        greatest, known = (
            max(tokenizer.get_vocab().values(), default=0),
            model.text_model.embeddings.token_embedding.num_embeddings,
        )
        if greatest >= known:
            raise CheckpointError(f"model: {path / 'tokenizer.json'} has ids up to {greatest}; its CLIP knows {known}")
        return cls(
            model,
            tokenizer,
            whitening=whitening,
            mean=settings.get("image_mean", CLIP_MEAN),
            std=settings.get("image_std", CLIP_STD),
        )
