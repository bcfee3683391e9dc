"""The options that several commands share, each stated once."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(help="A model folder or Hugging Face hub id. Default: the built-in model.", metavar="MODEL"),
]
Dtype = Annotated[str, typer.Option(help="Of the predictor: auto, float32, bfloat16 or float16.")]
Quantize = Annotated[
    str | None, typer.Option(help='"int8" puts the predictor into 8 bits, on a CPU with VNNI.', metavar="int8")
]
Seed = Annotated[int, typer.Option(help="Of the random numbers: the same seed gives the same result.", min=0)]
Steps = Annotated[int | None, typer.Option(help="Sampling steps, at least 1. More are slower and often better.")]
Guidance = Annotated[
    float | None, typer.Option(help="How strongly the prompt pulls; 1 = no extra pull, and twice as fast.")
]
TypicalMass = Annotated[
    float | None, typer.Option(help="Locally typical sampling, above 0 and at most 1: less = tamer pictures; 1 = off.")
]
Temperature = Annotated[float | None, typer.Option(help="Above 0: less = tamer pictures.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What to steer away from.")]
FirstSeed = Annotated[
    int | None, typer.Option(help="Of the first picture; the next ones have the numbers after it. Default: 0.")
]
Number = Annotated[int, typer.Option("--number", "-n", help="Pictures for each prompt.")]
Size = Annotated[
    str | None,
    typer.Option(help="Pixels: 64, or 64x128 for height x width. Default: what the model knows.", metavar="SIZE"),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A folder, or a .png file. A folder gets every picture and, of several, a contact sheet, sheet.png; what "
        "is there already stays. A .png file gets the picture or, of several, the contact sheet alone.",
    ),
]
Snap = Annotated[
    int | None,
    typer.Option(
        help="Real scenes: sizes and places of the objects in multiples of so many pixels. Default: as the model was "
        "trained.",
        min=1,
    ),
]
Jitter = Annotated[
    int | None,
    typer.Option(
        help="Real scenes: how far a background's channels stray from the named colour, of 255. Default: as the model "
        "was trained.",
        min=0,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Entries to change, such as steps=100 or data.folder=my_pictures.", metavar="KEY=VALUE"),
]


def sampler_options(
    steps: int | None, guidance: float | None, typical_mass: float | None, temperature: float | None
) -> dict[str, int | float]:
    """Those that were given; for the others the model has its own."""
    options = {"steps": steps, "guidance": guidance, "typical_mass": typical_mass, "temperature": temperature}
    return {name: value for name, value in options.items() if value is not None}


def parse_size(text: str) -> int | tuple[int, int]:
    """ "64" -> 64; "64x128" -> (64, 128), height and width."""
    if not (match := re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())):
        raise ValueError(f"size: must be like 64, or 64x128 for height x width, not {text!r}")
    height, width = match.groups()
    return int(height) if width is None else (int(height), int(width))


def read_prompts(file: Path, option: str) -> list[str]:
    """The lines of a file that are not empty; "-" is standard input. `option` is what names the file, for errors.

    Raises:
        ValueError: it cannot be read as UTF-8, or holds none.
    """
    name = "standard input" if str(file) == "-" else str(file)
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{option}: cannot read {name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {name} is not UTF-8 text") from error
    if not lines:
        raise ValueError(f"{option}: there is no prompt in {name}")
    return lines


def is_picture_file(output: Path, animations: Sequence[str] = ()) -> bool:
    """Whether the output is to be one file; else it is a folder, whose name has no ending.

    Args:
        animations: endings that are allowed beside .png.

    Raises:
        ValueError: it has another ending.
    """
    if output.is_dir():
        return False
    allowed = (".png", *animations)
    if re.match(r"\.[a-z]", ending := output.suffix.lower()) and ending not in allowed:  # sweep-1.5 has none
        raise ValueError(f"output: must end in {' or '.join(allowed)}, or be a folder (no ending), not {output}")
    return ending in allowed
