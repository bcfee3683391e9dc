"""`Paella`: prompts in, pictures out. The face of the library."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from paella import checkpoint, edits
from paella.canvas import Canvas
from paella.clip import Clip
from paella.images import to_pictures, to_tensor
from paella.sampler import SamplerSettings, guided, sample
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN

OnStep = Callable[[int, int, Tensor], bool | None]


class Cancelled(Exception):
    """`on_step` returned False."""


class Paella:
    """A text-to-image model: token predictor, VQGAN and CLIP, with its own default settings.

    Args:
        predictor, vqgan, clip: the three parts; see `from_pretrained` for the usual way to get them.
        settings: what a call uses where it does not say otherwise.
        size: side in pixels of the pictures that the model was trained on, and the default.
        name: recorded in the metadata of its pictures.
        objects: names of the objects it was trained to draw, where there is such a list.
    """

    def __init__(
        self,
        predictor: TokenPredictor,
        vqgan: VQGAN,
        clip: Clip,
        settings: SamplerSettings,
        size: int,
        *,
        name: str = "paella",
        objects: Sequence[str] = (),
    ) -> None:
        self.predictor, self.vqgan, self.clip = predictor, vqgan, clip
        self.settings, self.size, self.name, self.objects = settings, size, name, list(objects)

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, device: str = "auto", dtype: str | torch.dtype = "auto"
    ) -> Paella:
        """Loads a model.

        Args:
            model: a model folder or a hub id; None is the built-in model, which needs no network.
            device: "auto" is a GPU where there is one, else the CPU.
            dtype: of the predictor, whose cost is nearly everything: "auto" is bfloat16 where the processor is fast
                at it, else float32. The VQGAN and CLIP stay in float32.

        Raises:
            CheckpointError: the folder is not a whole model; the message names the file.
            ValueError: an unknown device or dtype.
        """
        folder = checkpoint.model_folder("builtin" if model is None else model)
        if not folder.exists() and len(Path(str(model)).parts) == 2 and not Path(str(model)).is_absolute():
            folder = checkpoint.downloaded(str(model))
        pipeline = cls(**checkpoint.load_model(folder))
        place = resolve_device(device)
        pipeline.predictor.to(place, resolve_dtype(dtype, place)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pipeline.vqgan.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
        pipeline.clip.model.to(place)
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model as a folder that `from_pretrained` reads."""
        checkpoint.save_model(self, Path(folder), dtype=None)

    @property
    def device(self) -> torch.device:
        return self.predictor.clf.weight.device

    def generate(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        *,
        size: int | tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        typical_mass: float | None = None,
        temperature: float | None = None,
        negative_prompt: str | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Text to image.

        Args:
            prompt: one or several; not empty.
            n: pictures for each prompt; the result is prompt-major, and picture i has seed `seed + i`.
            size: pixels, (height, width) or one number for both; multiples of the tokenizer's f.
            steps, guidance, typical_mass, temperature: see `SamplerSettings`; None = the model's own default.
            negative_prompt: what to steer away from, in place of the null condition.
            seed: in {0 … 2^63 - 1}.
            on_step: called as `on_step(step, steps, tokens)` after each step of each picture; returning False raises
                Cancelled.

        Returns:
            RGB pictures with prompt, seed, settings and model in `info`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
            raise ValueError("prompt: must not be empty")
        if n < 1:
            raise ValueError(f"n: must be at least 1, not {n}")
        height, width = self._grid(size)
        settings = self._settings(steps=steps, guidance=guidance, typical_mass=typical_mass, temperature=temperature)
        prompts = [text for text in prompts for _ in range(n)]
        seeds = self._seeds(seed, len(prompts))
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        tokens = edits.random_tokens(generators, height, width, self.vqgan.config.n_embed)
        canvas = edits.text_to_image(self._embed(prompts), tokens.to(self.device))
        pixels = self._sample(canvas, settings, generators, self._null(negative_prompt), on_step)
        return self._signed(pixels, "generate", prompts, seeds, settings, negative_prompt=negative_prompt)

    def reconstruct(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures as the tokenizer gives them back: the best that any picture of this model can be.

        Their sides must be multiples of the tokenizer's f, and all of one size.
        """
        pixels = to_tensor(pictures).to(self.device)
        return to_pictures(torch.cat([self.vqgan.decode(self.vqgan.encode(part)) for part in pixels.split(32)]))

    def _grid(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """The grid's height and width for a size in pixels."""
        f = self.vqgan.config.f
        height, width = (self.size, self.size) if size is None else (size, size) if isinstance(size, int) else size
        if height < f or width < f:
            raise ValueError(f"size: must be at least {f} x {f} pixels, not {height} x {width}")
        if height % f or width % f:
            nearest = " x ".join(str(max(f, math.floor(side / f + 0.5) * f)) for side in (height, width))
            raise ValueError(f"size: must be multiples of {f}, not {height} x {width}; the nearest is {nearest}")
        return height // f, width // f

    def _settings(self, **given: float | None) -> SamplerSettings:
        return replace(self.settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    @staticmethod
    def _seeds(seed: int, count: int) -> list[int]:
        if not 0 <= seed < 2**63 - count:
            raise ValueError(f"seed: must be in 0 ... 2^63 - 1, not {seed}")
        return [seed + i for i in range(count)]

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B,d); an empty prompt is the null condition. Each distinct text is embedded once, alone."""
        texts = {text for text in prompts if text.strip()}
        known = {text: self.clip.embed_text([text])[0] for text in sorted(texts)}
        null = torch.zeros(self.clip.dim, device=self.device)
        return torch.stack([known.get(text, null) for text in prompts])

    def _null(self, negative_prompt: str | None) -> Tensor:
        return self._embed([negative_prompt or ""])[:, :, None, None]

    @torch.inference_mode()
    def _sample(
        self,
        canvas: Canvas,
        settings: SamplerSettings,
        generators: Sequence[torch.Generator],
        null: Tensor,
        on_step: OnStep | None,
    ) -> Tensor:
        """Runs the loop and decodes: pixels (B,3,H,W) in [0, 1].

        On the CPU pictures are made one at a time: a matrix product may round differently in a larger batch, and a
        picture must not depend on its batch. Little is lost, as one picture keeps all cores busy.
        """
        chunk = 1 if self.device.type == "cpu" else 16
        pixels = []
        for first in range(0, len(generators), chunk):
            part = slice(first, first + chunk)
            own = Canvas(canvas.tokens[part], canvas.frozen[part], canvas.condition[part], canvas.start)
            denoise = guided(self.predictor.conditioned, own.condition, null, settings.guidance)
            tokens = own.tokens
            for step, tokens in enumerate(sample(denoise, own, settings, generators[part]), 1):
                if on_step is not None and on_step(step, settings.steps, tokens) is False:
                    raise Cancelled
            pixels.append(self.vqgan.decode(tokens).float().cpu())
        return torch.cat(pixels)

    def _signed(
        self,
        pixels: Tensor,
        ability: str,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SamplerSettings,
        **more: str | None,
    ) -> list[Image.Image]:
        """The pictures, each with what it takes to make it again in `info`."""
        pictures = to_pictures(pixels)
        for picture, prompt, seed in zip(pictures, prompts, seeds, strict=True):
            picture.info = {
                "ability": ability,
                "prompt": prompt,
                "seed": str(seed),
                "settings": json.dumps(asdict(settings)),
                "model": self.name,
                **{name: value for name, value in more.items() if value is not None},
            }
        return pictures


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device!r} is not available here; auto and cpu are") from error
    return place


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is bfloat16 where the processor multiplies it natively, else float32.

    Raises:
        ValueError: neither of float32, bfloat16 and float16.
    """
    if dtype == "auto":
        native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in allowed.values():
        return dtype  # type: ignore[return-value]
    if dtype not in allowed:
        raise ValueError(f"dtype: must be auto, {', '.join(allowed)}, not {dtype!r}")
    return allowed[dtype]
