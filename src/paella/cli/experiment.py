"""`paella experiment`: the paper's experiments, each ending in a table and a plot."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paella.cli.draw import load_pipeline
from paella.cli.errors import warn
from paella.cli.files import check_writable, unused, write_file, write_text
from paella.cli.info import machine
from paella.cli.options import Model, Seed
from paella.cli.progress import counting
from paella.experiments import NAMES, load

if TYPE_CHECKING:
    from paella.experiments.experiment import Rows
    from paella.pipeline import Paella

Name = StrEnum("Name", NAMES)  # type: ignore[misc]


def experiment(
    ctx: typer.Context,
    name: Annotated[Name, typer.Argument(help="Which; docs/experiments.md says what each asks.")],
    number: Annotated[
        int | None,
        typer.Option(
            "--number",
            "-n",
            help="For each setting: prompts of each kind of scene, runs of a batch or, of networks, training steps. "
            "Default: the experiment's own, for tables worth reading; fewer are sooner done.",
            min=1,
        ),
    ] = None,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder for the rows (.json), the page (.md) and the plot (.png).")
    ] = Path("docs/experiments"),
    model: Model = None,
) -> None:
    """Measures one of the paper's experiments with a model, and writes its table and its plot.

    Each setting that is finished is kept, and not measured again when the same command is given again after Ctrl-C.
    """
    check_writable(output, folder=True)
    from paella.experiments.report import plot, tables  # first, as it needs a package that may be missing

    chosen = load(name)
    number = chosen.number if number is None else number
    if number < chosen.fewest:
        raise ValueError(f"number: must be at least {chosen.fewest}, not {number}")
    pipeline = load_pipeline(model)
    conditions = _conditions(pipeline, number, seed)
    file = output / f"{name}.json"
    rows = finished = _finished(file, conditions)
    try:
        with counting(f"experiment {name}") as progress:
            for rows in chosen.run(pipeline, number, seed, finished, progress):
                write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1, ensure_ascii=False), file)
    except KeyboardInterrupt:
        warn(f"interrupted; the same command goes on after the {sum(map(len, rows.values()))} rows in {file}")
        raise typer.Exit(130) from None
    about = ", ".join(f"{key} {value}" for key, value in {**conditions, **conditions["sampler"]}.items() if key in SAID)
    on = ", ".join(f"{key} {value}" for key, value in conditions["machine"].items())
    page = (
        f"# {chosen.title}\n\n`{shlex.join(['paella', *ctx.obj['args']])}`\n\n"
        f"{number} {chosen.counted}; {about}; {on}.\n"
        f"In brackets 95 % intervals: Wilson's of rates, the bootstrap's of means, by random halves of the rest. "
        f"{chosen.note}\n\n"
    )
    table = tables(chosen, rows)
    figure = plot(chosen, rows)
    write_text(f"{page}{table}\n![{chosen.title}]({name}.png)\n", file.with_suffix(".md"))
    write_file(file.with_suffix(".png"), lambda opened: figure.savefig(opened, format="png", dpi=120))
    typer.echo(table)
    typer.echo(f"{output}: {name}.md, {name}.png and {name}.json")


SAID = ("seed", "model", "weights", "dtype", "device", "steps", "guidance", "typical_mass", "temperature", "renoise")


def _conditions(pipeline: Paella, number: int, seed: int) -> dict[str, Any]:
    """What all rows of a table must have in common."""
    return {
        "number": number,
        "seed": seed,
        "model": pipeline.name,
        "weights": pipeline.fingerprint()[:12],
        "sampler": asdict(pipeline.settings),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": str(pipeline.device),
        "machine": machine(),
    }


def _finished(file: Path, conditions: dict[str, Any]) -> Rows:
    """The rows that were measured before under these conditions; a file of others is set aside.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        before, rows = found["conditions"], found["rows"]
        differing = [key for key in conditions if before.get(key) != conditions[key]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"output: {file} is not what this command writes; move it, or choose another folder") from None
    if before == conditions:
        return rows
    kept = file.replace(unused(file.with_stem(f"{file.stem}-before")))
    warn(f"{file}: was measured otherwise ({', '.join(differing)}); it is {kept} now, and all is measured anew")
    return {}
