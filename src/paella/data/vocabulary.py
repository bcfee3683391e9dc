"""The objects of emoji scenes, and what people call them."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Literal

import emoji

Part = Literal["trained", "held out"]


def _text(file: str) -> str:
    return resources.files("paella.data").joinpath(file).read_text(encoding="utf-8")


def _read_names(file: str) -> dict[str, str]:
    return {name: emoji.emojize(f":{name.replace(' ', '_')}:") for name in _text(file).split("\n") if name}


@cache
def objects() -> dict[str, str]:
    """Name as used in captions -> emoji character, for exactly the objects of the built-in model."""
    return _read_names("objects.txt")


@cache
def all_objects() -> dict[str, str]:
    """Name as used in captions -> emoji character, for the full vocabulary (more than 1,000 objects)."""
    return _read_names("all_objects.txt")


@cache
def _synonyms() -> dict[str, dict[Part, dict[str, list[str]]]]:
    return json.loads(_text("synonyms.json"))


def synonyms(language: str, part: Part = "trained") -> dict[str, list[str]]:
    """Object -> other words for it, after the Unicode CLDR, for those that have any.

    A word is of up to three objects. Of another language than English, the first of an object's is its name.

    Args:
        language: "en", "de", "es", "fr" or "ko".
        part: the words that captions are worded in, or those that are kept from training.
    """
    return _synonyms()[language][part]


def words(name: str) -> list[str]:
    """All that an object may be called: its name and its synonyms in all languages, and in English several of it."""
    english, others = [name], list[str]()
    for language, parts in _synonyms().items():
        (english if language == "en" else others).extend(word for part in parts.values() for word in part.get(name, []))
    return [*english, *map(plural, english), *others]


def article(name: str) -> str:
    """The name with its article: "an" before a vowel letter, whatever its sound."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


IRREGULAR = {"man": "men", "woman": "women", "child": "children", "mouse": "mice", "goose": "geese", "foot": "feet"}
IRREGULAR |= {"tooth": "teeth", "person": "people", "ox": "oxen", "leaf": "leaves", "wolf": "wolves", "knife": "knives"}
UNCHANGED = ("fish", "sheep", "deer", "shrimp", "bison", "squid", "moose")
JOINTS = (" with ", " of ", " on ", " in ", " behind ", " from ", " to ", " without ")


def plural(name: str) -> str:
    """More than one of it: "apple" -> "apples", "face with monocle" -> "faces with monocle"."""
    cut = min((at for joint in JOINTS if (at := name.find(joint)) > 0), default=len(name))
    words = name[:cut].split(" ")
    at = 0 if words[0] in ("man", "woman", "person", "leaf") else -1  # "person running"
    words[at] = _plural(words[at])
    return " ".join(words) + name[cut:]


def _plural(noun: str) -> str:
    if noun.lower() in IRREGULAR:
        return IRREGULAR[noun.lower()]
    if noun.endswith(UNCHANGED) or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return noun
    if noun.endswith("man"):
        return noun[:-2] + "en"
    if noun.endswith(("s", "x", "z", "ch", "sh", "ato", "ito", "ango", "cano")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
