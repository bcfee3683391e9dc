"""The `paella` command: one module for each command. Whatever is slow to import is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from paella import __version__
from paella.allocator import keep_freed_memory
from paella.cli import dataset, edits, evaluate, experiment, generate, import_checkpoint, info, push, train
from paella.cli.errors import Command, Failure, one_line, usage_message

app = typer.Typer(
    name="paella",
    help="Text to image by discrete denoising: make pictures, and train the models that make them.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
abilities = (edits.inpaint, edits.outpaint, edits.vary, edits.interpolate, edits.restyle, edits.compose)
parts = (info.info, train.train, experiment.experiment, import_checkpoint.import_checkpoint, push.push)
for command in (generate.generate, *abilities, *parts):
    app.command(cls=Command)(command)
app.add_typer(dataset.app)
app.add_typer(evaluate.app)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"paella {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line. Returns the exit code: 2 = what was asked for is wrong, 1 = the machine is in the way."""
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        code = typer.main.get_command(app).main(args, prog_name="paella", standalone_mode=False, obj={"args": args})
        return code if isinstance(code, int) else 0
    except Failure as failure:
        message, code = str(failure), failure.code
    except typer.Abort:
        message, code = "interrupted", 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer says of a bad command line has one
            raise
        message, code = usage_message(error), 2
    print(one_line(f"paella: error: {message}"), file=sys.stderr)
    return code


def main() -> None:
    keep_freed_memory()
    sys.exit(run())
