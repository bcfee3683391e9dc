"""Writes src/paella/data/synonyms.json: what people call the objects, in several languages, from the Unicode CLDR.

    npm pack cldr-annotations-full@48.2.0 && tar -xzf cldr-annotations-full-48.2.0.tgz
    python tools/synonyms.py package/annotations

A keyword is taken where at most three objects have it, and unless it is the name of another: "canine" says enough,
"animal" does not. A fifth of the keywords are kept from training, to see what becomes of words that were never seen.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

from paella.data.vocabulary import all_objects

LANGUAGES = ("en", "de", "es", "fr", "ko")
BEARERS = 3  # objects that may share a word
# English words that many objects have as a keyword, and people use for one of them
EVERYDAY = {
    "apple": "red apple", "bag": "handbag", "ball": "soccer ball", "beer": "beer mug", "bike": "bicycle",
    "boat": "sailboat", "book": "closed book", "burger": "hamburger", "cake": "birthday cake", "car": "automobile",
    "clock": "alarm clock", "computer": "laptop", "corn": "ear of corn", "cup": "hot beverage", "diamond": "gem stone",
    "donut": "doughnut", "flower": "blossom",
    "flag": "flag in hole", "football": "american football", "gift": "wrapped gift",
    "hat": "top hat", "heart": "red heart", "ice cream cone": "soft ice cream",
    "ladybug": "lady beetle", "lamp": "light bulb", "letter": "envelope", "lightning": "high voltage",
    "money": "dollar banknote", "moon": "crescent moon", "motorbike": "motorcycle", "phone": "mobile phone",
    "plane": "airplane", "plant": "potted plant", "present": "wrapped gift", "pumpkin": "jack-o-lantern",
    "shirt": "t-shirt", "shoe": "running shoe", "soccer": "soccer ball",
    "steam engine": "locomotive", "sweet": "candy", "tree": "deciduous tree", "truck": "delivery truck",
    "tv": "television",
    "ufo": "flying saucer", "bee": "honeybee", "medal": "sports medal", "puppy": "dog face",
    "kitty": "cat face", "bunny": "rabbit face",
}  # fmt: skip
TARGET = Path(__file__).parents[1] / "src/paella/data/synonyms.json"
VARIATION = "\N{VARIATION SELECTOR-16}"


def words_of(
    annotations: dict[str, dict[str, list[str]]], names: dict[str, str], everyday: dict[str, str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Object -> its name in one language, and the keywords that tell it from most others.

    Args:
        everyday: words that are as good as names, whatever else has them as keywords.
    """
    entries = {
        name: entry for name, character in names.items() if (entry := annotations.get(character.replace(VARIATION, "")))
    }
    owners: dict[str, set[str]] = {}  # of a word that is a name
    for name, entry in entries.items():
        for word in (name, *entry.get("tts", [])):
            owners.setdefault(word.casefold(), set()).add(name)
    owners |= {word: {name} for word, name in everyday.items()}
    bearers = Counter(word.casefold() for entry in entries.values() for word in entry.get("default", []))
    called = {name: list(entry.get("tts", [])) for name, entry in entries.items()}
    for word, name in everyday.items():
        called[name].append(word)
    keywords = {
        name: sorted(
            word
            for word in entry.get("default", [])
            if word.casefold() not in owners and bearers[word.casefold()] <= BEARERS
        )
        for name, entry in entries.items()
    }
    return called, keywords


def kept_from_training(language: str, word: str) -> bool:
    """A fifth of all keywords, by a hash."""
    return int(hashlib.sha1(f"{language}|{word.casefold()}".encode()).hexdigest(), 16) % 5 == 0


def main(folder: str) -> None:
    table: dict[str, dict[str, dict[str, list[str]]]] = {}
    for language in LANGUAGES:
        path = Path(folder) / language / "annotations.json"
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
        called, keywords = words_of(annotations, all_objects(), EVERYDAY if language == "en" else {})
        if language == "en":
            called = {name: [word for word in words if word != name] for name, words in called.items()}
        kept = {
            name: [word for word in words if kept_from_training(language, word)] for name, words in keywords.items()
        }
        trained = {
            name: called[name] + [word for word in keywords[name] if word not in kept[name]]
            for name in all_objects()
            if name in called
        }
        table[language] = {
            part: {name: words for name, words in those.items() if words}
            for part, those in {"trained": trained, "held out": kept}.items()
        }
        counts = {part: sum(map(len, those.values())) for part, those in table[language].items()}
        print(language, len(table[language]["trained"]), "objects, words:", counts)
    TARGET.write_text(json.dumps(table, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
