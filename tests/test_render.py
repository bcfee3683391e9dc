"""Laws of a scene's picture: where its objects are, and its background."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scenery import NAMES, box, generator, object_masks, some_scenes

from paella.data import render as rendering
from paella.data.render import BACKGROUND_JITTER, OBJECT_SIZES, OFF_CENTRE
from paella.data.scene import BACKGROUNDS, LAYOUTS, Layout, Scene, colours
from paella.data.scenes import Scenes
from paella.data.vocabulary import all_objects


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
