"""Captions: what a scene is called, in the order of its places or as people might say it, in several languages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paella.data.scene import BACKGROUNDS, Scene
from paella.data.vocabulary import article, plural, synonyms

NUMBERS = {2: "two", 3: "three", 4: "four"}
# of varied captions
FOREIGN = 0.4  # share in another language than English, where the scene can be told in it
SYNONYMS = 0.35  # share of the objects that have another word, and are called by it
ARTICLES = 0.75  # share of the English nouns that have one
MISSPELT = 0.05  # share of the captions with a wrong letter


@dataclass(frozen=True)
class Language:
    """How scenes are told in a language. In a template, {a} and {b} are the objects and {on} is the background."""

    on: str  # {} is the colour
    colours: tuple[str, ...]  # in the order of `scene.BACKGROUNDS`
    single: tuple[str, ...]
    horizontal: tuple[str, ...]
    vertical: tuple[str, ...]


ENGLISH = Language(
    " on a {} background",
    ("white", "black", "red", "green", "blue", "yellow", "pink", "orange", "purple", "gray", "light blue", "teal"),
    ("{a}{on}", "{a}{on}", "{a}{on}", "a picture of {a}{on}", "an emoji of {a}{on}"),
    (
        "{a} to the left of {b}{on}",
        "{b} to the right of {a}{on}",
        "{a} left of {b}{on}",
        "{b} right of {a}{on}",
        "{a} on the left and {b} on the right{on}",
    ),
    (
        "{a} above {b}{on}",
        "{b} below {a}{on}",
        "{a} over {b}{on}",
        "{b} under {a}{on}",
        "{a} on top of {b}{on}",
        "{b} beneath {a}{on}",
        "{a} at the top and {b} at the bottom{on}",
    ),
)
FOREIGNERS = {
    "de": Language(
        " auf {} Hintergrund",
        (
            *("weißem", "schwarzem", "rotem", "grünem", "blauem", "gelbem", "rosa", "orangem", "lila", "grauem"),
            *("hellblauem", "türkisem"),
        ),
        ("{a}{on}",),
        ("{a} links von {b}{on}", "{b} rechts von {a}{on}"),
        ("{a} über {b}{on}", "{b} unter {a}{on}"),
    ),
    "es": Language(
        " sobre fondo {}",
        (
            *("blanco", "negro", "rojo", "verde", "azul", "amarillo", "rosa", "naranja", "morado", "gris"),
            *("azul claro", "turquesa"),
        ),
        ("{a}{on}",),
        ("{a} a la izquierda de {b}{on}", "{b} a la derecha de {a}{on}"),
        ("{a} encima de {b}{on}", "{b} debajo de {a}{on}"),
    ),
    "fr": Language(
        " sur fond {}",
        (
            "blanc",
            "noir",
            "rouge",
            "vert",
            "bleu",
            "jaune",
            "rose",
            "orange",
            "violet",
            "gris",
            "bleu clair",
            "turquoise",
        ),
        ("{a}{on}",),
        ("{a} à gauche de {b}{on}", "{b} à droite de {a}{on}"),
        ("{a} au-dessus de {b}{on}", "{b} en dessous de {a}{on}"),
    ),
    "ko": Language(
        "{} 배경의 ",
        (
            *("흰색", "검은색", "빨간색", "초록색", "파란색", "노란색", "분홍색", "주황색", "보라색", "회색"),
            *("하늘색", "청록색"),
        ),
        ("{on}{a}",),
        ("{on}{b} 왼쪽의 {a}", "{on}{a} 오른쪽의 {b}"),
        ("{on}{b} 위의 {a}", "{on}{a} 아래의 {b}"),
    ),
}


def plain(scene: Scene, *, bare: bool = False) -> str:
    """The one wording that names the objects in the order of their places.

    Args:
        bare: without the background.
    """
    words = captions(scene)[0]
    return words.removesuffix(f" on {article(scene.background)} background") if bare else words


def captions(scene: Scene) -> list[str]:
    """Every plain wording that describes the scene, the full ones first."""
    things = [article(name) for name in scene.objects]
    where = f"on {article(scene.background)} background"
    match scene.layout:
        case "single":
            return [f"{things[0]} {where}", things[0], scene.objects[0]]
        case "small":
            return [f"a small {scene.objects[0]} {where}"]
        case "horizontal":
            return [
                f"{things[0]} to the left of {things[1]} {where}",
                f"{things[1]} to the right of {things[0]} {where}",
            ]
        case "vertical":
            return [f"{things[0]} above {things[1]} {where}", f"{things[1]} below {things[0]} {where}"]
        case "count":
            return [f"{NUMBERS[len(scene.objects)]} {plural(scene.objects[0])} {where}"]


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False, mirrored: float = 0.5) -> str:
    """One plain wording at random.

    Args:
        full: leave out the short forms, which do not name the background.
        mirrored: how often a pair is worded from its right or lower object ("to the right of", "below").
    """
    wordings = [words for words in captions(scene) if not full or "background" in words]
    if len(wordings) == 2:
        return wordings[rng.choice(2, p=(1 - mirrored, mirrored))]
    if len(wordings) > 1:  # short forms are the exception
        return wordings[rng.choice(len(wordings), p=(0.8, 0.1, 0.1))]
    return wordings[0]


def varied(scene: Scene, rng: np.random.Generator, *, bare: bool = False) -> str:
    """One wording of many: other words for the objects, articles left out, other orders, other languages, slips.

    Args:
        bare: without the background.
    """
    # what grammar makes hard is told in English alone
    easy = scene.layout not in ("small", "count") and (bare or scene.background in BACKGROUNDS)
    code = list(FOREIGNERS)[rng.integers(len(FOREIGNERS))]
    if easy and rng.random() < FOREIGN and all(name in synonyms(code) for name in scene.objects):
        language = FOREIGNERS[code]
        things = [_foreign_word(synonyms(code)[name], rng) for name in scene.objects]
        colour = "" if bare else language.colours[list(BACKGROUNDS).index(scene.background)]
    else:
        language, colour = ENGLISH, scene.background
        things = [_english_words(scene, name, rng) for name in dict.fromkeys(scene.objects)]
    templates = {"horizontal": language.horizontal, "vertical": language.vertical}.get(scene.layout, language.single)
    template = templates[rng.integers(len(templates))]
    if language is ENGLISH and rng.random() > ARTICLES:
        template = template.replace("a picture of ", "").replace("an emoji of ", "")
        on = f" on {colour} background"
    else:
        on = language.on.format(colour).replace("a orange", "an orange")
    words = template.format(a=things[0], b=things[-1], on="" if bare else on)
    return misspelt(words, rng) if rng.random() < MISSPELT else words


def told(language: str, word: str, background: str) -> str:
    """One object in the middle, by a word of that language: "a puppy on a red background", "cachorro sobre fondo rojo".

    Args:
        language: "en", or one of `FOREIGNERS`.
        background: one of `scene.BACKGROUNDS`.
    """
    if language == "en":
        return f"{article(word)} on {article(background)} background"
    spoken = FOREIGNERS[language]
    on = spoken.on.format(spoken.colours[list(BACKGROUNDS).index(background)])
    return spoken.single[0].format(a=word, on=on)


def misspelt(words: str, rng: np.random.Generator) -> str:
    """With one letter left out, doubled, or after its neighbour in place of before it."""
    places = [at for at in range(1, len(words) - 1) if words[at - 1 : at + 2].isalpha() and words[at].isascii()]
    if not places:
        return words
    at = places[rng.integers(len(places))]
    before, letter, after = words[:at], words[at], words[at + 1 :]
    return before + ("", letter * 2, after[0] + letter)[(kind := int(rng.integers(3)))] + after[kind == 2 :]


def _foreign_word(words: list[str], rng: np.random.Generator) -> str:
    """The name for half of the time, else any word."""
    return words[0 if rng.random() < 0.5 else rng.integers(len(words))]


def _english_words(scene: Scene, name: str, rng: np.random.Generator) -> str:
    """A noun with what comes before it."""
    others = synonyms("en").get(name, [])
    if others and rng.random() < SYNONYMS:
        name = others[rng.integers(len(others))]
    if scene.layout == "count":
        count = len(scene.objects)
        return f"{NUMBERS[count] if rng.random() < 0.7 else count} {plural(name)}"
    if scene.layout == "small":
        name = f"{('small', 'small', 'little', 'tiny')[rng.integers(4)]} {name}"
    elif scene.layout == "single" and rng.random() < 0.15:
        name = f"{('big', 'large')[rng.integers(2)]} {name}"
    return article(name) if rng.random() < ARTICLES else name
