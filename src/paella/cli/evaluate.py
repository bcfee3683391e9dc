"""`paella evaluate`: measures a model."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paella.cli.draw import load_pipeline
from paella.cli.errors import Command, warn
from paella.cli.files import check_writable, write_picture, write_text
from paella.cli.info import machine
from paella.cli.options import (
    Dtype,
    Guidance,
    Jitter,
    Model,
    Quantize,
    Seed,
    Snap,
    Steps,
    Temperature,
    TypicalMass,
    read_prompts,
    sampler_options,
)
from paella.cli.progress import counting, drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL.Image import Image

    from paella.data import PictureData
    from paella.evaluate.scenes import Rate
    from paella.pipeline import Paella

SHOWN = 64  # pictures on the contact sheet

app = typer.Typer(name="evaluate", help="Measure a model.", rich_markup_mode="markdown")


@app.callback()
def _root() -> None:
    pass


@app.command(cls=Command)
def scenes(
    ctx: typer.Context,
    number: Annotated[int, typer.Option("--number", "-n", help="Prompts of each kind.", min=1)] = 500,
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    snap: Snap = None,
    jitter: Jitter = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the report.")] = Path("evaluation"),
    model: Model = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Asks for emoji scenes kept from training, and judges what the model draws.

    Beside that it measures the model's three parts. The report is printed, and written as report.md and report.json
    beside a contact sheet, sheet.png.
    """
    check_writable(output, folder=True)
    from paella.evaluate.parts import evaluate_parts, format_parts
    from paella.evaluate.scenes import evaluate_scenes, format_table
    from paella.images import contact_sheet

    pipeline = _load(model, sampler_options(steps, guidance, typical_mass, temperature), dtype, quantize)
    names, real = pipeline.objects or None, _real(pipeline, snap, jitter)
    sheet: list[tuple[Image, str]] = []

    def show(pictures: list[Image], captions: list[str]) -> None:
        every = -(-len(pictures) // SHOWN)  # spread over all kinds
        sheet.extend(zip(pictures[::every], captions[::every], strict=True))

    started = time.perf_counter()
    with drawing(3 * number) as on_step:
        report = evaluate_scenes(
            _Watched(pipeline, on_step),
            number,
            seed,
            names=names,
            **real,
            on_pictures=show,
            **{name: getattr(pipeline.settings, name) for name in ("steps", "guidance", "typical_mass", "temperature")},
        )
    report["parts"] = evaluate_parts(pipeline, seed, names, **real)
    report |= _circumstances(ctx, pipeline, started)
    markdown = f"{format_table(report)}\n{format_parts(report['parts'])}"
    shown, captions = zip(*sheet, strict=True)
    write_picture(contact_sheet(shown, captions), output / "sheet.png")
    _write_report(output / "report", report, markdown)
    typer.echo(markdown)
    typer.echo(f"{output}: report.md, report.json and sheet.png, in {report['total seconds']:.0f} s")


@app.command(cls=Command)
def edits(
    ctx: typer.Context,
    number: Annotated[int, typer.Option("--number", "-n", help="Cases of each ability.", min=2)] = 100,
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    snap: Snap = None,
    jitter: Jitter = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the report.")] = Path("evaluation"),
    model: Model = None,
) -> None:
    """Edits real emoji scenes in every way, and judges what came of it.

    The report is printed, and written as edits.md and edits.json.
    """
    check_writable(output, folder=True)
    from paella.evaluate.edits import evaluate_edits, format_edits

    pipeline = _load(model, sampler_options(steps, guidance, typical_mass, temperature))
    started = time.perf_counter()
    real = _real(pipeline, snap, jitter)
    figures = evaluate_edits(pipeline, number, seed, names=pipeline.objects or None, **real)
    report = real | {"edits": figures} | _circumstances(ctx, pipeline, started)
    markdown = format_edits(figures)
    _write_report(output / "edits", report, markdown)
    typer.echo(markdown)
    typer.echo(f"{output}: edits.md and edits.json, in {report['total seconds']:.0f} s")


@app.command(cls=Command)
def words(
    ctx: typer.Context,
    number: Annotated[int, typer.Option("--number", "-n", help="Prompts of each group.", min=1)] = 500,
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    snap: Snap = None,
    jitter: Jitter = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the report.")] = Path("evaluation"),
    model: Model = None,
) -> None:
    """Asks for objects by other words than their names, in five languages, and judges what the model draws.

    The report is printed, and written as words.md and words.json.
    """
    check_writable(output, folder=True)
    from paella.evaluate.words import GROUPS, evaluate_words

    pipeline = _load(model, sampler_options(steps, guidance, typical_mass, temperature))
    rows = {group: group for group in GROUPS}
    asked = {"n": number, "seed": seed, **_real(pipeline, snap, jitter)}
    _rate(ctx, pipeline, evaluate_words, rows, number * len(GROUPS), output / "words", asked)


@app.command(cls=Command)
def counts(
    ctx: typer.Context,
    number: Annotated[int, typer.Option("--number", "-n", help="Prompts.", min=1)] = 500,
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    snap: Snap = None,
    jitter: Jitter = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the report.")] = Path("evaluation"),
    model: Model = None,
) -> None:
    """Asks for two, three or four of an object, in numbers of it that training never saw, and counts them.

    The report is printed, and written as counts.md and counts.json.
    """
    check_writable(output, folder=True)
    from paella.evaluate.counts import ROWS, evaluate_counts

    pipeline = _load(model, sampler_options(steps, guidance, typical_mass, temperature))
    asked = {"n": number, "seed": seed, **_real(pipeline, snap, jitter)}
    _rate(ctx, pipeline, evaluate_counts, ROWS, number, output / "counts", asked)


@app.command(cls=Command)
def labels(
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures of each kind.", min=1)] = 100,
    seed: Seed = 0,
    snap: Snap = None,
    model: Model = None,
) -> None:
    """Asks a model that was trained on labels of emoji scenes for its labels, and judges what it draws."""
    from paella.evaluate.labels import evaluate_labels

    pipeline = load_pipeline(model)
    for name, rate in evaluate_labels(pipeline, number, seed, snap=_real(pipeline, snap, None)["snap"]).items():
        typer.echo(f"{100 * rate['rate']:5.1f} % ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})  {name}")


@app.command(cls=Command)
def quality(
    ctx: typer.Context,
    data: Annotated[
        str, typer.Option(help="scenes = held-out emoji scenes, or a folder of pictures with captions.", metavar="DATA")
    ] = "scenes",
    prompts: Annotated[
        Path | None,
        typer.Option(help="Ask for the lines of this file in place of the data's captions.", metavar="FILE"),
    ] = None,
    number: Annotated[
        int, typer.Option("--number", "-n", help="Pictures to generate; twice as many real ones are needed.", min=10)
    ] = 500,
    features: Annotated[
        str,
        typer.Option(
            help="The network that compares pictures: clip = the model's own CLIP, inception = the standard FID "
            "protocol (needs torch-fidelity), or the folder of a CLIP or DINOv2 model.",
            metavar="FEATURES",
        ),
    ] = "clip",
    steps: Steps = None,
    guidance: Guidance = None,
    typical_mass: TypicalMass = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    snap: Snap = None,
    jitter: Jitter = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The report, a .json file.")] = Path("quality.json"),
    model: Model = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Compares what the model draws with real pictures: Fréchet and kernel distance, precision, recall, CLIP score.

    The report is printed, and written as .json and .md. Beside it lie, for the next time, the features of the real
    pictures and, while it is at work, those of the generated ones: the same command goes on where it was interrupted.
    """
    if output.suffix.lower() != ".json":
        raise ValueError(f"output: must end in .json, not {output}")
    if data != "scenes" and (snap is not None or jitter is not None):
        raise ValueError(f"{'jitter' if snap is None else 'snap'}: is for emoji scenes, and the data are {data}")
    check_writable(output)
    asked = None if prompts is None else read_prompts(prompts, "prompts")
    import torchmetrics  # noqa: F401  where it is missing, that shows now and not when the pictures are drawn

    from paella.evaluate.features import open_extractor
    from paella.evaluate.quality import HeldOutScenes, evaluate_quality, folder_pictures, format_quality
    from paella.processes import place

    place()  # first, as it says which GPU this process is to use
    pipeline = _load(model, sampler_options(steps, guidance, typical_mass, temperature), dtype, quantize)
    size, names = pipeline.size, pipeline.objects or None
    drawn: dict[str, int] = {}
    if data == "scenes":
        drawn = _real(pipeline, snap, jitter)
        real: PictureData = HeldOutScenes(size, seed, names=names, **drawn)
    else:
        real = folder_pictures(Path(data), number, size, seed)
    extractor = open_extractor(features, pipeline)
    work = output.with_suffix(".work.safetensors")
    started = time.perf_counter()
    try:
        with counting("drawing") as progress:
            report = evaluate_quality(
                pipeline,
                real,
                number,
                seed,
                extractor=extractor,
                prompts=asked,
                work=work,
                cache=output.parent,
                progress=progress,
            )
    except KeyboardInterrupt:
        warn(f"interrupted; the same command goes on with what is in {output.parent}")
        raise typer.Exit(130) from None
    if report is None:  # another process has it
        return
    report = _circumstances(ctx, pipeline, started) | {"data": data} | drawn | report
    markdown = format_quality(report)
    _write_report(output, report, markdown)
    typer.echo(markdown)
    typer.echo(f"{output} and {output.with_suffix('.md').name}, in {report['total seconds']:.0f} s")


def _load(
    model: str | None, settings: dict[str, int | float], dtype: str = "auto", quantize: str | None = None
) -> Paella:
    """The pipeline, with these settings its own."""
    pipeline = load_pipeline(model, dtype=dtype, quantize=quantize)
    pipeline.settings = replace(pipeline.settings, **settings)  # type: ignore[arg-type]
    pipeline.variations = {name: value for name, value in pipeline.variations.items() if name not in settings}
    return pipeline


def _real(pipeline: Paella, snap: int | None, jitter: int | None) -> dict[str, int]:
    """How real scenes are drawn: as asked, else as those that the model learned from."""
    from paella.evaluate.scenes import trained_on

    asked = {"snap": snap, "jitter": jitter}
    return trained_on(pipeline) | {name: value for name, value in asked.items() if value is not None}


def _circumstances(ctx: typer.Context, pipeline: Paella, started: float) -> dict[str, Any]:
    """What a report's figures depend on."""
    return {
        "model": pipeline.name,
        "sampler": asdict(pipeline.settings),
        "dtype": str(pipeline.dtype),
        "device": str(pipeline.device),
        "machine": machine(),
        "total seconds": time.perf_counter() - started,
        "command": shlex.join(["paella", *ctx.obj["args"]]),
    }


def _rate(
    ctx: typer.Context,
    pipeline: Paella,
    evaluate: Callable[..., dict[str, dict[str, Rate]]],
    rows: Mapping[str, str],
    pictures: int,
    stem: Path,
    asked: dict[str, int],
) -> None:
    """Prints and writes a table of rates.

    Args:
        pictures: how many the evaluation draws.
        stem: of the two files.
        asked: of `evaluate`.
    """
    from paella.data.vocabulary import objects
    from paella.evaluate.scenes import format_rates

    names = pipeline.objects or list(objects())
    started = time.perf_counter()
    with drawing(pictures) as on_step:
        watched = _Watched(pipeline, on_step)
        scores = evaluate(watched, **asked, names=names)
    asked |= {"objects": len(names)}
    report = asked | {"scores": scores} | _circumstances(ctx, pipeline, started)
    settings = ", ".join(f"{name} {value}" for name, value in (asked | report["sampler"]).items())
    markdown = f"{settings}. Per cent, with 95 % Wilson intervals.\n\n{format_rates(scores, rows)}"
    _write_report(stem, report, markdown)
    typer.echo(markdown)
    typer.echo(f"{stem.parent}: {stem.name}.md and {stem.name}.json, in {report['total seconds']:.0f} s")


def _write_report(stem: Path, report: dict[str, Any], markdown: str) -> None:
    """Writes the report beside `stem`, as .md and .json."""
    import json

    write_text(f"`{report['command']}`\n\n{markdown}", stem.with_suffix(".md"))
    write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", stem.with_suffix(".json"))


class _Watched:
    """A pipeline whose progress is shown."""

    def __init__(self, pipeline: Paella, on_step: Callable[[int, int, Any], None]) -> None:
        self.pipeline, self.on_step = pipeline, on_step
        self.reconstruct = pipeline.reconstruct

    def generate(self, prompt: list[str], *, seed: int, **settings: Any) -> list[Image]:
        return self.pipeline.generate(prompt, seed=seed, on_step=self.on_step, **settings)
