"""What all abilities share: from a canvas and options to pictures that say how they were made."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, TypedDict

import torch
from PIL import Image
from torch import Tensor

from paella import checkpoint, edits, memory
from paella.arguments import number, seeds_of, warn, whole, words
from paella.batches import Batches
from paella.canvas import Canvas
from paella.clip import Clip
from paella.fingerprint import fingerprint
from paella.images import blanked, to_pictures, to_tensor
from paella.labels import Labels
from paella.method import method_of
from paella.packing import pack, unpack
from paella.placement import resolve_device, resolve_dtype, set_dtype
from paella.sampler import VARIED, SamplerSettings, for_variations
from paella.speedups import check_int8, compile_steps, is_compiled, quantize_int8, replay
from paella.trajectory import Recorder, Step
from paella.vqgan import VQGAN

OnStep = Callable[[int, int, Tensor], bool | None]


class Options(TypedDict, total=False):
    """What every ability takes beside its own arguments; see `Paella.generate`."""

    steps: int | None
    guidance: float | None
    typical_mass: float | None
    temperature: float | None
    negative_prompt: str | None
    seed: int | Sequence[int] | None
    on_step: OnStep | None
    trajectory: bool


class Cancelled(Exception):
    """`on_step` returned False; `pictures` are those that were finished before."""

    pictures: Sequence[Image.Image] = ()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came while pictures were drawn; `pictures` are those that were finished before."""

    pictures: Sequence[Image.Image] = ()


class Engine:
    """The parts of a model, and what is done with them.

    Args:
        predictor, vqgan, clip: the three parts; see `from_pretrained` for the usual way to get them. A table of labels
            may stand in CLIP's place: then a prompt is the name of a label.
        settings: what a call uses where it does not say otherwise.
        size: side in pixels of the pictures that the model was trained on, and the default.
        name: recorded in the metadata of its pictures.
        objects: names of the objects it was trained to draw, where there is such a list.
        recipe: what its predictor was trained by, where that is known.
        variations: what `vary` has in place of these settings: any of guidance, typical_mass and temperature.
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
        variations: Mapping[str, float] | None = None,
    ) -> None:
        self.predictor, self.vqgan, self.clip = predictor, vqgan, clip
        self.settings, self.size, self.name, self.objects = settings, size, name, list(objects)
        self.recipe = recipe
        self.variations = dict(variations or {})
        for_variations(settings, self.variations)  # complains of what makes no sense
        self._batches = Batches()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        quantize: str | None = None,
        compile: bool = False,
    ) -> Self:
        """Loads a model.

        Args:
            model: a model folder or a hub id; None is the built-in model, which needs no network.
            device: "auto" is a GPU where there is one, else the CPU.
            dtype: of the predictor, whose cost is nearly everything: "auto" is bfloat16 where the processor is fast
                at it, else float32. The weights of VQGAN and CLIP stay in float32.
            quantize: "int8" puts most of the predictor's matrix products into 8 bits, which changes pictures a little;
                for a CPU with VNNI. None leaves it as it is.
            compile: whether to compile the predictor with torch.compile, at the first picture of each size and batch
                (guidance doubles it); needs a C++ compiler. docs/performance.md says what both cost and give.

        Raises:
            CheckpointError: the folder is not a whole model; the message names the file.
            ValueError: an unknown device or dtype, or a quantization that does not suit model or machine.
        """
        place = resolve_device(device)
        kind = resolve_dtype(dtype, place)
        if quantize not in (None, "int8"):
            raise ValueError(f"quantize: must be 'int8' or None, not {quantize!r}")
        if quantize and compile:
            raise ValueError("compile: does not go together with quantize, as torch.compile cannot take its layers")
        if quantize is not None:
            check_int8(place, kind)
        folder = checkpoint.model_folder("builtin" if model is None else model)
        if not folder.exists() and len(Path(str(model)).parts) == 2 and not Path(str(model)).is_absolute():
            folder = checkpoint.downloaded(str(model))
        pipeline = cls(**checkpoint.load_model(folder)).to(place, kind)
        if quantize is not None:
            quantize_int8(pipeline.predictor)
        if compile:
            compile_steps(pipeline.predictor)
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model as a folder that `from_pretrained` reads; its parts in the dtypes that they have here."""
        checkpoint.save_model(self, Path(folder), dtype=None)

    def push_to_hub(
        self, repo_id: str, *, results: str = "", private: bool | None = None, token: str | None = None
    ) -> str:
        """Uploads what `save_pretrained` writes, for `from_pretrained(repo_id)`; see `hub.push`."""
        from paella import hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.push(self, Path(folder), repo_id, results=results, private=private, token=token)

    @torch.inference_mode(False)  # whose tensors can never be changed or learn
    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves all parts to that device, and the predictor to that dtype (see `set_dtype`); None = as it is. Returns
        itself.

        What the predictor computes is made fast there: on a GPU by CUDA graphs, on a CPU by packed weights, which learn
        no more; `paella.packing.unpack(pipeline.predictor)` undoes that.
        """
        unpack(self.predictor)
        self.predictor.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dtype is not None:
            set_dtype(self.predictor, dtype)
        self.vqgan.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.clip.to(device)
        if self.device.type == "cuda":
            replay(self.predictor, self.vqgan)
        pack(self.predictor, last_alone=is_compiled(self.predictor))
        return self

    @property
    def device(self) -> torch.device:
        return self.predictor.clf.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the predictor."""
        return self.predictor.clf.weight.dtype

    def fingerprint(self) -> str:
        """Of all weights that its pictures depend on, in the dtypes that they have here; see `fingerprint`."""
        read = self.clip.weights() if isinstance(self.clip, Clip) else self.clip.state_dict()
        return fingerprint(self.predictor.state_dict(), self.vqgan.state_dict(), read)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B,h,w) -> pixels (B,3,f·h,f·w) in [0, 1], float32 on the CPU: as every picture is decoded.

        Where the predictor is bfloat16, so are the decoder's matrix products: colours move by 2 of 255 at most. float16
        would not do, as decoders pass its range.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.vqgan.decode(tokens).cpu()

    def _pictures(self, tokens: Tensor) -> Iterator[Image.Image]:
        """Tokens (B,h,w), decoded; on a CPU one at a time: a larger batch may round differently, and those that are
        finished when Ctrl-C comes are kept."""
        for part in tokens.split(1 if self.device.type == "cpu" else len(tokens)):
            yield from to_pictures(self.decode(part))

    def reconstruct(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures as the tokenizer gives them back: the best that any picture of this model can be.

        Raises:
            ValueError: they are not of one size, or its sides no multiples of the tokenizer's f.
        """
        f, sizes = self.vqgan.config.f, {picture.size for picture in pictures}
        if len(sizes) != 1 or any(side % f for size in sizes for side in size):
            raise ValueError(f"pictures: must be of one size, its sides multiples of {f}, not {sorted(sizes)}")
        pixels = to_tensor(pictures).to(self.device)
        return [picture for part in pixels.split(32) for picture in self._pictures(self.vqgan.encode(part))]

    def _grid(
        self, size: int | tuple[int, int] | None, count: int, options: Options, regions: int = 0
    ) -> tuple[int, int]:
        """The grid's height and width for a size in pixels; for the rest see `_check_memory`."""
        f = self.vqgan.config.f
        sides = list(size) if isinstance(size, tuple | list) else [self.size if size is None else size] * 2
        if len(sides) != 2:
            raise ValueError(f"size: must be one number, or height and width, not {size}")
        height, width = (whole(side, "size") for side in sides)
        if height < f or width < f:
            raise ValueError(f"size: must be at least {f} x {f} pixels, not {height} x {width}")
        if height % f or width % f:
            nearest = " x ".join(str(max(f, math.floor(side / f + 0.5) * f)) for side in (height, width))
            raise ValueError(f"size: must be multiples of {f}, not {height} x {width}; the nearest is {nearest}")
        self._check_memory("size", height, width, count, options, regions)
        return height // f, width // f

    def _check_memory(
        self, argument: str, height: int, width: int, count: int, options: Options, regions: int = 0
    ) -> None:
        """To be called before anything of a picture's size is made.

        Args:
            argument: what the size comes from.
            height, width: in pixels.
            count: of pictures.
            regions: how many prompts have a region of their own.

        Raises:
            ValueError: there is not enough memory.
        """
        f = self.vqgan.config.f
        run = self._run((-(-height // f), -(-width // f)), count, self._settings(options), options, regions)
        memory.check(self.predictor, self.vqgan, run, argument)

    def _settings(self, options: Options, renoise: str | None = None) -> SamplerSettings:
        """Those of this call: the model's own, but for what is given.

        Raises:
            ValueError: one is out of range.
        """
        checks = {"steps": whole, "guidance": number, "typical_mass": number, "temperature": number}
        given = {name: value for name in checks if (value := options.get(name)) is not None}
        changed = {name: checks[name](value, name) for name, value in given.items()}
        return replace(self.settings, **changed, renoise=renoise or self.settings.renoise)  # type: ignore[arg-type]

    def _variation_options(self, options: Options, strength: float) -> Options:
        """The options, filled with what variations have in place of the model's settings; `strength`, from 0 to 1, is
        how far these are on the way to those of prompts."""
        own = for_variations(self.settings, self.variations)
        if options.get("negative_prompt"):
            own = replace(own, guidance=self.settings.guidance)  # without any it would do nothing
        for name in VARIED:
            if options.get(name) is None:
                start, end = getattr(own, name), getattr(self.settings, name)
                options[name] = (1 - strength) * start + strength * end  # type: ignore[literal-required]
        return options

    @staticmethod
    def _run(
        grid: tuple[int, int], count: int, settings: SamplerSettings, options: Options, regions: int
    ) -> memory.Run:
        """What the estimate of memory is told; `grid` is in tokens."""
        steps = settings.steps if options.get("trajectory") else 0
        return memory.Run(*grid, count, settings.guidance != 1, regions, steps, settings.renoise_at == "unsure")

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
        finish: Callable[[Image.Image], Image.Image] = lambda drawn: drawn,
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
            finish: what is left to do with each picture.
        """
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"{ability}: unknown argument {', '.join(sorted(unknown))}")
        settings = self._settings(options, renoise)
        seeds = seeds_of(options.get("seed"), len(prompts)) if seeds is None else seeds
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = edits.random_tokens(generators, *grid, self.vqgan.config.n_embed).to(self.device)
        negative = options.get("negative_prompt")
        null = self._embed([words(negative or "", "negative_prompt")], "negative_prompt")[:, :, None, None]
        if negative and settings.guidance == 1:
            warn("negative_prompt: does nothing at guidance 1, which asks for the prompt alone")
        alike = {"ability": ability, "model": self.name, "settings": json.dumps(asdict(settings)), **(record or {})}
        if negative is not None:
            alike["negative_prompt"] = negative
        pictures: list[Image.Image] = []
        try:
            for drawn, steps in self._sample(canvas(noise), settings, generators, null, options):
                picture = finish(drawn)
                own = {"prompt": prompts[len(pictures)], "seed": str(seeds[len(pictures)])}
                picture.info.update(own | alike)
                if options.get("trajectory"):
                    picture.info["trajectory"] = [replace(step, picture=finish(step.picture)) for step in steps]
                pictures.append(picture)
        except Cancelled as cancelled:
            cancelled.pictures = pictures
            raise
        except KeyboardInterrupt as interrupt:
            interrupted = Interrupted()
            interrupted.pictures = pictures
            raise interrupted from interrupt
        return pictures

    def _condition_map(self, regions: Sequence[tuple[str, Tensor]], backgrounds: Tensor, softness: int) -> Tensor:
        """(B,d,h,w): a prompt for each region (H,W) bool, one of the backgrounds' embeddings (B,d) everywhere else."""
        weights = edits.soft_weights(torch.stack([area for _, area in regions]), self.vqgan.config.f, softness)
        own = self._embed([text for text, _ in regions])
        return torch.cat([edits.condition_map(torch.cat([own, one[None]]), weights.to(own)) for one in backgrounds])

    @torch.inference_mode()
    def _encode(self, picture: Image.Image) -> Tensor:
        """Tokens (1,h,w) of a picture whose sides are multiples of f."""
        return self.vqgan.encode(to_tensor([picture]).to(self.device))

    @property
    def knows_context(self) -> bool:
        """Whether its predictor learned to paint in context by the embedding of what is known: see `context_share` of
        `paella.train.predictor`. It is asked so where the picture's prompt is empty; others get the null condition."""
        return bool((self.recipe or {}).get("context_share"))

    @torch.inference_mode()
    def _embed_known(self, picture: Image.Image, known: Tensor) -> Tensor:
        """The CLIP embedding (d,) of a picture as far as its tokens (h,w) are known: of the square, as large as fits,
        that holds most of these."""
        pixels = blanked(to_tensor([picture]).to(self.device), known[None])
        side, f = min(known.shape), self.vqgan.config.f
        held = [known.unfold(axis, side, 1).sum(dim=(-1, 1 - axis)) for axis in (0, 1)]  # by each place of a square
        top, left = (int(counts.argmax()) * f for counts in held)
        return self.clip.embed_images(pixels[..., top : top + side * f, left : left + side * f])[0]

    def _embed_picture(self, picture: Image.Image) -> Tensor:
        """The picture's CLIP embedding (d,)."""
        return self.clip.embed_images(to_tensor([picture]).to(self.device))[0]

    def _embed(self, prompts: Sequence[str], argument: str = "prompt") -> Tensor:
        """Embeddings (B,d); an empty prompt is the null condition. Each distinct text is embedded once, alone."""
        texts = {text for text in prompts if text.strip()}
        for text in sorted(texts):
            if isinstance(self.clip, Clip) and self.clip.is_cut(text):
                warn(f"{argument}: cut to the {self.clip.context} tokens that CLIP reads: {text!r}")
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
        options: Options,
    ) -> Iterator[tuple[Image.Image, list[Step]]]:
        """Runs the loop and decodes: yields each picture with its steps, which are none without `trajectory`."""
        is_map = canvas.condition.shape[-2:] != (1, 1)
        count, height, width = canvas.tokens.shape
        run = self._run((height, width), count, settings, options, regions=int(is_map))
        most = min(self._batches.most(self.predictor, height * width), count)
        chunk = memory.pictures_at_once(self.predictor, self.vqgan, run, most)
        method, on_step = method_of(self.predictor), options.get("on_step")
        for part, denoise in self._batches.parts(self.predictor, canvas, null, settings.guidance, chunk):
            own = canvas[part]
            recorder = Recorder(own) if options.get("trajectory") else None
            if recorder is not None:
                denoise = recorder.watched(denoise)
            tokens = own.tokens
            for step, tokens in enumerate(method.sample(denoise, own, settings, generators[part]), 1):
                if recorder is not None:
                    recorder.add(tokens)
                if on_step is not None and on_step(step, settings.steps, tokens) is False:
                    raise Cancelled
            steps = recorder.trajectories(self._pictures) if recorder is not None else [[] for _ in tokens]
            yield from zip(self._pictures(tokens), steps, strict=True)
