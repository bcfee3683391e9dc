"""Laws of the emoji scenes: what a scene, its picture and its caption promise."""

import itertools
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from paella.data import render as rendering
from paella.data.render import BACKGROUND_JITTER, OBJECT_SIZES, OFF_CENTRE
from paella.data.scene import (
    BACKGROUNDS,
    COUNTS,
    LAYOUT_SHARES,
    LAYOUTS,
    Layout,
    Scene,
    colours,
    draw_scene,
    held_out,
    lookalikes,
)
from paella.data.scenes import Scenes, hard_scenes
from paella.data.vocabulary import all_objects, article, objects
from paella.data.wordings import caption, captions

NAMES = list(objects())


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def object_masks(scene: Scene, size: int, seed: int, snap: int = 1) -> list[np.ndarray]:
    """Where each object of the scene is: (size, size) bool, by its difference from the plain background.

    Drawn before two backgrounds, for an object may have the colour of one, and with the other object of a pair
    invisible.
    """
    real, masks = rendering.scaled_sprite, []
    for seen in scene.objects:

        def only_seen(name: str, longer_side: int, seen: str = seen) -> Image.Image:
            thing = real(name, longer_side)
            return thing if name == seen else Image.new("RGBA", thing.size)

        mask = np.zeros((size, size), bool)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rendering, "scaled_sprite", only_seen)
            for background in ("white", "black"):
                plain = replace(scene, background=background)
                picture = rendering.render(plain, size, generator(seed), snap=snap, jitter=0)
                mask |= (np.abs(np.asarray(picture, int) - BACKGROUNDS[background]) > 3).any(axis=2)
        masks.append(mask)
    return masks


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is True."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def some_scenes(layout: Layout, count: int, seed: int = 0) -> list[Scene]:
    rng = generator(seed)
    return [draw_scene(rng, NAMES, layouts=[layout]) for _ in range(count)]


# --- the vocabulary ---


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


@pytest.mark.parametrize("engine", [ImageFont.Layout.BASIC, ImageFont.Layout.RAQM])
def test_every_name_has_a_picture_of_its_own(engine: ImageFont.Layout) -> None:
    path = resources.files("paella.data").joinpath("NotoColorEmoji.ttf")
    font = ImageFont.truetype(str(path), rendering.FONT_SIZE, layout_engine=engine)
    widest = font.getlength("\N{RED APPLE}")
    seen: dict[bytes, str] = {}
    for name, character in all_objects().items():
        canvas = Image.new("RGBA", (3 * rendering.FONT_SIZE, 2 * rendering.FONT_SIZE))
        ImageDraw.Draw(canvas).text((27, 27), character, font=font, embedded_color=True)
        visible = canvas.getbbox()
        assert visible is not None, name  # this font draws nothing where it lacks an emoji
        assert visible[2] - visible[0] <= widest, name  # one picture, not several side by side
        assert np.count_nonzero(canvas.getchannel("A")) > 500, name
        assert seen.setdefault(canvas.tobytes(), name) == name


def test_sprites_are_cropped_to_what_is_seen() -> None:
    for name in NAMES:
        picture = rendering.sprite(name)
        assert picture.getbbox() == (0, 0, *picture.size)


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(KeyError):
        rendering.sprite("a thing without a picture")


# --- the data set ---


@pytest.mark.parametrize("lookalike_groups", [False, True])
def test_a_sample_is_a_function_of_seed_and_index_alone(lookalike_groups: bool) -> None:
    first, second = (Scenes(32, 7, lookalike_groups=lookalike_groups) for _ in range(2))
    forwards = [first[i] for i in range(24)]
    backwards = [second[i] for i in reversed(range(24))][::-1]
    for (picture, words), (same_picture, same_words) in zip(forwards, backwards, strict=True):
        assert picture.tobytes() == same_picture.tobytes()
        assert words == same_words


def test_seeds_and_indices_differ() -> None:
    drawn = [Scenes(32, seed)[index][0].tobytes() for seed in range(4) for index in range(25)]
    assert len(set(drawn)) == len(drawn)


def test_samples_are_rgb_of_the_asked_size() -> None:
    for size in (17, 32, 64):
        assert all((p.mode, p.size) == ("RGB", (size, size)) for p, _ in (Scenes(size)[i] for i in range(8)))


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


# --- what is held out ---


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


def test_hard_scenes_end_where_there_are_no_more_captions() -> None:
    some = list(hard_scenes(1000, 16, 0, NAMES[:3]))
    words = [caption for _, caption in some]
    assert 3 * 12 * 2 <= len(words) < 1000
    assert len(set(words)) == len(words)


def test_groups_of_four_are_a_scene_and_its_lookalikes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    monkeypatch.setattr("paella.data.scenes.render", lambda scene, *_, **__: drawn.append(scene))
    data = Scenes(32, 5, lookalike_groups=True)
    for index in range(400):
        data[index]
    assert not any(held_out(scene) for scene in drawn)
    groups = [drawn[i : i + 4] for i in range(0, len(drawn), 4)]
    assert all((group[3].background, group[3].layout) != (group[0].background, group[0].layout) for group in groups)
    assert all(group[3].objects == group[0].objects for group in groups)
    assert np.mean([len(set(group)) == 4 for group in groups]) > 0.98


def test_layouts_come_as_often_as_asked() -> None:
    words = [Scenes(16, shares=(0, 0, 3, 1, 0)).caption(i) for i in range(400)]
    beside, above = (
        [any(w in it for w in two) for it in words] for two in ((" left ", " right "), (" above ", " below "))
    )
    assert sum(beside) + sum(above) == 400 and sum(above) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (0, 0, 0, 0, 0), (1, 1, 1, 1, -1), (1, 1, 1, 1, float("nan"))])
def test_wrong_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares: must be one for each of single, small"):
        Scenes(16, shares=shares)


# --- pictures ---


def test_the_background_stays_near_its_colour() -> None:
    lowest, highest = np.full(3, 255), np.full(3, -255)
    for seed, (background, colour) in enumerate(BACKGROUNDS.items()):
        for again in range(20):
            picture = rendering.render(Scene(("fox",), background, "small"), 32, generator(seed, again))
            colours = picture.getcolors(32 * 32)
            assert colours is not None
            plain = np.array(max(colours)[1])  # the most frequent colour
            assert (np.abs(plain - colour) <= BACKGROUND_JITTER).all()
            lowest, highest = np.minimum(lowest, plain - colour), np.maximum(highest, plain - colour)
    assert (lowest < -BACKGROUND_JITTER / 2).all() and (highest > BACKGROUND_JITTER / 2).all()


def test_without_jitter_the_background_is_exactly_its_colour() -> None:
    for index in range(12):
        (picture, words), (_, as_with_jitter) = Scenes(32, 3, jitter=0)[index], Scenes(32, 3)[index]
        colours = picture.getcolors(32 * 32)
        assert colours is not None and {colour for _, colour in colours} & set(BACKGROUNDS.values())
        assert words == as_with_jitter


@pytest.mark.parametrize("snap", [1, 4, 8])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "count"])
def test_objects_have_their_size_and_stay_in_their_half(layout: Layout, size: int, snap: int) -> None:
    low, high = (share * size for share in OBJECT_SIZES[layout])
    for seed, scene in enumerate(some_scenes(layout, 12)):
        masks = object_masks(scene, size, seed, snap)
        for position, mask in enumerate(masks):
            left, top, right, bottom = box(mask)
            # the softest edge of an object may be too faint to count
            assert low - 2 <= max(right - left, bottom - top) <= high
            if layout == "horizontal":
                assert (left >= size // 2) if position else (right <= size // 2)
            if layout == "vertical":
                assert (top >= size // 2) if position else (bottom <= size // 2)


@pytest.mark.parametrize("layout", ["single", "horizontal", "vertical"])
def test_centred_objects_stray_little(layout: Layout) -> None:
    size = 64
    middles = {"single": [(32, 32)], "horizontal": [(16, 32), (48, 32)], "vertical": [(32, 16), (32, 48)]}[layout]
    for seed, scene in enumerate(some_scenes(layout, 12, seed=1)):
        for mask, middle in zip(object_masks(scene, size, seed), middles, strict=True):
            left, top, right, bottom = box(mask)
            centre = np.array([(left + right) / 2, (top + bottom) / 2])
            assert (np.abs(centre - middle) <= OFF_CENTRE * size + 1.5).all()  # whole pixels, faint edges


def test_small_objects_go_anywhere() -> None:
    boxes = [box(object_masks(scene, 64, seed)[0]) for seed, scene in enumerate(some_scenes("small", 60))]
    centres = np.array([((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes])
    assert (centres.min(axis=0) < 22).all() and (centres.max(axis=0) > 42).all()


@pytest.mark.parametrize("snap", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_snapped_sizes_and_places_are_multiples(monkeypatch: pytest.MonkeyPatch, layout: Layout, snap: int) -> None:
    size, sides, places = 64, [], []
    scaled, paste = rendering.scaled_sprite, Image.Image.paste
    monkeypatch.setattr(rendering, "scaled_sprite", lambda name, side: sides.append(side) or scaled(name, side))
    monkeypatch.setattr(
        Image.Image, "paste", lambda self, thing, at, mask: places.extend(at) or paste(self, thing, at, mask)
    )
    for seed, scene in enumerate(some_scenes(layout, 60)):
        rendering.render(scene, size, generator(seed), snap=snap)
    low, high = (share * size for share in OBJECT_SIZES[layout])
    assert all(low <= side <= high for side in sides)
    if any(low <= multiple <= high for multiple in range(0, size, snap)):
        assert all(side % snap == 0 for side in sides)
    assert places and all(place % snap == 0 for place in places)


# --- captions ---


@pytest.mark.parametrize("words", ["an apple", "a pear", "an orange", "an unicorn", "a T-Rex"])
def test_an_stands_before_a_vowel_letter(words: str) -> None:
    assert article(words.split(" ", 1)[1]) == words


def test_wordings() -> None:
    assert captions(Scene(("apple",), "orange", "single")) == [
        "an apple on an orange background",
        "an apple",
        "apple",
    ]
    assert captions(Scene(("apple",), "light blue", "small")) == ["a small apple on a light blue background"]
    assert captions(Scene(("fox", "owl"), "teal", "horizontal")) == [
        "a fox to the left of an owl on a teal background",
        "an owl to the right of a fox on a teal background",
    ]
    assert captions(Scene(("fox", "owl"), "teal", "vertical")) == [
        "a fox above an owl on a teal background",
        "an owl below a fox on a teal background",
    ]


@pytest.mark.parametrize("layout", ["horizontal", "vertical"])
def test_the_first_named_object_is_where_the_caption_says(layout: Layout) -> None:
    """Both wordings of a pair, read against the picture."""
    axis = 0 if layout == "horizontal" else 1
    for seed, scene in enumerate(some_scenes(layout, 6, seed=2)):
        middle = {
            name: box(mask)[axis] for name, mask in zip(scene.objects, object_masks(scene, 64, seed), strict=True)
        }
        for words in captions(scene):
            before = " to the left of " in words or " above " in words
            (first, second) = sorted(scene.objects, key=lambda name: words.index(article(name)))
            assert (middle[first] < middle[second]) == before


def test_no_wording_describes_two_scenes() -> None:
    """Names such as "small airplane" or a colour would make captions ambiguous."""
    names = list(all_objects())
    singles = [Scene((name,), "white", layout) for name in names for layout in ("single", "small")]
    rng = generator(6)
    pairs = {draw_scene(rng, names, layouts=["horizontal", "vertical"]) for _ in range(500)}
    wordings = [words for scene in [*singles, *pairs] for words in captions(scene)]
    assert len(set(wordings)) == len(wordings)


def test_full_captions_name_the_background_and_others_nearly_always() -> None:
    rng = generator(7)
    for scene in some_scenes("single", 50):
        assert scene.background in caption(scene, rng, full=True)
    scene = Scene(("fox",), "teal", "single")
    named = np.mean(["teal" in caption(scene, rng) for _ in range(500)])
    assert named == pytest.approx(0.8, abs=0.07)
    assert {caption(scene, rng) for _ in range(100)} == set(captions(scene))
    assert all("background" in Scenes(8, wording="full")[i][1] for i in range(60))


def test_pairs_are_worded_from_either_object_as_often_as_asked() -> None:
    for share in (0, 0.25, 1):
        words = [Scenes(16, 0, mirrored=share).caption(i) for i in range(2000)]
        mirrored = [" to the right of " in it or " below " in it for it in words]
        pairs = [it for it in words if any(w in it for w in (" left of ", " right of ", " above ", " below "))]
        assert sum(mirrored) / len(pairs) == pytest.approx(share, abs=0.05)


def test_every_layout_has_its_share_whatever_is_accepted() -> None:
    rng, names = np.random.default_rng(0), NAMES
    drawn = [draw_scene(rng, names, accept=lambda it: len(it.objects) == 1 or held_out(it)) for _ in range(400)]
    found = [sum(scene.layout == layout for scene in drawn) / len(drawn) for layout in LAYOUTS]
    assert found == pytest.approx(LAYOUT_SHARES, abs=0.07)
    with pytest.raises(ValueError, match=r"^objects: of these 2 no horizontal scene is allowed"):
        draw_scene(rng, names[:2], layouts=["horizontal"], accept=lambda scene: False)
    with pytest.raises(ValueError, match=r"^objects: a pair needs two"):
        draw_scene(rng, ["fox"], layouts=["vertical"])


# --- counts, and backgrounds of two colours ---


def test_counts_are_of_one_object_and_a_tenth_is_held_out_by_object_and_number() -> None:
    drawn = some_scenes("count", 300)
    assert {len(scene.objects) for scene in drawn} == set(COUNTS)
    assert all(len(set(scene.objects)) == 1 for scene in drawn)
    assert not any(held_out(scene) for scene in drawn)
    every = [Scene((name,) * count, "white", "count") for name in all_objects() for count in COUNTS]
    assert np.mean([held_out(scene) for scene in every]) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("snap", [1, 4, 8])
def test_repeated_objects_do_not_overlap_and_stay_in_the_picture(snap: int) -> None:
    for seed, scene in enumerate(some_scenes("count", 60)):
        covered = np.zeros((64, 64), int)
        layers = rendering._arranged(scene, 64, generator(seed), snap)
        assert len(layers) == len(scene.objects)
        for thing, (left, top) in layers:
            assert 0 <= left <= 64 - thing.width and 0 <= top <= 64 - thing.height
            covered[top : top + thing.height, left : left + thing.width] += 1
        assert covered.max() == 1


def test_a_background_of_two_colours_has_halves_or_fades() -> None:
    def backdrop(background: str) -> np.ndarray:
        return np.asarray(rendering._backdrop(background, 16, np.zeros(3, int)), int)

    red, blue = (np.array(BACKGROUNDS[name]) for name in ("red", "blue"))
    halves, fading = backdrop("red and blue"), backdrop("red to blue gradient")
    assert (halves[:, :8] == red).all() and (halves[:, 8:] == blue).all()
    assert (fading[0] == red).all() and (fading[-1] == blue).all()
    assert (np.diff(fading[:, 0, 2]) > 0).all() and (fading == fading[:, :1]).all()
    assert colours("light blue to red gradient") == ("light blue", "red")


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
