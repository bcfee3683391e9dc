"""`Paella`: prompts in, pictures out. The face of the library."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paella import checkpoint, edits
from paella.canvas import Canvas
from paella.clip import Clip
from paella.images import (
    Box,
    Picture,
    composite,
    halves,
    open_mask,
    open_picture,
    padded_to_multiple,
    region_mask,
    retouched,
    to_pictures,
    to_tensor,
    token_mask,
)
from paella.labels import Labels
from paella.method import method_of
from paella.sampler import SamplerSettings, guided
from paella.vqgan import VQGAN

OnStep = Callable[[int, int, Tensor], bool | None]
Region = tuple[str, str | Box | Picture]  # a prompt, and where: left, right, top or bottom (a half), a box or a mask


class Options(TypedDict, total=False):
    """What every ability takes beside its own arguments; see `Paella.generate`."""

    steps: int | None
    guidance: float | None
    typical_mass: float | None
    temperature: float | None
    negative_prompt: str | None
    seed: int | Sequence[int]
    on_step: OnStep | None


class Cancelled(Exception):
    """`on_step` returned False."""


class Paella:
    """A text-to-image model: token predictor, VQGAN and CLIP, with its own default settings.

    Args:
        predictor, vqgan, clip: the three parts; see `from_pretrained` for the usual way to get them. A table of labels
            may stand in CLIP's place: then a prompt is the name of a label.
        settings: what a call uses where it does not say otherwise.
        size: side in pixels of the pictures that the model was trained on, and the default.
        name: recorded in the metadata of its pictures.
        objects: names of the objects it was trained to draw, where there is such a list.
        recipe: what its predictor was trained by, where that is known.
    """

    def __init__(
        self,
        predictor: checkpoint.Predictor,
        vqgan: VQGAN,
        clip: Clip | Labels,
        settings: SamplerSettings,
        size: int,
        *,
        name: str = "paella",
        objects: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.predictor, self.vqgan, self.clip = predictor, vqgan, clip
        self.settings, self.size, self.name, self.objects = settings, size, name, list(objects)
        self.recipe = recipe

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
        return pipeline.to(place, resolve_dtype(dtype, place))

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Paella:
        """Moves all parts to that device, and the predictor to that dtype; None = as it is. Returns itself."""
        self.predictor.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vqgan.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.clip.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model as a folder that `from_pretrained` reads."""
        checkpoint.save_model(self, Path(folder), dtype=None)

    def push_to_hub(
        self, repo_id: str, *, results: str = "", private: bool | None = None, token: str | None = None
    ) -> str:
        """Uploads what `save_pretrained` writes, for `from_pretrained(repo_id)`; see `hub.push`."""
        from paella import hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(self, Path(folder), repo_id, results=results, private=private, token=token)

    @property
    def device(self) -> torch.device:
        return self.predictor.clf.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the predictor."""
        return self.predictor.clf.weight.dtype

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
        seed: int | Sequence[int] = 0,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Text to image.

        Args:
            prompt: one or several; not empty.
            n: pictures for each prompt; the result is prompt-major.
            size: pixels, (height, width) or one number for both; multiples of the tokenizer's f.
            steps, guidance, typical_mass, temperature: see `SamplerSettings`; None = the model's own default.
            negative_prompt: what to steer away from, in place of the null condition.
            seed: in {0 … 2^63 - 1}; picture i has seed `seed + i`. Or a list with the seed of each picture.
            on_step: called as `on_step(step, steps, tokens)` after each step of each picture; returning False raises
                Cancelled.

        Returns:
            RGB pictures with prompt, seed, settings and model in `info`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        prompts = _prompts(prompt, n)
        if not all(text.strip() for text in prompts):
            raise ValueError("prompt: must not be empty")
        options: Options = {
            "steps": steps,
            "guidance": guidance,
            "typical_mass": typical_mass,
            "temperature": temperature,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "on_step": on_step,
        }
        condition = self._embed(prompts)[:, :, None, None]
        return self._draw(
            "generate", prompts, self._grid(size), partial(edits.text_to_image, condition=condition), options
        )

    def inpaint(
        self,
        image: Picture,
        mask: Picture | Sequence[Picture],
        prompt: str | Sequence[str] = "",
        *,
        n: int = 1,
        feather: int = 0,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Repaints what the mask marks; every other pixel comes back bit for bit.

        Args:
            image: of any size; tokens are redrawn where they hold a masked pixel, and one token around.
            mask: of the picture's size, white (True) is repainted. Or several, with as many prompts or one for all.
            prompt: what the masked part, or the whole picture, shows; empty = whatever suits what is around it. Several
                prompts with one mask give pictures of each, prompt-major.
            n: pictures for each prompt.
            feather: pixels inside the mask's border over which old and new mix.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        picture = open_picture(image)
        given = list(mask) if isinstance(mask, Sequence) and not isinstance(mask, str) else [mask]
        masks = torch.stack([open_mask(one, picture.size) for one in given])
        if not masks.flatten(1).any(1).all():
            raise ValueError("mask: is black all over: there is nothing to repaint")
        if len(masks) > 1 and not isinstance(prompt, str):
            if len(prompt) != len(masks):
                raise ValueError(f"prompt: must be one, or one for each of the {len(masks)} masks, not {len(prompt)}")
            regions = list(zip(prompt, masks, strict=True))
            prompts = _prompts(" | ".join(prompt), n)
        else:
            regions, prompts = [], _prompts(prompt, n)
        return self._repaint("inpaint", picture, masks.any(0), prompts, regions, options, margin=1, feather=feather)

    def outpaint(
        self,
        image: Picture,
        prompt: str | Sequence[str] = "",
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        regions: Sequence[Region] = (),
        mask: Picture | None = None,
        n: int = 1,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Continues the picture beyond its borders; what is known comes back bit for bit.

        Args:
            image: of any size.
            prompt: what the new part, or the whole picture, shows; empty = whatever suits the picture. Several give
                pictures of each, prompt-major.
            left, right, top, bottom: how many pixels to add; at least one.
            regions: other prompts for parts of the new picture, as (prompt, where). "left" ... "bottom" mean what is
                added there; boxes and masks are in pixels of the new picture.
            mask: of the old picture's size, white is repainted as well.
            n: pictures for each prompt.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        extents = {"left": left, "right": right, "top": top, "bottom": bottom}
        for name, pixels in extents.items():
            if pixels < 0:
                raise ValueError(f"{name}: must be 0 or more pixels, not {pixels}")
        if not any(extents.values()):
            raise ValueError("left: one of left, right, top and bottom must be above 0")
        picture = open_picture(image)
        sides = ((top, bottom), (left, right))
        known = np.pad(np.asarray(picture), (*sides, (0, 0)), mode="symmetric")
        height, width = known.shape[:2]
        new = torch.ones(height, width, dtype=torch.bool)
        new[top : height - bottom, left : width - right] = False
        if mask is not None:
            new[top : height - bottom, left : width - right] = open_mask(mask, picture.size)
        strips = {
            "left": (0, 0, left, height),
            "right": (width - right, 0, width, height),
            "top": (0, 0, width, top),
            "bottom": (0, height - bottom, width, height),
        }
        areas = [(text, region_mask(where, (width, height), strips)) for text, where in regions]
        prompts = _prompts(prompt, n)
        # the known part starts on the token grid, so that its tokens are those of the picture
        f = self.vqgan.config.f
        origin = (-left % f, -top % f)
        return self._repaint("outpaint", Image.fromarray(known), new, prompts, areas, options, origin=origin)

    def vary(
        self,
        image: Picture,
        n: int = 4,
        *,
        prompt: str | None = None,
        strength: float | None = None,
        size: int | tuple[int, int] | None = None,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Pictures of what the picture shows: its CLIP embedding stands in for a prompt's.

        Args:
            image: of any size; CLIP sees its middle square.
            n: how many.
            prompt: something to move towards.
            strength: how far towards the prompt, from 0, the picture alone, to 1, the prompt alone. Default: 0.5.
            size: see `generate`.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if prompt is None and strength is not None:
            raise ValueError("strength: says how far to move towards a prompt, and there is none")
        strength = 0.5 if strength is None else strength
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: must be within 0 ... 1, not {strength}")
        embedding = self._embed_picture(open_picture(image))
        if prompt is not None:
            embedding = edits.slerp(embedding, self._embed([prompt])[0], strength)
        prompts = _prompts(prompt or "", n)
        condition = embedding[None, :, None, None].expand(n, -1, 1, 1)
        record = {} if prompt is None else {"strength": str(strength)}
        return self._draw(
            "vary", prompts, self._grid(size), partial(edits.text_to_image, condition=condition), options, record
        )

    def interpolate(
        self,
        start: str | Picture,
        end: str | Picture,
        frames: int = 8,
        *,
        size: int | tuple[int, int] | None = None,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """A row of pictures that turns one thing into another: all from the same noise, under embeddings between two.

        Args:
            start, end: each a prompt (a string) or a picture (anything else).
            frames: how many, the first of `start` and the last of `end`.
            size: see `generate`.
            options: see `generate`; `seed` is that of every frame.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if frames < 1:
            raise ValueError(f"frames: must be at least 1, not {frames}")
        first, last = (
            self._embed([end_])[0] if isinstance(end_, str) else self._embed_picture(open_picture(end_, name))
            for name, end_ in (("start", start), ("end", end))
        )
        shares = torch.linspace(0, 1, frames).tolist()
        condition = torch.stack([edits.slerp(first, last, share) for share in shares])[:, :, None, None]
        names = [text if isinstance(text, str) else "a picture" for text in (start, end)]
        return self._draw(
            "interpolate",
            [" → ".join(names)] * frames,
            self._grid(size),
            partial(edits.text_to_image, condition=condition),
            options,
            seeds=[self._seeds(options.get("seed", 0), 1)[0]] * frames,
        )

    def restyle(
        self,
        image: Picture,
        prompt: str | Sequence[str],
        *,
        strength: float = 0.5,
        n: int = 1,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Structural editing: the picture under a new prompt, its colours and shapes about where they were.

        Args:
            image: of any size.
            prompt: what it shall show; several give pictures of each, prompt-major.
            strength: the t that it starts from. 0 = the picture as the tokenizer gives it back, 1 = plain generation,
                with the noise of every step taken from the tokens before it.
            n: pictures for each prompt.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: must be within 0 ... 1, not {strength}")
        picture = open_picture(image)
        tokens = self._encode(padded_to_multiple(picture, self.vqgan.config.f))
        prompts = _prompts(prompt, n)
        seeds = self._seeds(options.get("seed", 0), len(prompts))
        # of its own stream, so that at strength 1 the rest is what plain generation draws
        streams = [torch.Generator().manual_seed(2**63 + seed) for seed in seeds]
        uniform = torch.stack([torch.rand(tokens.shape[1:], generator=stream) for stream in streams])
        condition = self._embed(prompts)[:, :, None, None]

        def canvas(noise: Tensor) -> Canvas:
            return edits.renoised(tokens.expand_as(noise), strength, noise, uniform.to(self.device), condition)

        record = {"strength": str(strength)}
        grid = (tokens.shape[1], tokens.shape[2])
        pictures = self._draw("restyle", prompts, grid, canvas, options, record, renoise="previous")
        return [one.crop((0, 0, *picture.size)) for one in pictures]

    def compose(
        self,
        regions: Sequence[Region],
        *,
        background: str = "",
        n: int = 1,
        size: int | tuple[int, int] | None = None,
        softness: int = 8,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Several prompts in one picture, each in its region.

        Args:
            regions: (prompt, where), at least one; where is "left", "right", "top" or "bottom" (a half of the picture),
                a box (left, top, right, bottom) in pixels, or a mask of the picture's size. Where regions overlap,
                their embeddings are averaged.
            background: the prompt of the rest.
            n: how many pictures.
            size: see `generate`.
            softness: width in pixels of the passage from one prompt to the next.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if not regions:
            raise ValueError("regions: must not be empty")
        if softness < 0:
            raise ValueError(f"softness: must be 0 or more pixels, not {softness}")
        height, width = self._grid(size)
        f = self.vqgan.config.f
        pixels = (width * f, height * f)
        areas = [(text, region_mask(where, pixels, halves(*pixels))) for text, where in regions]
        condition = self._condition_map(areas, [background], softness).expand(n, -1, -1, -1)
        prompts = _prompts(" | ".join([text for text, _ in areas] + [background] * bool(background)), n)
        return self._draw(
            "compose", prompts, (height, width), partial(edits.text_to_image, condition=condition), options
        )

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

    def _draw(
        self,
        ability: str,
        prompts: Sequence[str],
        grid: tuple[int, int],
        canvas: Callable[[Tensor], Canvas],
        options: Options,
        record: Mapping[str, str] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        renoise: str | None = None,
    ) -> list[Image.Image]:
        """What all abilities share: random tokens become a canvas, the canvas pictures that say how they were made.

        Args:
            ability: its name, for the metadata.
            prompts: one for each picture, for the metadata.
            grid: height and width in tokens.
            canvas: makes the canvas, given random tokens (B,h,w).
            options: of `generate`.
            record: more to say in the metadata.
            seeds: where they are not `seed + i`.
            renoise: where it is not the settings' own.
        """
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"{ability}: unknown argument {', '.join(sorted(unknown))}")
        given = {name: options.get(name) for name in ("steps", "guidance", "typical_mass", "temperature")}
        changed = {name: value for name, value in {**given, "renoise": renoise}.items() if value is not None}
        settings = replace(self.settings, **changed)  # type: ignore[arg-type]
        seeds = self._seeds(options.get("seed", 0), len(prompts)) if seeds is None else seeds
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = edits.random_tokens(generators, *grid, self.vqgan.config.n_embed).to(self.device)
        negative = options.get("negative_prompt")
        null = self._embed([negative or ""])[:, :, None, None]
        pictures = to_pictures(self._sample(canvas(noise), settings, generators, null, options.get("on_step")))
        more = dict(record or {}) if negative is None else {**(record or {}), "negative_prompt": negative}
        for picture, prompt, seed in zip(pictures, prompts, seeds, strict=True):
            made = {"ability": ability, "prompt": prompt, "seed": str(seed), "model": self.name}
            picture.info.update(made | {"settings": json.dumps(asdict(settings))} | more)
        return pictures

    def _repaint(
        self,
        ability: str,
        picture: Image.Image,
        mask: Tensor,
        prompts: Sequence[str],
        regions: Sequence[tuple[str, Tensor]],
        options: Options,
        *,
        margin: int = 0,
        feather: int = 0,
        origin: tuple[int, int] = (0, 0),
    ) -> list[Image.Image]:
        """In- and outpainting: new tokens where the mask (H,W) is True, the picture's own pixels everywhere else.

        Args:
            regions: prompts for parts of the mask, (H,W) bool; where there are none, those of `prompts` hold.
            margin: how many tokens around the mask are drawn anew as well.
            feather: see `composite`.
            origin: (x, y) of the picture's corner on the token grid, each in 0 ... f-1.
        """
        if feather < 0:
            raise ValueError(f"feather: must be 0 or more pixels, not {feather}")
        f, (x, y) = self.vqgan.config.f, origin
        pixels = np.pad(np.asarray(picture), ((y, 0), (x, 0), (0, 0)), mode="symmetric")
        tokens = self._encode(padded_to_multiple(Image.fromarray(pixels), f))

        def aligned(area: Tensor) -> Tensor:
            return torch.nn.functional.pad(area, (x, -(x + area.shape[1]) % f, y, -(y + area.shape[0]) % f))

        hole = token_mask(aligned(mask), f, margin).to(self.device)
        if regions:
            condition = self._condition_map([(text, aligned(area)) for text, area in regions], prompts, softness=0)
        else:
            condition = self._embed(prompts)[:, :, None, None]

        def canvas(noise: Tensor) -> Canvas:
            return edits.free(edits.known(tokens.expand_as(noise), condition), hole, noise)

        grid = (tokens.shape[1], tokens.shape[2])
        painted = self._draw(ability, prompts, grid, canvas, options)
        box = (x, y, x + picture.width, y + picture.height)
        results = [composite(picture, retouched(one.crop(box), picture, mask), mask, feather) for one in painted]
        for result, one in zip(results, painted, strict=True):
            result.info = one.info
        return results

    def _condition_map(
        self, regions: Sequence[tuple[str, Tensor]], backgrounds: Sequence[str], softness: int
    ) -> Tensor:
        """(B,d,h,w): a prompt for each region (H,W) bool, one of the B backgrounds everywhere else."""
        weights = edits.soft_weights(torch.stack([area for _, area in regions]), self.vqgan.config.f, softness)
        own = self._embed([text for text, _ in regions])
        rest = self._embed(backgrounds)
        return torch.cat([edits.condition_map(torch.cat([own, one[None]]), weights.to(own)) for one in rest])

    @torch.inference_mode()
    def _encode(self, picture: Image.Image) -> Tensor:
        """Tokens (1,h,w) of a picture whose sides are multiples of f."""
        return self.vqgan.encode(to_tensor([picture]).to(self.device))

    @torch.inference_mode()
    def _decode(self, tokens: Tensor) -> Tensor:
        """Pixels (B,3,H,W) in [0, 1] of tokens (B,h,w)."""
        return self.vqgan.decode(tokens).float().cpu()

    def _embed_picture(self, picture: Image.Image) -> Tensor:
        """The picture's CLIP embedding (d,)."""
        return self.clip.embed_images(to_tensor([picture]).to(self.device))[0]

    @staticmethod
    def _seeds(seed: int | Sequence[int], count: int) -> list[int]:
        seeds = list(seed) if isinstance(seed, Sequence) else [seed + i for i in range(count)]
        if len(seeds) != count:
            raise ValueError(f"seed: must be one, or one for each of the {count} pictures, not {len(seeds)}")
        if not all(0 <= one < 2**63 for one in seeds):
            raise ValueError(f"seed: must be in 0 ... 2^63 - 1, not {seed}")
        return seeds

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B,d); an empty prompt is the null condition. Each distinct text is embedded once, alone."""
        texts = {text for text in prompts if text.strip()}
        known = {text: self.clip.embed_text([text])[0] for text in sorted(texts)}
        null = torch.zeros(self.clip.dim, device=self.device)
        return torch.stack([known.get(text, null) for text in prompts])

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
        method = method_of(self.predictor)
        pixels = []
        for first in range(0, len(generators), chunk):
            part = slice(first, first + chunk)
            own = Canvas(canvas.tokens[part], canvas.frozen[part], canvas.condition[part], canvas.start)
            denoise = guided(self.predictor.conditioned, own.condition, null, settings.guidance)
            tokens = own.tokens
            for step, tokens in enumerate(method.sample(denoise, own, settings, generators[part]), 1):
                if on_step is not None and on_step(step, settings.steps, tokens) is False:
                    raise Cancelled
            pixels.append(self._decode(tokens))
        return torch.cat(pixels)


def _prompts(prompt: str | Sequence[str], n: int) -> list[str]:
    """One for each picture, prompt-major."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError("prompt: must be a string, or a list of at least one")
    if n < 1:
        raise ValueError(f"n: must be at least 1, not {n}")
    return [text for text in prompts for _ in range(n)]


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
