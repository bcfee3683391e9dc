"""What users give beside pictures, checked: prompts, numbers of pictures, seeds; and warnings that name their line."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

SEEDS = 2**63  # that there are, from 0 on


def warn(message: str) -> None:
    """Warns of the line that called this library, however deep in it the cause was found."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "paella":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def whole(value: Any, argument: str) -> int:
    """A whole number, of whatever type.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{argument}: must be a whole number, not {value!r}") from error


def number(value: Any, argument: str) -> float:
    """A number, of whatever type, as Python's.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, SupportsFloat):
        raise ValueError(f"{argument}: must be a number, not {value!r}")
    return value if isinstance(value, int | float) else float(value)


def fraction(value: Any, argument: str) -> float:
    """A number within 0 ... 1, of whatever type, as Python's.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= (share := number(value, argument)) <= 1:
        raise ValueError(f"{argument}: must be within 0 ... 1, not {value}")
    return share


def words(value: Any, argument: str) -> str:
    """A string.

    Raises:
        ValueError: it is none, or has a half of a character: what a terminal makes of bytes that are not UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError(f"{argument}: must be a string, not {value!r}")
    if has_half_characters(value):
        raise ValueError(f"{argument}: must be whole characters (UTF-8), not {value!r}")
    return value


def has_half_characters(text: str) -> bool:
    """Whether it cannot be written as UTF-8: it has a surrogate without its other half."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def placed(regions: Any) -> list[tuple[str, Any]]:
    """Prompts, each with the part of the picture that it is for.

    Raises:
        ValueError: `regions` is not a list of these.
    """
    pairs = list(regions) if isinstance(regions, Iterable) else [regions]
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"regions: must be pairs of a prompt and its place, not {pair!r}")
    return [(words(text, "regions"), where) for text, where in pairs]


def per_picture(prompt: str | Sequence[str], n: int) -> list[str]:
    """One for each picture, prompt-major.

    Raises:
        ValueError: there is no prompt, or `n` is below 1.
    """
    prompts = prompt_list(prompt)
    if whole(n, "n") < 1:
        raise ValueError(f"n: must be at least 1, not {n}")
    return [text for text in prompts for _ in range(n)]


def prompt_list(prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list.

    Raises:
        ValueError: they are none.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Iterable) else []
    if not prompts or not all(isinstance(text, str) for text in prompts):
        raise ValueError(f"prompt: must be a string, or a list of at least one, not {prompt!r}")
    return [words(text, "prompt") for text in prompts]


def seeds_of(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Of `count` pictures: `seed + i`, or those of a list; None is 0.

    Raises:
        ValueError: they are not so many, or one is out of range.
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = [whole(one, "seed") for one in seed]
    else:
        seeds = [whole(0 if seed is None else seed, "seed") + i for i in range(count)]
    if len(seeds) != count:
        raise ValueError(f"seed: must be one, or one for each of the {count} pictures, not {len(seeds)}")
    if outside := [one for one in seeds if not 0 <= one < SEEDS]:
        raise ValueError(f"seed: must be in 0 ... 2^63 - 1 for each picture, not {outside[0]}")
    return seeds
