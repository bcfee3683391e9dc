"""`paella generate`: prompts in, pictures out."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paella.cli.draw import draw, load_pipeline
from paella.cli.errors import warn
from paella.cli.files import check_writable, write_picture, write_pictures
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
    read_prompts,
    sampler_options,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from paella.pipeline import OnStep, Paella


def generate(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="What the pictures show, e.g. 'a fox on a blue background'. - = standard input.", metavar="PROMPT"
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read the prompts from this file, one per line; - = standard input."),
    ] = None,
    number: Number = 1,
    size: Size = None,
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    negative_prompt: NegativePrompt = None,
    seed: FirstSeed = None,
    output: Output = Path("pictures"),
    model: Model = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Repeat this picture: prompt, seed, size and settings of its metadata, but for what is given here."
        ),
    ] = None,
    trajectory: Annotated[
        bool,
        typer.Option(
            "--trajectory",
            help="Write a film strip of the steps too: trajectory.png in the folder, or fox-trajectory.png beside "
            "fox.png. Its metadata hold the figures as JSON.",
        ),
    ] = False,
) -> None:
    """Makes pictures from prompts.

    Prompts are arguments, or lines of --file or of standard input. The settings default to the model's own;
    `paella info` tells them, and `paella info --objects` what can be asked for. Every picture's PNG metadata hold
    prompt, seed, settings and model, from which --like makes it again.
    """
    original = None if like is None else _read_original(like)
    prompts = _prompts(prompt or [], file, default=None if original is None else original.info["prompt"])
    pixels = None if size is None else parse_size(size)
    if original is not None:
        pixels = (original.height, original.width) if pixels is None else pixels
        seed = int(original.info["seed"]) if seed is None else seed
        negative_prompt = original.info.get("negative_prompt") if negative_prompt is None else negative_prompt
    check_writable(output, folder=not is_picture_file(output))

    def load() -> Paella:
        pipeline = load_pipeline(model)
        if original is not None:
            _adopt_settings(pipeline, original)
        return pipeline

    def work(pipeline: Paella, on_step: OnStep) -> list[Image]:
        return pipeline.generate(
            prompts,
            number,
            size=pixels,
            negative_prompt=negative_prompt,
            seed=seed or 0,
            on_step=on_step,
            trajectory=trajectory,
            **sampler_options(steps, guidance, typical_mass, temperature),  # type: ignore[arg-type]
        )

    count = len(prompts) * max(number, 1)

    def write(pictures: list[Image]) -> Path:
        path = write_pictures(pictures, output, seeds_in_captions=number > 1)
        if trajectory:  # last, as it is the larger file and the lesser loss
            _write_film_strip(pictures, output)
        return path

    pictures = draw(load, work, write, count, prompts)
    if original is not None and _info(pictures[0]) == _info(original):
        if pictures[0].tobytes() == original.convert("RGB").tobytes():
            typer.echo(f"the same as {like}, bit for bit")
        else:
            warn(f"{like} has other pixels: another machine, dtype, version or weights made it")


def _write_film_strip(pictures: list[Image], output: Path) -> None:
    """Writes the steps of the pictures beside them, and says where."""
    from paella.trajectory import film_strip

    single = is_picture_file(output)
    path = output.with_stem(f"{output.stem}-trajectory") if single else output / "trajectory.png"
    path = write_picture(film_strip(pictures), path, beside=not single)
    typer.echo(f"{path}: each step, with t, the mean entropy of the tokens (nats) and the share of them that changed")


def _prompts(prompts: list[str], file: Path | None, default: str | None) -> list[str]:
    """The prompts from wherever they come; `default` where nothing was given."""
    if prompts and file is not None:
        raise ValueError("file: prompts come from arguments or from a file, not from both")
    if prompts == ["-"]:
        prompts, file = [], Path("-")
    if not prompts and file is None and default is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ValueError("prompt: missing; give one or more, or --file, or lines on standard input")
        file = Path("-")
    if file is not None:
        prompts = read_prompts(file, "file")
    elif not prompts and default is not None:
        prompts = [default]
    if not all(text.strip() for text in prompts):
        raise ValueError("prompt: must not be empty")
    return prompts


def _read_original(like: Path) -> Image:
    """The picture to repeat, with the metadata that this takes."""
    from paella.images import read_picture

    picture = read_picture(like, "like")
    info = _info(picture)
    if missing := {"prompt", "seed", "settings"} - set(info):
        raise ValueError(f"like: {like} does not say how it was made: no {', '.join(sorted(missing))} in its metadata")
    if info.get("ability", "generate") != "generate":
        raise ValueError(f"like: {like} was made by {info['ability']}; only pictures of generate can be repeated")
    if not re.fullmatch(r"\d+", info["seed"]):
        raise ValueError(f"like: {like} has a seed that is no number: {info['seed']!r}")
    return picture


def _info(picture: Image) -> dict[str, str]:
    """What the picture's metadata say of its making."""
    return {key: value for key, value in picture.info.items() if isinstance(key, str) and isinstance(value, str)}


def _adopt_settings(pipeline: Paella, original: Image) -> None:
    """Makes the picture's settings the pipeline's own."""
    from paella.sampler import SamplerSettings

    info = _info(original)
    try:
        settings: dict[str, Any] = json.loads(info["settings"])
        pipeline.settings = SamplerSettings(**settings)
        original.info["settings"] = json.dumps(
            asdict(pipeline.settings)
        )  # settings that came later have their defaults
    except (TypeError, ValueError) as error:
        raise ValueError(f"like: its settings cannot be used here: {error}") from error
    if info.get("model", pipeline.name) != pipeline.name:
        warn(f"--like: the picture is by the model {info['model']}, not by {pipeline.name}; it will look different")
