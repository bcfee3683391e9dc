"""Laws of the names of objects."""

import pytest
from scenery import NAMES

from paella.data.vocabulary import all_objects, article, objects


def test_vocabularies_have_their_sizes_and_one_holds_the_other() -> None:
    assert len(NAMES) >= 120
    assert len(all_objects()) > 1000
    assert objects().items() <= all_objects().items()


def test_the_full_vocabulary_is_sorted_and_plain() -> None:
    names = list(all_objects())
    assert names == sorted(names, key=lambda name: (name.casefold(), name))
    assert all(name.isascii() and name == " ".join(name.split()) for name in names)


def test_every_name_is_one_emoji() -> None:
    for name, character in all_objects().items():
        assert not character.startswith(":"), name  # what an unknown name comes back as
        # no joined sequences: they fall apart into several pictures where Pillow lacks its optional text shaping
        assert len(character.removesuffix("\N{VARIATION SELECTOR-16}")) == 1, name


@pytest.mark.parametrize("words", ["an apple", "a pear", "an orange", "an unicorn", "a T-Rex"])
def test_an_stands_before_a_vowel_letter(words: str) -> None:
    assert article(words.split(" ", 1)[1]) == words
