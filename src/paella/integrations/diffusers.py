"""`PaellaPipeline`: a model of ours as a `DiffusionPipeline`, for those who live in diffusers.

It translates arguments and results, and draws by the abilities of `Paella`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from paella.arguments import SEEDS
from paella.images import Picture, to_tensor
from paella.pipeline import Paella

# (pipeline, step from 0, steps left, {"latents": tokens (B,h,w)}) -> None or a dict that leaves the tokens alone
OnStepEnd = Callable[["PaellaPipeline", int, int, dict[str, Any]], Mapping[str, Any] | None]

# our argument -> what it is called here, for errors
NAMES = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "n": "num_images_per_prompt",
    "size": "height, width",
    "seed": "generator",
    "mask": "mask_image",
}


class PaellaPipeline(DiffusionPipeline):
    """Text to image, and by the arguments that are given, three of the edits.

    | given | ability |
    |---|---|
    | `prompt` | `Paella.generate` |
    | `prompt`, `image` and perhaps `strength` | `Paella.restyle` |
    | `image`, `mask_image` and perhaps `prompt` | `Paella.inpaint` |
    | `image` | `Paella.vary` |

    The other abilities are those of `model`. Offloading is not supported.

    Args:
        model: what draws.
    """

    _interrupt = False  # set by a callback that wants the drawing to end

    def __init__(self, model: Paella) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **options: Any) -> PaellaPipeline:
        """The pipeline of a model folder, a hub id or, by default, the built-in model; see `Paella.from_pretrained`."""
        return cls(Paella.from_pretrained(model, **options))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a model folder, which `from_pretrained` reads, and `Paella.from_pretrained` too."""
        self.model.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the model; see `Paella.push_to_hub`."""
        return self.model.push_to_hub(repo_id, **options)

    def to(self, *args: Any, **kwargs: Any) -> PaellaPipeline:
        """As `torch.nn.Module.to`; a dtype is the predictor's alone. Returns itself."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        self.model.to(device, dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Picture | None = None,
        mask_image: Picture | None = None,
        strength: float | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Draws.

        Args:
            prompt: one or several; the pictures are prompt-major.
            image: a PIL image, a uint8 array (H,W,3) or a file, of any size. All pictures are made from the one.
            mask_image: of the image's size, white is repainted.
            strength: how much of the image's tokens is noise at the start: 0 = none, 1 = all; see `Paella.restyle`.
            height, width: in pixels, where the picture is not an edited one. None = the model's own.
            num_inference_steps, guidance_scale: None = the model's own; for `image` alone, what `Paella.vary` has.
            negative_prompt: what to steer away from in all pictures.
            num_images_per_prompt: at least 1.
            generator: stands for its seed, `generator.initial_seed()`, whatever it has drawn since: picture i of the
                result is that of `Paella` with this seed + i, or with the seed of the i-th of a list. None = a seed
                drawn by torch's own generator.
            output_type: "pil", "np" (B,H,W,3) or "pt" (B,3,H,W): float32 in [0, 1], on the CPU.
            return_dict: False = a tuple of one.
            callback_on_step_end: called as `callback(pipeline, step, steps_left, {"latents": tokens})` after each step,
                with those of the pictures that are drawn together. It may set `pipeline._interrupt = True` to raise
                `Cancelled`.

        Raises:
            ValueError: an argument that is out of range, or that does not go with the others; the message names it.
            Cancelled: a callback asked for it.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: must be pil, np or pt, not {output_type!r}")
        for name, value in (("mask_image", mask_image), ("negative_prompt", negative_prompt)):
            if isinstance(value, list | tuple):
                raise ValueError(f"{name}: must be one for all pictures, not a {type(value).__name__}")
        own = self.model
        sides = tuple(own.size if side is None else side for side in (height, width))
        size = None if height is None and width is None else sides
        ability = self._ability(prompt, image, mask_image, strength, size)
        steps = own.settings.steps if num_inference_steps is None else num_inference_steps
        count = num_images_per_prompt * (1 if prompt is None or isinstance(prompt, str) else len(prompt))
        self._interrupt = False

        with self.progress_bar(total=count * steps) as bar:

            def on_step(step: int, steps: int, tokens: Tensor) -> bool:
                bar.update(len(tokens))
                if callback_on_step_end is not None:
                    returned = callback_on_step_end(self, step - 1, steps - step, {"latents": tokens}) or {}
                    if returned.get("latents", tokens) is not tokens:
                        raise ValueError("callback_on_step_end: must not return other latents than it was given")
                return not self._interrupt

            try:
                pictures = ability(
                    n=num_images_per_prompt,
                    steps=num_inference_steps,
                    guidance=guidance_scale,
                    negative_prompt=negative_prompt,
                    seed=_seed(generator),
                    on_step=on_step,
                )
            except ValueError as error:
                name, _, rest = str(error).partition(":")
                if name not in NAMES:
                    raise
                raise ValueError(f"{NAMES[name]}:{rest}") from error
        images = _converted(pictures, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _ability(
        self,
        prompt: str | Sequence[str] | None,
        image: Picture | None,
        mask_image: Picture | None,
        strength: float | None,
        size: tuple[int, ...] | None,
    ) -> Callable[..., list[Image.Image]]:
        """The ability that the given arguments ask for, with these arguments bound."""
        if image is None:
            _refuse("mask_image", mask_image, "needs an image")
            _refuse("strength", strength, "needs an image")
            if prompt is None:
                raise ValueError("prompt: must be given where there is no image")
            return partial(self.model.generate, prompt, size=size)
        if mask_image is not None:
            _refuse("strength", strength, "does not go with mask_image, which says what is drawn anew")
            _refuse("height, width", size, "an edited picture keeps its size")
            return partial(self.model.inpaint, image, mask_image, "" if prompt is None else prompt)
        if prompt is not None:
            _refuse("height, width", size, "an edited picture keeps its size")
            restyle = partial(self.model.restyle, image, prompt)
            return restyle if strength is None else partial(restyle, strength=strength)
        _refuse("strength", strength, "needs a prompt beside the image")
        return partial(self.model.vary, image, size=size)


def _refuse(name: str, value: object, reason: str) -> None:
    """Raises ValueError where an argument is given that the others have no use for."""
    if value is not None:
        raise ValueError(f"{name}: {reason}")


def _seed(generator: torch.Generator | Sequence[torch.Generator] | None) -> int | list[int]:
    """What `Paella` calls a seed, of which it has half as many as torch."""
    if generator is None:
        return int(torch.randint(2**62, ()))
    if isinstance(generator, torch.Generator):
        return generator.initial_seed() % SEEDS
    return [one.initial_seed() % SEEDS for one in generator]


def _converted(pictures: list[Image.Image], output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    if output_type == "pil":
        return pictures
    pixels = to_tensor(pictures)
    return pixels if output_type == "pt" else pixels.permute(0, 2, 3, 1).numpy()
