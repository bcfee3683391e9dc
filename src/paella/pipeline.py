"""`Paella`: prompts in, pictures out. The face of the library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paella import edits
from paella.arguments import SEEDS, fraction, per_picture, placed, prompt_list, seeds_of, whole, words
from paella.canvas import Canvas
from paella.engine import Cancelled, Engine, Interrupted, OnStep, Options
from paella.images import (
    Box,
    Picture,
    composite,
    covered,
    feathered,
    halves,
    open_mask,
    open_picture,
    padded_to_multiple,
    region_mask,
    retouched,
    token_mask,
)

__all__ = ["Cancelled", "Interrupted", "OnStep", "Paella"]

Region = tuple[str, str | Box | Picture]  # a prompt, and where: left, right, top or bottom (a half), a box or a mask


class Paella(Engine):
    """A text-to-image model: token predictor, VQGAN and CLIP, with its own default settings.

    `from_pretrained` is the usual way to get one; for its attributes and for making one of parts see `Engine`.
    """

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
        seed: int | Sequence[int] | None = 0,
        on_step: OnStep | None = None,
        trajectory: bool = False,
    ) -> list[Image.Image]:
        """Text to image.

        Args:
            prompt: one or several; not empty.
            n: pictures for each prompt; the result is prompt-major.
            size: pixels, (height, width) or one number for both; multiples of the tokenizer's f.
            steps, guidance, typical_mass, temperature: see `SamplerSettings`; None = the model's own default.
            negative_prompt: what to steer away from, in place of the null condition.
            seed: in {0 … 2^63 - 1}; picture i has seed `seed + i`. Or a list with the seed of each picture.
            on_step: called as `on_step(step, steps, tokens)` after each step, with the tokens (B,h,w) of the pictures
                that are drawn together, one to sixteen; returning False raises Cancelled. It has the pictures that are
                finished, as has Interrupted, which Ctrl-C raises.
            trajectory: whether each picture brings what its steps left, as `info["trajectory"]`: a list of
                `paella.trajectory.Step`. The pictures are the same.

        Returns:
            RGB pictures with prompt, seed, settings and model in `info`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        prompts = per_picture(prompt, n)
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
            "trajectory": trajectory,
        }
        grid = self._grid(size, len(prompts), options)
        canvas = partial(edits.text_to_image, condition=self._embed(prompts)[:, :, None, None])
        return self._draw("generate", prompts, grid, canvas, options)

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
            prompt: what the masked part, or the whole picture, shows; empty = whatever suits what is around it (see
                `knows_context`). Several prompts with one mask give pictures of each, prompt-major.
            n: pictures for each prompt.
            feather: pixels inside the mask's border over which old and new mix; fewer than half the mask's width.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        feather, picture = whole(feather, "feather"), open_picture(image)
        given = list(mask) if isinstance(mask, Sequence) and not isinstance(mask, str) else [mask]
        if not given:
            raise ValueError("mask: must be a mask, or a list of at least one")
        masks = torch.stack([open_mask(one, picture.size) for one in given])
        texts = prompt_list(prompt)
        if len(masks) > 1 and len(texts) > 1:
            if len(texts) != len(masks):
                raise ValueError(f"prompt: must be one, or one for each of the {len(masks)} masks, not {len(texts)}")
            regions, rest = list(zip(texts, masks, strict=True)), ""
            prompts = per_picture(" | ".join(texts), n)
        else:
            regions, rest = [], None
            prompts = per_picture(texts, n)
        hole = masks.any(0)
        self._check_memory("image", picture.height, picture.width, len(prompts), options, len(regions))
        return self._repaint(
            "inpaint", picture, hole, prompts, regions, options, edited=hole, rest=rest, feather=feather
        )

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
        left, right, top, bottom = (whole(pixels, name) for name, pixels in extents.items())
        for name, pixels in extents.items():
            if pixels < 0:
                raise ValueError(f"{name}: must be 0 or more pixels, not {pixels}")
        if not any(extents.values()):
            raise ValueError("left: one of left, right, top and bottom must be above 0")
        picture, regions = open_picture(image), placed(regions)
        prompts = per_picture(prompt, n)
        self._check_memory(
            "image", top + picture.height + bottom, left + picture.width + right, len(prompts), options, len(regions)
        )
        sides = ((top, bottom), (left, right))
        marked = torch.zeros(picture.height, picture.width, dtype=torch.bool)
        if mask is not None:
            marked = open_mask(mask, picture.size)
        known = np.pad(np.asarray(covered(picture, marked)), (*sides, (0, 0)), mode="symmetric")
        height, width = known.shape[:2]
        inside = slice(top, height - bottom), slice(left, width - right)
        new = torch.ones(height, width, dtype=torch.bool)
        new[inside] = False
        edited = torch.zeros_like(new)
        edited[inside] = marked
        strips = {
            "left": (0, 0, left, height),
            "right": (width - right, 0, width, height),
            "top": (0, 0, width, top),
            "bottom": (0, height - bottom, width, height),
        }
        areas = [(text, region_mask(where, (width, height), strips)) for text, where in regions]
        # the known part starts on the token grid, so that its tokens are those of the picture
        f = self.vqgan.config.f
        origin = (-left % f, -top % f)
        return self._repaint(
            "outpaint", Image.fromarray(known), new | edited, prompts, areas, options, edited=edited, origin=origin
        )

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
            options: see `generate`. Where the model has other defaults for variations, as a picture's embedding says
                more than a caption's, a prompt moves these to those of prompts, as far as `strength` says. With a
                negative prompt the guidance is that of prompts.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if strength is None:
            strength = 0.0 if prompt is None else 0.5
        elif prompt is None:
            raise ValueError("strength: says how far to move towards a prompt, and there is none")
        strength = fraction(strength, "strength")
        options = self._variation_options(options, strength)
        prompts = per_picture(words(prompt or "", "prompt"), n)
        grid = self._grid(size, n, options)
        embedding = self._embed_picture(open_picture(image))
        if prompt is not None:
            embedding = edits.slerp(embedding, self._embed([prompt])[0], strength)
        canvas = partial(edits.text_to_image, condition=embedding[None, :, None, None].expand(n, -1, 1, 1))
        record = {} if prompt is None else {"strength": str(strength)}
        return self._draw("vary", prompts, grid, canvas, options, record)

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
            start, end: each a prompt (a string) or a picture (anything else), of which the CLIP embedding counts: that
                end is a picture like it, as `vary` draws them, and not the picture itself.
            frames: how many, the first of `start` and the last of `end`.
            size: see `generate`.
            options: see `generate`; `seed` is that of every frame. Settings are those of prompts, between pictures too.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        if whole(frames, "frames") < 1:
            raise ValueError(f"frames: must be at least 1, not {frames}")
        grid = self._grid(size, frames, options)
        first, last = (
            self._embed([end_])[0] if isinstance(end_, str) else self._embed_picture(open_picture(end_, name))
            for name, end_ in (("start", start), ("end", end))
        )
        shares = torch.linspace(0, 1, frames).tolist()
        condition = torch.stack([edits.slerp(first, last, share) for share in shares])[:, :, None, None]
        canvas = partial(edits.text_to_image, condition=condition)
        names = [text if isinstance(text, str) else "a picture" for text in (start, end)]
        prompts = [" → ".join(names)] * frames
        seeds = seeds_of(options.get("seed"), 1) * frames
        return self._draw("interpolate", prompts, grid, canvas, options, seeds=seeds)

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
        strength = fraction(strength, "strength")
        picture = open_picture(image)
        prompts = per_picture(prompt, n)
        self._check_memory("image", picture.height, picture.width, len(prompts), options)
        tokens = self._encode(padded_to_multiple(picture, self.vqgan.config.f))
        seeds = seeds_of(options.get("seed"), len(prompts))
        # of its own stream, so that at strength 1 the rest is what plain generation draws
        streams = [torch.Generator().manual_seed(SEEDS + seed) for seed in seeds]
        shape = tokens.shape[1:]
        uniform = torch.stack([torch.rand(shape, generator=g, dtype=torch.float32, device="cpu") for g in streams])
        condition = self._embed(prompts)[:, :, None, None]

        def canvas(noise: Tensor) -> Canvas:
            return edits.renoised(tokens.expand_as(noise), strength, noise, uniform.to(self.device), condition)

        record = {"strength": str(strength)}
        grid = (tokens.shape[1], tokens.shape[2])

        def finish(drawn: Image.Image) -> Image.Image:
            return drawn.crop((0, 0, *picture.size))

        return self._draw("restyle", prompts, grid, canvas, options, record, renoise="previous", finish=finish)

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
            regions: (prompt, where), at least one; the prompt is not empty; where is "left", "right", "top" or "bottom"
                (a half of the picture), a box (left, top, right, bottom) in pixels, or a mask of the picture's size.
                Where regions overlap, their embeddings are averaged.
            background: the prompt of the rest.
            n: how many pictures.
            size: see `generate`.
            softness: width in pixels of the passage from one prompt to the next.
            options: see `generate`.

        Raises:
            ValueError: an argument out of range; the message names it.
        """
        regions = placed(regions)
        if not regions:
            raise ValueError("regions: must not be empty")
        if not all(text.strip() for text, _ in regions):
            raise ValueError("regions: the prompt of a region must not be empty")
        if whole(softness, "softness") < 0:
            raise ValueError(f"softness: must be 0 or more pixels, not {softness}")
        prompts = per_picture(
            " | ".join([text for text, _ in regions] + [background] * bool(words(background, "background"))), n
        )
        height, width = self._grid(size, n, options, len(regions))
        f = self.vqgan.config.f
        pixels = (width * f, height * f)
        areas = [(text, region_mask(where, pixels, halves(*pixels))) for text, where in regions]
        condition = self._condition_map(areas, self._embed([background]), softness).expand(n, -1, -1, -1)
        canvas = partial(edits.text_to_image, condition=condition)
        return self._draw("compose", prompts, (height, width), canvas, options)

    def _repaint(
        self,
        ability: str,
        picture: Image.Image,
        mask: Tensor,
        prompts: Sequence[str],
        regions: Sequence[tuple[str, Tensor]],
        options: Options,
        *,
        edited: Tensor,
        rest: str | None = None,
        feather: int = 0,
        origin: tuple[int, int] = (0, 0),
    ) -> list[Image.Image]:
        """In- and outpainting: new tokens where the mask (H,W) is True, the picture's own pixels everywhere else.

        Args:
            prompts: one for each picture, for the metadata.
            regions: prompts for parts of the picture, (H,W) bool.
            edited: (H,W) bool, the part of the mask around which one more token is drawn anew.
            rest: the prompt where there is no region; None = that of the picture.
            feather: see `feathered`.
            origin: (x, y) of the picture's corner on the token grid, each in 0 ... f-1.
        """
        weights = feathered(mask, feather)
        f, (x, y) = self.vqgan.config.f, origin
        visible = covered(picture, edited)  # before anything is mirrored: nothing is left of what was under the mask
        pixels = np.pad(np.asarray(visible), ((y, 0), (x, 0), (0, 0)), mode="symmetric")
        padded = padded_to_multiple(Image.fromarray(pixels), f)

        def aligned(area: Tensor) -> Tensor:
            return torch.nn.functional.pad(area, (x, -(x + area.shape[1]) % f, y, -(y + area.shape[0]) % f))

        def reached(area: Tensor) -> Tensor:
            """The tokens that hold a pixel of the area, and one more around what is edited."""
            return token_mask(aligned(area), f) | token_mask(aligned(area & edited), f, margin=1)

        tokens = self._encode(padded)
        inner, hole = token_mask(aligned(mask), f).to(self.device), reached(mask).to(self.device)
        texts = prompts if rest is None else [rest] * len(prompts)
        own = self._embed(texts)
        if self.knows_context and not hole.all() and not all(text.strip() for text in texts):
            seen = self._embed_known(padded, ~hole)
            own = torch.stack([one if text.strip() else seen for text, one in zip(texts, own, strict=True)])
        if regions:
            areas = [(text, reached(area).repeat_interleave(f, 0).repeat_interleave(f, 1)) for text, area in regions]
            condition = self._condition_map(areas, own, softness=0)
        else:
            condition = own[:, :, None, None]

        def canvas(noise: Tensor) -> Canvas:
            given = tokens.expand_as(noise)
            # What lies around the mask may change, but begins as it is, and is that again where noise from the start is
            # put between the steps: else the new pixels would not meet the old ones.
            return edits.free(edits.known(given, condition), hole, torch.where(inner, noise, given))

        grid = (tokens.shape[1], tokens.shape[2])
        box = (x, y, x + picture.width, y + picture.height)

        def finish(painted: Image.Image) -> Image.Image:
            return composite(picture, retouched(painted.crop(box), picture, mask), weights)

        return self._draw(ability, prompts, grid, canvas, options, finish=finish)
