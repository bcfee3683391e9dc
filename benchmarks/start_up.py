"""Time until there is a picture, from a new process and in one that has the model: prints a table.

    python benchmarks/start_up.py                       two minutes on two cores
    python benchmarks/start_up.py --model runs/mine     another model

`-m paella` is what the command `paella` runs. The new processes take turns, so that none of them has the machine at its
best hour. The first `paella generate` of a machine that was just started takes longer than any of these: the files of
PyTorch are not in memory yet.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from table import Row, arguments, report, seconds, turns

from paella.pipeline import Paella
from paella.placement import resolve_device

PROMPT = "a red apple on a blue background"
STEPS = 8
BATCH = 16


def commands(model: list[str], picture: str) -> dict[str, list[str]]:
    """What a new Python is asked for, by the name of the row; `model` are the options that choose it."""
    return {
        'python -c "import paella"': ["-c", "import paella"],
        "paella --help": ["-m", "paella", "--help"],
        "paella info": ["-m", "paella", "info", *model],
        f'paella generate "{PROMPT}"': ["-m", "paella", "generate", PROMPT, *model, "--output", picture],
    }


def process(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def row(what: str, process: str, found: list[float], pictures: int | None) -> Row:
    return {
        "what": what,
        "process": process,
        "turns": len(found),
        "seconds": median(found),
        "shortest": min(found),
        "longest": max(found),
        "pictures/s": None if pictures is None else pictures / median(found),
    }


def main() -> None:
    parser = arguments(__doc__, runs=7)
    parser.add_argument("--model", help="a model folder or hub id; default: the built-in model")
    args = parser.parse_args()
    device = resolve_device("auto")

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cold = commands(["--model", args.model] if args.model else [], str(Path(folder) / "picture.png"))
        for words in cold.values():
            process(words)  # from now on the files that it reads are in memory
        found = turns(
            lambda: {name: seconds(lambda: process(words), device) for name, words in cold.items()},  # noqa: B023
            args.runs,
        )
        for name in cold:
            rows.append(row(name, "new", [turn[name] for turn in found], 1 if "generate" in name else None))

    model = Paella.from_pretrained(args.model)
    warm: dict[str, tuple[int, Callable[[], object]]] = {
        f"one picture, {STEPS} steps": (1, lambda: model.generate(PROMPT, steps=STEPS)),
        f"{BATCH} pictures in one call, {STEPS} steps": (BATCH, lambda: model.generate(PROMPT, BATCH, steps=STEPS)),
    }
    for name, (pictures, generate) in warm.items():
        generate()  # what only the first time takes
        rows.append(row(name, "warm", turns(lambda: seconds(generate, device), args.runs), pictures))  # noqa: B023
    report(rows, device, args.json)


if __name__ == "__main__":
    main()
