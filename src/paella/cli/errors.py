"""Whatever goes wrong becomes one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperCommand

LONGEST_LINE = 1000  # characters; a damaged model can have thousands of wrong keys
# the extra that brings a package
EXTRAS = dict.fromkeys(("accelerate", "omegaconf", "tensorboard", "vector_quantize_pytorch", "yaml"), "train")
EXTRAS |= {"torchmetrics": "evaluate", "matplotlib": "bench"}


class Failure(Exception):
    """A command that failed: what to tell the user, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unwritable(OSError):
    """A file that cannot be written; the message says which and why."""


class Command(TyperCommand):
    """A command whose errors are `Failure`s that name its own options, and whose warnings are single lines."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", message=r"[a-z_.]+: ")  # ours begin with the argument's name
            warnings.showwarning = lambda message, *_, **__: warn(self._with_option(str(message)))
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt as error:  # typer would leave without a word
                raise Failure("interrupted", 130) from error
            except Exception as error:
                if os.environ.get("PAELLA_DEBUG"):
                    raise
                raise self._failure(error) from error

    def _failure(self, error: Exception) -> Failure:
        message = str(error)
        if "Original Traceback" in message:  # of a data loader's process: what was raised is its last line
            message = message.strip().splitlines()[-1].partition(": ")[2]
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if extra := EXTRAS.get(package):
            return Failure(f'this needs the package {package}: pip install -e ".[{extra}]" in the repository', 1)
        if isinstance(error, ValueError):
            return Failure(self._with_option(message), 2)
        if isinstance(error, OSError):
            reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else message
            return Failure(self._with_option(reason), 1)
        if isinstance(error, MemoryError | RuntimeError):
            return Failure(message or "out of memory", 1)
        return Failure(f"unexpected {type(error).__name__}: {message}; PAELLA_DEBUG=1 shows where it happened", 1)

    def _with_option(self, message: str) -> str:
        """The message with the Python argument at its start turned into the command's option: `--typical-mass: …`."""
        name, colon, rest = message.partition(":")
        name = {"n": "number", "regions": "region"}.get(name, name)
        for parameter in self.params:
            if colon and parameter.name == name:
                return f"{max(parameter.opts, key=len)}:{rest}"
        return message


def usage_message(error: Any) -> str:
    """What typer says of a command line that it cannot parse, in the form of our own messages."""
    message = error.format_message().rstrip(".")
    if getattr(error, "param", None) is not None and error.message:
        message = f"{max(error.param.opts, key=len)}: {error.message.removeprefix('Value error, ')}"
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message} (see {context.command_path} --help)"


def one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 2]} …"


def warn(message: str) -> None:
    print(one_line(f"paella: warning: {message}"), file=sys.stderr)
