"""What scenes are called: plain captions, and the many that say the same."""

from __future__ import annotations

import numpy as np
import pytest

from paella.data import wordings
from paella.data.scene import BACKGROUNDS, LAYOUTS, Layout, Scene, draw_scene
from paella.data.scenes import BARE, Scenes
from paella.data.vocabulary import all_objects, article, plural, synonyms

NAMES = list(all_objects())
LANGUAGES = ["en", *wordings.FOREIGNERS]


def drawn(layout: Layout, count: int, **how: float) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [draw_scene(rng, NAMES, layouts=[layout], **how) for _ in range(count)]


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("apple", "apples"),
        ("box", "boxes"),
        ("cherry", "cherries"),
        ("key", "keys"),
        ("mouse", "mice"),
        ("computer mouse", "computer mice"),
        ("fish", "fish"),
        ("snowman", "snowmen"),
        ("tomato", "tomatoes"),
        ("jeans", "jeans"),
        ("octopus", "octopuses"),
        ("face with monocle", "faces with monocle"),
        ("person running", "people running"),
        ("pile of poo", "piles of poo"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize("language", LANGUAGES)
def test_most_objects_have_a_word_in_every_language_and_no_word_means_many(language: str) -> None:
    words, kept = synonyms(language), synonyms(language, "held out")
    assert set(words) | set(kept) <= set(NAMES)
    assert len(words) > (0.75 if language == "en" else 0.98) * len(NAMES)
    for part in (words, kept):
        bearers: dict[str, int] = {}
        for word in (word for those in part.values() for word in those):
            bearers[word] = bearers.get(word, 0) + 1
        assert max(bearers.values()) <= 4
    trained = {word.casefold() for those in words.values() for word in those}
    assert not trained & {word.casefold() for those in kept.values() for word in those}


@pytest.mark.parametrize(("word", "name"), [("puppy", "dog face"), ("soccer", "soccer ball"), ("car", "automobile")])
def test_words_that_people_use_are_known(word: str, name: str) -> None:
    assert [it for it, words in synonyms("en").items() if word in words] == [name]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plain_caption_names_objects_in_order_and_the_background_unless_bare(layout: Layout) -> None:
    for scene in drawn(layout, 50, patterned=0.5):
        full, bare = wordings.plain(scene), wordings.plain(scene, bare=True)
        assert full == f"{bare} on {article(scene.background)} background"
        nouns = [plural(name) if layout == "count" else name for name in dict.fromkeys(scene.objects)]
        places = [bare.index(noun) for noun in nouns]
        assert places == sorted(places)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_varied_captions_name_each_object_by_a_word_for_it_and_the_background(
    monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    monkeypatch.setattr(wordings, "MISSPELT", 0)
    rng = np.random.default_rng(1)
    for scene in drawn(layout, 300, patterned=0.2):
        words = wordings.varied(scene, rng)
        for name in scene.objects:
            known = [name, *(word for language in LANGUAGES for word in synonyms(language).get(name, []))]
            assert any(word in words or plural(word) in words for word in known)
        colours = [scene.background]
        if scene.background in BACKGROUNDS:
            at = list(BACKGROUNDS).index(scene.background)
            colours += [language.colours[at] for language in wordings.FOREIGNERS.values()]
        assert any(colour in words for colour in colours)
        assert "{" not in words and "  " not in words and words == words.strip()


def test_varied_captions_are_in_every_language_and_seldom_plain() -> None:
    scenes, rng = drawn("single", 2000), np.random.default_rng(2)
    words = [wordings.varied(scene, rng) for scene in scenes]
    assert 0.5 < np.mean([one != wordings.plain(scene) for one, scene in zip(words, scenes, strict=True)]) < 0.95
    for language in wordings.FOREIGNERS.values():
        sign = max(language.on.split("{}"), key=len).strip()
        assert np.mean([sign in one for one in words]) == pytest.approx(wordings.FOREIGN / 4, abs=0.02)


def test_a_misspelt_caption_differs_by_one_letter() -> None:
    rng = np.random.default_rng(3)
    seen = [wordings.misspelt("a strawberry", rng) for _ in range(200)]
    assert {len(words) for words in seen} == {11, 12, 13}
    assert all(words != "a strawberry" or len(words) == 12 for words in seen)
    assert wordings.misspelt("a 사과", rng) == "a 사과"


def test_the_two_wordings_of_a_scene_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordings, "MISSPELT", 0)
    scenes = Scenes(16, names=NAMES, wording="varied", patterned=0.5, shares=(1, 1, 1, 1, 1))
    pairs = [scenes.wordings(index) for index in range(400)]
    assert np.mean(["background" not in plain for _, plain in pairs]) == pytest.approx(BARE, abs=0.06)
    for index, (varied, plain) in enumerate(pairs):
        assert scenes.caption(index) == varied
        if " on a" in plain and " background" in varied:  # of the background, both say the same in English
            assert plain.rpartition(" background")[0].split(" on a")[-1].split(" ", 1)[-1] in varied
    assert [plain for _, plain in pairs[:50]] == [
        Scenes(16, names=NAMES, wording="plain", patterned=0.5, shares=(1, 1, 1, 1, 1)).caption(i) for i in range(50)
    ]


@pytest.mark.parametrize("language", wordings.FOREIGNERS)
def test_the_first_word_is_the_name_even_where_it_is_the_english_one(language: str) -> None:
    assert synonyms(language)["robot"][0].casefold() in ("robot", "roboter", "로봇 얼굴")
    assert synonyms(language)["pizza"][0].casefold() in ("pizza", "피자")
