"""`paella inpaint`, `outpaint`, `vary`, `interpolate`, `restyle`, `compose`: each says what to do with a pipeline."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paella.cli.draw import draw, load_pipeline
from paella.cli.files import check_writable, write_animation, write_pictures
from paella.cli.options import (
    FirstSeed,
    Guidance,
    Model,
    NegativePrompt,
    Number,
    Output,
    Size,
    Steps,
    Temperature,
    TypicalMass,
    is_picture_file,
    parse_size,
    sampler_options,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from paella.pipeline import Paella, Region


@dataclass(frozen=True)
class Task:
    """What an ability's own arguments ask for: how many pictures, of what, and what to do with the pipeline and the
    options of `generate`."""

    count: int
    prompts: Sequence[str]
    work: Callable[[Paella, dict[str, Any]], list[Image]]


ImageFile = Annotated[Path, typer.Argument(help="The picture: a file of any size and kind.", metavar="IMAGE")]
Regions = Annotated[
    list[str] | None,
    typer.Option(
        "--region",
        help="PROMPT@WHERE, repeatable. WHERE: left, right, top, bottom, a box LEFT,TOP,RIGHT,BOTTOM in pixels, or a "
        "mask file (white = here).",
        metavar="REGION",
    ),
]


def ability(prepare: Callable[..., Task], animations: Sequence[str] = ()) -> Callable[..., None]:
    """Turns a function that reads the arguments of one ability into a command that has the common options as well.

    Args:
        prepare: says what is to be done.
        animations: suffixes of output files into which the pictures go as frames.
    """

    def command(
        *,
        steps: Steps = None,
        guidance: Guidance = None,
        typical_mass: TypicalMass = None,
        temperature: Temperature = None,
        negative_prompt: NegativePrompt = None,
        seed: FirstSeed = None,
        output: Output = Path("pictures"),
        model: Model = None,
        **own: Any,
    ) -> None:
        single = is_picture_file(output, animations)
        check_writable(output, folder=not single)
        task = prepare(**own)
        common = sampler_options(steps, guidance, typical_mass, temperature)

        def write(pictures: list[Image]) -> Path:
            if single and output.suffix.lower() in animations:
                return write_animation(pictures, output)
            return write_pictures(pictures, output, seeds_in_captions=task.count > 1, source=own.get("image"))

        draw(
            lambda: load_pipeline(model),
            lambda pipeline, on_step: task.work(
                pipeline, {**common, "negative_prompt": negative_prompt, "seed": seed or 0, "on_step": on_step}
            ),
            write,
            task.count,
            task.prompts,
        )

    own, common = inspect.signature(prepare, eval_str=True), inspect.signature(command, eval_str=True)
    parameters = [p for p in common.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    first = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values()]
    command.__signature__ = inspect.Signature([*first, *parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*first, *parameters]}
    command.__name__, command.__doc__ = prepare.__name__, prepare.__doc__
    return command


@ability
def inpaint(
    image: ImageFile,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="What to paint; by default whatever suits the rest. With several masks, one for each."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask", "-m", help="A picture of the same size: white is repainted. Repeatable.", metavar="MASK"
        ),
    ] = None,
    number: Number = 1,
    feather: Annotated[int, typer.Option(help="Pixels inside the mask's border over which old and new mix.")] = 0,
) -> Task:
    """Repaints the part of a picture that a mask marks; every other pixel stays as it is."""
    if not mask:
        raise ValueError("mask: missing; give a picture of the same size, white where to repaint")
    prompts: str | list[str] = prompt[0] if prompt and len(prompt) == 1 else prompt or ""
    count = number if len(mask) > 1 or isinstance(prompts, str) else number * len(prompts)
    masks = mask[0] if len(mask) == 1 else mask
    return Task(
        count,
        prompt or [],
        lambda pipeline, options: pipeline.inpaint(image, masks, prompts, n=number, feather=feather, **options),
    )


@ability
def outpaint(
    image: ImageFile,
    prompt: Annotated[str, typer.Argument(help="What to paint; by default whatever suits the picture.")] = "",
    left: Annotated[int, typer.Option(help="Pixels to add on this side.")] = 0,
    right: Annotated[int, typer.Option(help="Pixels to add on this side.")] = 0,
    top: Annotated[int, typer.Option(help="Pixels to add on this side.")] = 0,
    bottom: Annotated[int, typer.Option(help="Pixels to add on this side.")] = 0,
    region: Regions = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", "-m", help="Of the old picture's size: white is repainted as well.", metavar="MASK"),
    ] = None,
    number: Number = 1,
) -> Task:
    """Continues a picture beyond its borders; what is there stays as it is.

    In --region, left ... bottom mean what is added there.
    """
    regions = [_region(text) for text in region or []]
    return Task(
        number,
        [prompt, *(text for text, _ in regions)],
        lambda pipeline, options: pipeline.outpaint(
            image,
            prompt,
            left=left,
            right=right,
            top=top,
            bottom=bottom,
            regions=regions,
            mask=mask,
            n=number,
            **options,
        ),
    )


@ability
def vary(
    image: ImageFile,
    prompt: Annotated[str | None, typer.Argument(help="Something to move towards.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far towards the prompt: 0 = the picture alone, 1 = the prompt alone.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 4,
    size: Size = None,
) -> Task:
    """Draws variations of a picture: other pictures of the same things."""
    pixels = None if size is None else parse_size(size)
    return Task(
        number,
        [prompt or ""],
        lambda pipeline, options: pipeline.vary(
            image, number, prompt=prompt, strength=strength, size=pixels, **options
        ),
    )


@partial(ability, animations=(".gif", ".webp"))
def interpolate(
    start: Annotated[str, typer.Argument(help="A prompt, or a picture file.")],
    end: Annotated[str, typer.Argument(help="A prompt, or a picture file.")],
    frames: Annotated[int, typer.Option("--frames", "-n", help="How many pictures.")] = 8,
    size: Size = None,
) -> Task:
    """Draws a row of pictures that turns one thing into another.

    --output may also be a .gif or .webp file: an animation.
    """
    ends = [_prompt_or_picture(text) for text in (start, end)]
    pixels = None if size is None else parse_size(size)
    return Task(
        frames,
        [text for text in ends if isinstance(text, str)],
        lambda pipeline, options: pipeline.interpolate(ends[0], ends[1], frames, size=pixels, **options),
    )


@ability
def restyle(
    image: ImageFile,
    prompt: Annotated[str, typer.Argument(help="What the picture shall show.")],
    strength: Annotated[
        float, typer.Option(help="How much changes: 0 = nothing, 1 = everything, as if there were no picture.")
    ] = 0.5,
    number: Number = 1,
) -> Task:
    """Draws a picture anew under another prompt, its colours and shapes about where they were."""
    return Task(
        number,
        [prompt],
        lambda pipeline, options: pipeline.restyle(image, prompt, strength=strength, n=number, **options),
    )


@ability
def compose(
    region: Regions = None,
    background: Annotated[str, typer.Option(help="The prompt of the rest.")] = "",
    softness: Annotated[int, typer.Option(help="Width in pixels of the passage from one prompt to the next.")] = 8,
    size: Size = None,
    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 1,
) -> Task:
    """Draws one picture of several prompts, each in its region.

    For example: paella compose --region "a fox@left" --region "a dog@right"
    """
    if not region:
        raise ValueError('region: missing; give at least one, such as "a fox@left"')
    regions = [_region(text) for text in region]
    pixels = None if size is None else parse_size(size)
    return Task(
        number,
        [text for text, _ in regions],
        lambda pipeline, options: pipeline.compose(
            regions, background=background, n=number, size=pixels, softness=softness, **options
        ),
    )


def _prompt_or_picture(text: str) -> str | Path:
    """A path where the text is like the name of a picture file, or that of a file that is there; else the text."""
    from paella.data.folder import PICTURE_SUFFIXES

    named = text.lower().endswith(tuple(PICTURE_SUFFIXES)) or (os.path.splitext(text)[1] and os.path.isfile(text))
    return Path(text) if named else text


def _region(text: str) -> Region:
    """ "a fox@left" -> ("a fox", "left"); "a fox@0,0,32,64" -> a box; anything else behind the @ is a mask file."""
    prompt, at, where = (part.strip() for part in text.rpartition("@"))
    if not (at and where):
        raise ValueError(f"region: must be like PROMPT@WHERE, such as 'a fox@left', not {text!r}")
    if re.fullmatch(r"-?\d+(,\s*-?\d+)*", where):
        return prompt, tuple(int(number) for number in where.split(","))  # type: ignore[return-value]
    return prompt, where
