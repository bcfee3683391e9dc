"""The abilities: each is a canvas, and what is known comes back bit for bit."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import box_mask, content, some_picture
from PIL import Image

from paella import edits
from paella.pipeline import Paella

FOX, DOG = "a fox on a green background", "a dog on a red background"


# canvases


def test_a_freed_hole_is_noise_and_the_rest_is_kept() -> None:
    tokens, noise = torch.arange(16).view(1, 4, 4), torch.full((1, 4, 4), 99)
    hole = torch.zeros(4, 4, dtype=torch.bool)
    hole[1:3, 2] = True
    condition = torch.zeros(1, 3, 1, 1)
    canvas = edits.free(edits.known(tokens, condition), hole, noise)
    assert torch.equal(canvas.frozen, ~hole[None])
    assert (canvas.tokens[0][hole] == 99).all() and torch.equal(canvas.tokens[0][~hole], tokens[0][~hole])
    again = edits.free(canvas, ~hole, noise)  # holes add up
    assert not again.frozen.any() and (again.tokens == 99).all()


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_structural_editing_starts_from_the_picture_noised_to_its_strength(strength: float) -> None:
    tokens, noise = torch.zeros(1, 64, 64, dtype=torch.long), torch.ones(1, 64, 64, dtype=torch.long)
    canvas = edits.renoised(tokens, strength, noise, torch.rand(1, 64, 64), torch.zeros(1, 3, 1, 1))
    assert canvas.start == strength and not canvas.frozen.any()
    assert canvas.tokens.float().mean().item() == pytest.approx(np.sin(strength * np.pi / 2), abs=0.03)


def test_slerp_goes_round_the_arc_and_ends_exactly() -> None:
    start, end = torch.randn(8), torch.randn(8)
    assert torch.equal(edits.slerp(start, end, 0.0), start) and torch.equal(edits.slerp(start, end, 1.0), end)
    unit, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(edits.slerp(unit, other, 0.5), torch.tensor([0.5, 0.5]).sqrt())
    for share in (0.25, 0.75):
        assert edits.slerp(unit, other, share).norm().item() == pytest.approx(1)


@pytest.mark.parametrize("end", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_slerp_is_linear_where_there_is_no_arc(end: list[float]) -> None:
    start = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(edits.slerp(start, torch.tensor(end), 0.25), 0.75 * start + 0.25 * torch.tensor(end))


@pytest.mark.parametrize("softness", [0, 3, 8, 1000])
def test_every_place_has_its_prompt(softness: int) -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :, :16] = True
    masks[1, :, 12:24] = True  # they overlap, and leave a strip without either
    weights = edits.soft_weights(masks, 4, softness)
    assert weights.shape == (3, 8, 8) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(8, 8))
    if softness == 0:
        assert weights[:, 0, 0].tolist() == [1, 0, 0]
        assert weights[:, 0, 3].tolist() == [0.5, 0.5, 0]
        assert weights[:, 0, 7].tolist() == [0, 0, 1]


def test_a_softer_border_is_a_wider_one() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, :, :32] = True
    mixed = [
        ((w := edits.soft_weights(masks, 4, softness)[0, 0]) > 0.01).sum() - (w > 0.99).sum() for softness in (0, 8, 24)
    ]
    assert mixed[0] == 0 < mixed[1] < mixed[2]


def test_a_condition_map_of_one_prompt_is_that_prompt() -> None:
    embedding = torch.randn(1, 5)
    m = edits.condition_map(embedding, torch.ones(1, 3, 4))
    torch.testing.assert_close(m, embedding[:, :, None, None].expand(1, 5, 3, 4))


# outpainting


@pytest.mark.parametrize(
    "extents", [{"left": 16}, {"right": 5}, {"top": 7, "left": 9}, dict.fromkeys(("left", "right", "top", "bottom"), 6)]
)
@pytest.mark.parametrize("size", [(32, 32), (30, 17)])
def test_outpainting_keeps_the_picture_and_has_the_size_asked_for(
    tiny: Paella, extents: dict[str, int], size: tuple[int, int]
) -> None:
    picture = some_picture(*size)
    left, right, top, bottom = (extents.get(side, 0) for side in ("left", "right", "top", "bottom"))
    (painted,) = tiny.outpaint(picture, FOX, left=left, right=right, top=top, bottom=bottom)
    assert painted.size == (size[0] + left + right, size[1] + top + bottom)
    assert painted.crop((left, top, left + size[0], top + size[1])).tobytes() == picture.tobytes()


def test_sides_have_their_own_prompts_and_a_hole_is_filled_in_the_same_run(tiny: Paella) -> None:
    picture = some_picture()
    hole = box_mask(picture, 4, 4, 16, 28)

    def painted(*regions: tuple[str, str | tuple[int, int, int, int]]) -> np.ndarray:
        return np.asarray(tiny.outpaint(picture, right=32, mask=hole, regions=regions, steps=1)[0])

    one, other = painted((FOX, "right"), (DOG, (0, 0, 20, 32))), painted((FOX, "right"), (FOX, (0, 0, 20, 32)))
    kept = ~np.concatenate([hole, np.ones((32, 32), bool)], axis=1)
    assert (one[kept] == np.asarray(picture)[~hole]).all()
    assert (one[:, :16] != other[:, :16]).any()  # another prompt in the hole
    assert (one[:, :32][hole] != np.asarray(picture)[hole]).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "left: one of left, right, top and bottom"),
        ({"left": -4}, "left: must be 0 or more"),
        ({"left": 2.5}, "left: must be a whole number"),
        ({"right": 8, "regions": [(FOX, "left")]}, "regions: the box .* is empty"),
        ({"right": 8, "regions": [(FOX, (0, 0, 41, 8))]}, "not within the 40 x 32 pixels"),
    ],
)
def test_extents_that_cannot_be_are_refused(tiny: Paella, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.outpaint(some_picture(), FOX, **arguments)  # type: ignore[arg-type]


# variations, interpolation


def test_variations_follow_the_picture_and_its_prompt(tiny: Paella) -> None:
    picture = some_picture()
    plain = tiny.vary(picture, 2, seed=3)
    assert len(set(content(plain))) == 2
    assert content(tiny.vary(picture, 2, prompt=FOX, strength=0.0, seed=3)) == content(plain)
    assert content(tiny.vary(picture, 2, prompt=FOX, strength=1.0, seed=3)) == content(tiny.generate(FOX, 2, seed=3))
    assert content(tiny.vary(some_picture(seed=1), 2, seed=3)) != content(plain)


def test_variations_may_have_settings_of_their_own(tiny: Paella, tmp_path: Path) -> None:
    picture, own = some_picture(), {"guidance": 1.0, "typical_mass": 0.8, "temperature": 1.5}
    parts = (tiny.predictor, tiny.vqgan, tiny.clip, tiny.settings, tiny.size)
    Paella(*parts, variations=own).save_pretrained(tmp_path / "model")
    model = Paella.from_pretrained(tmp_path / "model", dtype=tiny.dtype)
    assert model.variations == own
    assert content(model.vary(picture, 2)) == content(tiny.vary(picture, 2, **own)) != content(tiny.vary(picture, 2))
    assert content(model.generate(FOX)) == content(tiny.generate(FOX))
    # a prompt moves them to those of prompts
    assert content(model.vary(picture, 1, prompt=FOX, strength=1.0)) == content(tiny.generate(FOX))
    (halfway,) = model.vary(picture, 1, prompt=FOX)
    assert json.loads(halfway.info["settings"])["guidance"] == (1 + tiny.settings.guidance) / 2
    # what is asked for counts, and a negative prompt does nothing without guidance
    (asked,) = model.vary(picture, 1, temperature=0.5, negative_prompt=DOG)
    settings = json.loads(asked.info["settings"])
    assert (settings["temperature"], settings["guidance"]) == (0.5, tiny.settings.guidance)


@pytest.mark.parametrize(
    ("variations", "message"),
    [({"steps": 3}, "must be of guidance, typical_mass, temperature, not steps"), ({"temperature": 0}, "temperature")],
)
def test_settings_of_variations_that_mean_nothing_are_refused(
    tiny: Paella, variations: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Paella(tiny.predictor, tiny.vqgan, tiny.clip, tiny.settings, tiny.size, variations=variations)


@pytest.mark.parametrize(("prompt", "strength"), [(FOX, 1.5), (FOX, float("nan")), (None, 0.5)])
def test_a_strength_that_means_nothing_is_refused(tiny: Paella, prompt: str | None, strength: float) -> None:
    with pytest.raises(ValueError, match="strength:"):
        tiny.vary(some_picture(), prompt=prompt, strength=strength)


def test_interpolation_begins_and_ends_with_the_plain_pictures(tiny: Paella) -> None:
    frames = tiny.interpolate(FOX, DOG, 5, seed=4)
    assert content(frames[:1]) == content(tiny.generate(FOX, seed=4))
    assert content(frames[-1:]) == content(tiny.generate(DOG, seed=4))
    assert len(frames) == 5 and {frame.info["seed"] for frame in frames} == {"4"}
    picture = some_picture()
    varied = tiny.vary(picture, 1, seed=4, guidance=tiny.settings.guidance)
    assert content(tiny.interpolate(picture, DOG, 2, seed=4)[:1]) == content(varied)
    with pytest.raises(ValueError, match="frames: must be at least 1"):
        tiny.interpolate(FOX, DOG, 0)
    with pytest.raises(ValueError, match="end: must be"):
        tiny.interpolate(FOX, None, 2)  # type: ignore[arg-type]


# structural editing


def test_structural_editing_goes_from_the_reconstruction_to_plain_generation(tiny: Paella) -> None:
    picture = some_picture()
    assert content(tiny.restyle(picture, FOX, strength=0)) == content(tiny.reconstruct([picture]))
    previous = Paella(tiny.predictor, tiny.vqgan, tiny.clip, replace(tiny.settings, renoise="previous"), tiny.size)
    assert content(tiny.restyle(picture, FOX, strength=1, n=2)) == content(previous.generate(FOX, 2))
    (edited,) = tiny.restyle(some_picture(30, 45), FOX, strength=0.5)
    assert edited.size == (30, 45)
    assert json.loads(edited.info["settings"]) == asdict(previous.settings) and edited.info["strength"] == "0.5"
    with pytest.raises(ValueError, match="strength: must be within"):
        tiny.restyle(picture, FOX, strength=1.01)


# several prompts


def test_one_region_that_is_everything_is_plain_generation(tiny: Paella) -> None:
    everything = [(FOX, (0, 0, 32, 32))]
    assert content(tiny.compose(everything, softness=0)) == content(tiny.generate(FOX))
    assert content(tiny.compose([(FOX, "left")], background=FOX)) == content(tiny.generate(FOX))


def test_regions_matter_where_they_are(tiny: Paella) -> None:
    halves = tiny.compose([(FOX, "left"), (DOG, "right")], n=2)
    swapped = tiny.compose([(DOG, "left"), (FOX, "right")], n=2)
    assert set(content(halves)).isdisjoint(content(swapped)) and len(set(content(halves))) == 2
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    assert content(tiny.compose([(FOX, mask), (DOG, (16, 0, 32, 32))], n=2)) == content(halves)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "regions: must not be empty"),
        ([(FOX, (0, 0, 33, 32))], "regions: the box .* not within the 32 x 32 pixels"),
        ([(FOX, (8, 0, 8, 32))], "regions: the box .* is empty"),
        ([(FOX, (0, 0, 8))], "regions: a box is"),
        ([(FOX, np.zeros((32, 32), bool))], "regions: nothing in it is white"),
        ([(FOX, "left"), (" ", "right")], "regions: the prompt of a region must not be empty"),
        ([(FOX, "middle")], "regions: must be left, right, top, bottom, a box or a mask.s file, not .middle."),
        ([(FOX, "middle" * 100)], "regions: must be left, right, top, bottom, a box or a mask.s file, not .middle"),
        ([(FOX, (0, 0, 16.0, 32))], "regions: a box is .* in whole pixels, not"),
        ([(3, "left")], "regions: must be a string, not 3"),
    ],
)
def test_regions_that_cannot_be_are_refused(tiny: Paella, regions: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        tiny.compose(regions)


# what holds for all


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_that_cannot_be_is_refused_before_anything_else(
    tiny: Paella, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paella.memory.available", lambda device: 0)
    picture = some_picture()
    abilities: list[Callable[[], object]] = [
        lambda: tiny.generate("a dog", n),
        lambda: tiny.inpaint(picture, box_mask(picture, 0, 0, 8, 8), n=n),
        lambda: tiny.outpaint(picture, left=8, n=n),
        lambda: tiny.vary(picture, n),
        lambda: tiny.restyle(picture, "a dog", n=n),
        lambda: tiny.compose([("a dog", "left")], n=n),
    ]
    for ability in abilities:
        with pytest.raises(ValueError, match=r"^n: must be at least 1"):
            ability()


def test_a_picture_of_any_ability_does_not_depend_on_its_batch(tiny: Paella) -> None:
    picture, mask = some_picture(), box_mask(some_picture(), 8, 8, 20, 20)
    for ability in (
        lambda **o: tiny.inpaint(picture, mask, FOX, **o),
        lambda **o: tiny.outpaint(picture, FOX, right=8, **o),
        lambda **o: tiny.vary(picture, **o),
        lambda **o: tiny.restyle(picture, FOX, **o),
        lambda **o: tiny.compose([(FOX, "left")], **o),
    ):
        together = ability(n=3, seed=5)
        assert content(together) == content([ability(n=1, seed=5 + i)[0] for i in range(3)])
        assert [one.info["seed"] for one in together] == ["5", "6", "7"] and together[0].mode == "RGB"


@pytest.mark.parametrize(
    "ability",
    [
        lambda p, **o: p.generate(FOX, **o),
        lambda p, **o: p.inpaint(some_picture(), box_mask(some_picture(), 8, 8, 20, 20), FOX, **o),
        lambda p, **o: p.outpaint(some_picture(), FOX, right=8, **o),
        lambda p, **o: p.vary(some_picture(), 1, **o),
        lambda p, **o: p.interpolate(FOX, some_picture(), 1, **o),
        lambda p, **o: p.restyle(some_picture(), FOX, **o),
        lambda p, **o: p.compose([(FOX, "left")], **o),
    ],
    ids=["generate", "inpaint", "outpaint", "vary", "interpolate", "restyle", "compose"],
)
def test_a_negative_prompt_stands_where_the_null_condition_stood(
    ability: Callable[..., list[Image.Image]], tiny: Paella, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[torch.Tensor] = []  # (2,d,·,·) for each picture: the condition, and what guidance steers away from
    conditioned = tiny.predictor.conditioned
    monkeypatch.setattr(tiny.predictor, "conditioned", lambda pair: bound.append(pair) or conditioned(pair))
    for negative in (None, "", DOG):
        ability(tiny, negative_prompt=negative, guidance=3.0, steps=1)
    none, empty, dog = bound
    expected = tiny.clip.embed_text([DOG])[0]
    assert torch.equal(dog[1], expected[:, None, None].expand_as(dog[1]))
    assert not none[1].any() and torch.equal(none, empty)
    assert torch.equal(dog[0], none[0]) and not torch.equal(dog[0], dog[1])


def test_options_are_those_of_generate_and_no_others(tiny: Paella) -> None:
    steps: list[int] = []

    def on_step(step: int, of: int, tokens: torch.Tensor) -> None:
        steps.append(of)

    tiny.vary(some_picture(), 1, steps=3, guidance=1.0, on_step=on_step)
    assert steps == [3, 3, 3]
    with pytest.raises(TypeError, match="setps"):
        tiny.vary(some_picture(), 1, setps=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="steps: must be"):
        tiny.vary(some_picture(), 1, steps=0)


@pytest.mark.parametrize("kind", ["CMYK.tif", "P.png", "transparent palette.png", "I;16.png", "LA.png", "EXIF.jpg"])
def test_a_file_of_any_kind_is_edited_as_the_eye_sees_it(kind: str, tiny: Paella, tmp_path: Path) -> None:
    """An upright RGB version of it, made here in another way, comes back in the known part."""
    mode, file = kind.split(".")[0], tmp_path / kind
    smooth = Image.fromarray(np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (1, 18)))  # 18 x 24
    expected = smooth.convert("RGB")
    match mode:
        case "CMYK":  # with no colour but black
            none = Image.new("L", smooth.size)
            Image.merge("CMYK", [none, none, none, smooth.point(lambda level: 255 - level)]).save(file)
        case "P":
            smooth.convert("P").save(file)
        case "transparent palette":  # its darkest colour is clear
            smooth.convert("P").save(file, transparency=0)
            expected.paste("white", (0, 0, 18, 1))
        case "I;16":
            Image.fromarray(np.asarray(smooth).astype(np.uint16) * 257).save(file)
        case "LA":
            Image.merge("LA", [smooth, Image.new("L", smooth.size, 255)]).save(file)
        case "EXIF":  # stored on its side
            exif = Image.Exif()
            exif[0x0112] = 6
            smooth.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=100)
    (wide,) = tiny.outpaint(file, right=5, bottom=2, steps=1)
    assert wide.size == (23, 26)
    known = np.asarray(wide.crop((0, 0, 18, 24)), int)
    assert np.abs(known - np.asarray(expected, int)).max() <= (3 if mode == "EXIF" else 0)  # JPEG is not exact
