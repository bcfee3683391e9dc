"""Feature networks: pictures -> features, by which sets of pictures are compared. Each says what exactly it is.

Distances of features from two networks, or of one network with other weights, say nothing about each other: a result
without this record is worth little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from paella.checkpoint import CheckpointError, about_argument, read_json
from paella.clip import Clip, fitted
from paella.evaluate.parts import clip_of
from paella.fingerprint import fingerprint
from paella.images import to_tensor

if TYPE_CHECKING:
    from paella.pipeline import Paella

BATCH = 32
# what published DINOv2 models expect where their folder does not say otherwise: ImageNet's
DINO_MEAN, DINO_STD, DINO_SIZE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224
CHOICES = "clip, inception, or the folder of a CLIP or DINOv2 model in transformers' format"


Look = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Extractor:
    """A feature network, and the CLIP that gives CLIP scores.

    Attributes:
        name: for the record.
        resize: how pictures come to the size that the network takes, for the record.
        weights: its parameters and buffers.
        compute: pixels (B,3,H,W) in [0, 1] -> features (B,d), CLIP embeddings (B,e).
        clip: that of the features where they are a CLIP's, else the model's own; not whitened.
    """

    name: str
    resize: str
    weights: Mapping[str, Tensor]
    compute: Look
    clip: Clip

    @torch.inference_mode()
    def look(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """RGB pictures of one size -> features (n,d) and CLIP embeddings of norm one (n,e), float32 on the CPU."""
        pixels = to_tensor(pictures).to(self.clip.model.device)
        parts = [[one.float().cpu() for one in self.compute(part)] for part in pixels.split(BATCH)]
        features, embeddings = map(torch.cat, zip(*parts, strict=True))
        return features, F.normalize(embeddings, dim=-1)

    @torch.inference_mode()
    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions -> CLIP embeddings of norm one (n,e), float32 on the CPU."""
        parts = [self.clip.embed_text(captions[at : at + BATCH]) for at in range(0, len(captions), BATCH)]
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)

    @cached_property
    def record(self) -> dict[str, str]:
        """What every result says of the two networks."""
        hashes = {"sha256": fingerprint(self.weights), "clip sha256": fingerprint(self.clip.model.state_dict())}
        return {"name": self.name, "resize": self.resize, **hashes}


def open_extractor(features: str, pipeline: Paella) -> Extractor:
    """The feature network of that name, on the pipeline's device.

    Args:
        features: "clip" is the model's own CLIP image encoder, which works offline; "inception" the standard FID
            protocol; else a folder in transformers' format, of a CLIP or of a DINOv2.

    Raises:
        ValueError: there is no such network, or the package that it needs is missing; or the model has no CLIP.
    """
    own = clip_of(pipeline)
    if features == "clip":
        return _clip(own, f"CLIP image encoder of the model {pipeline.name}")
    if features == "inception":
        return _inception(own.unwhitened())
    folder = Path(features)
    if not folder.is_dir():
        raise ValueError(f"features: must be {CHOICES}, not {features}")
    with about_argument("features"):
        kind = read_json(folder / "config.json").get("model_type")
        if kind == "clip":
            return _clip(Clip.load(folder).to(pipeline.device), f"CLIP image encoder of {folder.name}")
        if kind == "dinov2":
            return _dinov2(folder, own.unwhitened())
    raise ValueError(f"features: {folder} holds a model of the type {kind}; must be {CHOICES}")


def _clip(clip: Clip, name: str) -> Extractor:
    """Embeddings as the model takes them. Our own CLIPs are whitened: else nearly all of their variance is in a few
    directions, mostly those of backgrounds, and pictures drawn at temperature 1 are as good as real ones (150 scenes:
    precision 0.95 and 0.95; whitened, 0.51 and 0.71)."""
    bare, size = clip.unwhitened(), clip.model.config.vision_config.image_size

    def compute(pixels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = bare.embed_images(pixels)
        return clip.whitened(embeddings), embeddings

    name = name if clip.whitening is None else f"{name}, whitened"
    return Extractor(name, _resize(size), clip.weights(), compute, bare)


def _dinov2(folder: Path, clip: Clip) -> Extractor:
    """The class token behind the last norm, as Stein et al. 2023 compare pictures by."""
    from transformers import Dinov2Model

    about = folder / "preprocessor_config.json"
    settings = read_json(about) if about.is_file() else {}
    crop = settings.get("crop_size", DINO_SIZE)
    size = crop["height"] if isinstance(crop, dict) else crop
    device = clip.model.device
    mean, std = (
        torch.tensor(settings.get(key, default), device=device).view(3, 1, 1)
        for key, default in (("image_mean", DINO_MEAN), ("image_std", DINO_STD))
    )
    try:
        model = Dinov2Model.from_pretrained(folder, local_files_only=True).eval().to(device)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"model: {folder} is not a whole DINOv2 ({error})") from error

    def compute(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = model(pixel_values=(fitted(pixels, size) - mean) / std).pooler_output
        return features, clip.embed_images(pixels)

    return Extractor(f"DINOv2 of {folder.name}", _resize(size), model.state_dict(), compute, clip)


def _inception(clip: Clip) -> Extractor:
    """The network, weights and resizing that published FIDs are of, as torchmetrics takes them from torch-fidelity.

    torchvision's Inception-v3 has other weights, whose distances compare with nobody's.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        # antialiasing, which torchmetrics would add, is not in the original protocol
        network = NoTrainInceptionV3("inception-v3-compat", features_list=["2048"], antialias=False)
    except ModuleNotFoundError as error:
        raise ValueError("features: inception needs the package torch-fidelity: pip install torch-fidelity") from error
    except OSError as error:  # it downloads them at its first use
        raise ValueError(f"features: the weights of inception cannot be had ({error})") from error

    network.eval().to(clip.model.device)

    def compute(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return network((pixels * 255).round().byte()), clip.embed_images(pixels)

    resize = "bilinear as in TensorFlow 1, to 299 x 299"
    return Extractor("Inception-v3 of torch-fidelity", resize, network.state_dict(), compute, clip)


def _resize(size: int) -> str:
    return f"bicubic, antialiased, shorter side to {size}, the middle {size} x {size}; none where it fits"
