"""Laws of what is there: which scenes are drawn, which are held out, which are alike."""

import itertools

import numpy as np
import pytest
from scenery import NAMES, generator, some_scenes

from paella.data.scene import (
    BACKGROUNDS,
    COUNTS,
    LAYOUT_SHARES,
    LAYOUTS,
    Scene,
    colours,
    draw_scene,
    held_out,
    lookalikes,
)
from paella.data.vocabulary import all_objects


def test_only_the_given_names_are_drawn() -> None:
    rng = generator(1)
    names = ["fox", "pear", "bus"]
    assert {name for _ in range(200) for name in draw_scene(rng, names).objects} == set(names)


def test_layouts_have_their_shares_and_pairs_two_different_objects() -> None:
    rng = generator(2)
    drawn = [draw_scene(rng, NAMES, accept=lambda scene: True) for _ in range(4000)]
    for layout, share in zip(LAYOUTS, LAYOUT_SHARES, strict=True):
        assert np.mean([scene.layout == layout for scene in drawn]) == pytest.approx(share, abs=0.04)
    for scene in drawn:
        pair = scene.layout in ("horizontal", "vertical")
        assert len(scene.objects) == len(set(scene.objects)) == (2 if pair else 1)


def test_about_a_tenth_of_ordered_pairs_is_held_out_whatever_the_layout() -> None:
    pairs = list(itertools.permutations(NAMES, 2))
    held = [held_out(Scene(pair, "white", "horizontal")) for pair in pairs]
    assert np.mean(held) == pytest.approx(0.1, abs=0.01)
    for pair, is_held in list(zip(pairs, held, strict=True))[::97]:
        for layout, background in itertools.product(("horizontal", "vertical"), ("red", "teal")):
            assert held_out(Scene(pair, background, layout)) == is_held


def test_single_objects_are_never_held_out() -> None:
    assert not any(held_out(Scene((name,), "white", layout)) for name in NAMES for layout in ("single", "small"))


def test_held_out_pairs_are_drawn_only_when_asked_for() -> None:
    rng = generator(3)
    names = NAMES[:12]
    assert not any(held_out(draw_scene(rng, names)) for _ in range(1500))
    pairs = [draw_scene(rng, names, layouts=["horizontal", "vertical"], accept=held_out) for _ in range(20)]
    assert all(map(held_out, pairs))


def test_lookalikes_are_not_held_out_and_else_differ_in_one_respect() -> None:
    rng = generator(4)
    replaced = 0
    for _ in range(800):
        scene = draw_scene(rng, NAMES)
        variants = lookalikes(scene, rng, NAMES)
        assert len(variants) == 3
        assert not any(held_out(variant) for variant in variants)
        for variant in variants:
            same = [getattr(variant, field) == getattr(scene, field) for field in ("objects", "background", "layout")]
            replaced += same.count(False) != 1
    assert 0 < replaced < 0.05 * 2400  # the reversed pairs that would have been held out


def test_without_another_object_there_is_no_lookalike() -> None:
    with pytest.raises(ValueError, match=r"^objects: there must be more than 1: none is left beside fox"):
        lookalikes(Scene(("fox",), "teal", "single"), generator(0), ["fox"])


def test_a_lookalike_of_a_pair_keeps_one_object_in_its_place() -> None:
    rng = generator(5)
    kept = []
    for _ in range(200):
        scene = draw_scene(rng, NAMES, layouts=("horizontal", "vertical"))
        other = lookalikes(scene, rng, NAMES)[1]
        if other.layout == scene.layout and other.background == scene.background:  # else it would have been held out
            kept.append([a == b for a, b in zip(scene.objects, other.objects, strict=True)])
    assert len(kept) > 150
    assert np.mean([sum(places) == 1 for places in kept]) > 0.95
    assert 0.3 < np.mean([places[0] for places in kept]) < 0.7


def test_every_layout_has_its_share_whatever_is_accepted() -> None:
    rng, names = np.random.default_rng(0), NAMES
    drawn = [draw_scene(rng, names, accept=lambda it: len(it.objects) == 1 or held_out(it)) for _ in range(400)]
    found = [sum(scene.layout == layout for scene in drawn) / len(drawn) for layout in LAYOUTS]
    assert found == pytest.approx(LAYOUT_SHARES, abs=0.07)
    with pytest.raises(ValueError, match=r"^objects: of these 2 no horizontal scene is allowed"):
        draw_scene(rng, names[:2], layouts=["horizontal"], accept=lambda scene: False)
    with pytest.raises(ValueError, match=r"^objects: a pair needs two"):
        draw_scene(rng, ["fox"], layouts=["vertical"])


def test_counts_are_of_one_object_and_a_tenth_is_held_out_by_object_and_number() -> None:
    drawn = some_scenes("count", 300)
    assert {len(scene.objects) for scene in drawn} == set(COUNTS)
    assert all(len(set(scene.objects)) == 1 for scene in drawn)
    assert not any(held_out(scene) for scene in drawn)
    every = [Scene((name,) * count, "white", "count") for name in all_objects() for count in COUNTS]
    assert np.mean([held_out(scene) for scene in every]) == pytest.approx(0.1, abs=0.02)


def test_patterned_backgrounds_have_their_share_of_two_different_colours() -> None:
    rng = generator(7)
    drawn = [draw_scene(rng, NAMES, patterned=0.4) for _ in range(1000)]
    pairs = [found for scene in drawn if len(found := colours(scene.background)) == 2]
    assert len(pairs) / 1000 == pytest.approx(0.4, abs=0.05)
    assert all(first != second and {first, second} <= set(BACKGROUNDS) for first, second in pairs)


def test_lookalikes_of_a_count_have_another_object_number_or_background() -> None:
    rng = generator(8)
    for _ in range(100):
        scene = draw_scene(rng, NAMES, layouts=["count"], patterned=0.5)
        names, numbers, backgrounds = lookalikes(scene, rng, NAMES)
        for variant in (names, numbers, backgrounds):
            assert not held_out(variant)
        if numbers.layout == "count" and set(numbers.objects) == set(scene.objects):  # else it would have been held out
            assert len(numbers.objects) != len(scene.objects)
