"""Inpainting: the hole is painted anew, and every pixel outside the mask comes back."""

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import box_mask, content, some_picture
from PIL import Image

from paella.canvas import Canvas
from paella.images import blanked, covered, to_tensor
from paella.pipeline import Paella

FOX, DOG = "a fox on a green background", "a dog on a red background"


@pytest.mark.parametrize("size", [(32, 32), (33, 21), (50, 35)])
@pytest.mark.parametrize("feather", [0, 2])
def test_inpainting_keeps_every_pixel_outside_the_mask(tiny: Paella, size: tuple[int, int], feather: int) -> None:
    picture = some_picture(*size)
    mask = box_mask(picture, 5, 6, 17, 15)
    for painted in tiny.inpaint(picture, mask, FOX, n=2, feather=feather):
        assert painted.size == picture.size
        before, after = np.asarray(picture), np.asarray(painted)
        assert (before[~mask] == after[~mask]).all()
        assert (before[mask] != after[mask]).mean() > 0.5


@pytest.mark.parametrize("box", [(5, 6, 17, 15), (20, 0, 33, 34), (0, 20, 33, 34)])
@pytest.mark.parametrize("sides", [{}, {"right": 16}, {"left": 10, "bottom": 7}])
def test_nothing_is_left_of_what_was_under_the_mask(
    tiny: Paella, box: tuple[int, int, int, int], sides: dict[str, int]
) -> None:
    one, other = some_picture(33, 34, seed=1), some_picture(33, 34, seed=2)
    mask = box_mask(one, *box)
    pixels = np.where(mask[:, :, None], np.asarray(other), np.asarray(one))
    assert (pixels != np.asarray(one)).any()

    def painted(picture: Image.Image) -> list[bytes]:
        if sides:
            return content(tiny.outpaint(picture, FOX, mask=mask, **sides))  # type: ignore[arg-type]
        return content(tiny.inpaint(picture, mask, FOX))

    assert painted(Image.fromarray(pixels)) == painted(one)


def test_around_the_mask_tokens_may_change_and_begin_as_they_are(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, f = some_picture(), tiny.vqgan.config.f
    mask = box_mask(picture, 2 * f, 2 * f, 4 * f, 4 * f)
    sampled: list[Canvas] = []
    usual = type(tiny)._sample

    def sample(self: Paella, canvas: Canvas, *rest: Any) -> Any:
        sampled.append(canvas)
        return usual(self, canvas, *rest)

    monkeypatch.setattr(type(tiny), "_sample", sample)
    tiny.inpaint(picture, mask, FOX, n=2)
    (canvas,) = sampled
    hole, margin = torch.zeros(2, *canvas.frozen.shape[1:], dtype=torch.bool)
    hole[2:4, 2:4] = True
    margin[1:5, 1:5] = True
    margin &= ~hole
    known = tiny.vqgan.encode(to_tensor([covered(picture, torch.from_numpy(mask))]))[0]
    assert torch.equal(canvas.frozen[0], ~(hole | margin))
    for tokens in canvas.tokens:
        assert torch.equal(tokens[~hole], known[~hole])
    assert not torch.equal(canvas.tokens[0][hole], canvas.tokens[1][hole])


def test_without_a_prompt_a_model_that_learned_to_is_told_what_is_known(
    tiny: Paella, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = some_picture()
    mask = box_mask(picture, 16, 0, 32, 32)
    f = tiny.vqgan.config.f
    known = torch.zeros(1, 32 // f, 32 // f, dtype=torch.bool)
    known[:, :, : 16 // f - 1] = True  # a margin of one token is painted too
    context = tiny.clip.embed_images(blanked(to_tensor([picture]), known))
    plain, asked = tiny.inpaint(picture, mask, seed=3), tiny.inpaint(picture, mask, FOX, seed=3)
    told = copy(tiny)
    told.recipe = {"context_share": 0.5}
    assert told.knows_context and not tiny.knows_context
    assert content(told.inpaint(picture, mask, FOX, seed=3)) == content(asked)
    alone = content(told.inpaint(picture, mask, seed=3))
    assert alone != content(plain)
    monkeypatch.setattr(tiny.clip, "embed_text", lambda texts: context)
    assert alone == content(tiny.inpaint(picture, mask, FOX, seed=3))


@pytest.mark.parametrize("sides", [{"right": 64}, {"left": 64, "right": 32}, {"bottom": 64}])
def test_of_a_long_canvas_the_known_part_is_told(
    tiny: Paella, monkeypatch: pytest.MonkeyPatch, sides: dict[str, int]
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(tiny.clip, "embed_images", lambda pixels: seen.append(pixels) or torch.zeros(1, tiny.clip.dim))
    told = copy(tiny)
    told.recipe = {"context_share": 0.5}
    picture = some_picture(32, 32)
    told.outpaint(picture, **sides)  # type: ignore[arg-type]
    assert torch.equal(seen[0], to_tensor([picture]))
    told.inpaint(picture, np.ones((32, 32), bool))  # nothing is known, so nothing is told
    assert len(seen) == 1


def test_a_thin_stroke_is_not_lost(tiny: Paella) -> None:
    picture = some_picture()
    mask = box_mask(picture, 10, 0, 11, 32)
    painted = np.asarray(tiny.inpaint(picture, mask)[0])
    assert (painted[mask] != np.asarray(picture)[mask]).mean() > 0.5


def test_masks_come_as_files_arrays_or_pictures(tiny: Paella, tmp_path: Path) -> None:
    picture = some_picture()
    mask = box_mask(picture, 8, 8, 24, 24)
    image = Image.fromarray(mask)
    image.convert("L").save(tmp_path / "mask.png")
    picture.save(tmp_path / "picture.png")
    forms = [
        mask,
        mask.astype(np.float32),
        mask.astype(np.uint8) * 255,
        image,
        image.convert("RGB"),
        tmp_path / "mask.png",
    ]
    painted = [tiny.inpaint(picture, form, FOX)[0] for form in forms]
    painted += tiny.inpaint(str(tmp_path / "picture.png"), str(tmp_path / "mask.png"), FOX)
    painted += tiny.inpaint(np.asarray(picture), mask, FOX)
    assert len(set(content(painted))) == 1


def test_what_is_transparent_in_a_mask_stays(tiny: Paella) -> None:
    picture = some_picture()
    mask = box_mask(picture, 8, 8, 24, 24)
    strokes = Image.new("RGBA", picture.size)  # an editor's layer: white strokes on nothing
    strokes.paste("white", mask=Image.fromarray(mask))
    assert content(tiny.inpaint(picture, strokes, FOX)) == content(tiny.inpaint(picture, mask, FOX))


def test_several_masks_leave_the_rest_without_a_prompt(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    usual = tiny._embed
    monkeypatch.setattr(tiny, "_embed", lambda prompts, *name: (asked.extend(prompts), usual(prompts, *name))[1])
    picture = some_picture(64, 32)
    masks = [box_mask(picture, 4, 4, 20, 28), box_mask(picture, 44, 4, 60, 28)]
    assert tiny.inpaint(picture, masks, [FOX, DOG])[0].info["prompt"] == f"{FOX} | {DOG}"
    assert set(asked) == {FOX, DOG, ""}


def test_several_masks_have_a_prompt_each(tiny: Paella) -> None:
    picture = some_picture(64, 32)
    masks = [box_mask(picture, 4, 4, 20, 28), box_mask(picture, 44, 4, 60, 28)]
    both = tiny.inpaint(picture, masks, [FOX, DOG])[0]
    changed = (np.asarray(both) != np.asarray(picture)).any(2)
    assert changed[masks[0]].mean() > 0.5 and changed[masks[1]].mean() > 0.5
    assert not changed[~(masks[0] | masks[1])].any()
    assert content([both]) != content(tiny.inpaint(picture, masks, [DOG, FOX]))
    assert content(tiny.inpaint(picture, masks, FOX)) == content(tiny.inpaint(picture, masks[0] | masks[1], FOX))
    assert content(tiny.inpaint(picture, masks, [FOX])) == content(tiny.inpaint(picture, masks, FOX))
    with pytest.raises(ValueError, match="prompt: must be one, or one for each of the 2 masks"):
        tiny.inpaint(picture, masks, [FOX, DOG, FOX])


def test_feathering_mixes_old_and_new_inside_the_border(tiny: Paella) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    mask = box_mask(picture, 4, 4, 28, 28)
    hard, soft = (np.asarray(tiny.inpaint(picture, mask, FOX, feather=f)[0]).astype(int) for f in (0, 3))
    old = np.asarray(picture).astype(int)
    assert (hard[12:20, 12:20] == soft[12:20, 12:20]).all()  # far inside
    ring = mask & ~box_mask(picture, 5, 5, 27, 27)
    assert np.abs(soft - old)[ring].sum() < 0.5 * np.abs(hard - old)[ring].sum()


def test_feathering_wider_than_the_mask_is_refused(tiny: Paella) -> None:
    picture = some_picture()
    mask = box_mask(picture, 4, 4, 28, 11)  # 7 pixels high: 3 rings, and a line of what is new
    assert tiny.inpaint(picture, mask, FOX, feather=3)
    with pytest.raises(ValueError, match="feather: must be at most 3 pixels, as the mask is no wider, not 4"):
        tiny.inpaint(picture, mask, FOX, feather=4)


def test_a_picture_with_a_part_erased_is_no_mask(tiny: Paella) -> None:
    picture = some_picture()
    erased = picture.convert("RGBA")
    erased.paste((0, 0, 0, 0), (8, 8, 24, 24))
    with pytest.raises(ValueError, match="mask: is a picture with a transparent part"):
        tiny.inpaint(picture, erased, FOX)
    soft = np.zeros((32, 32, 4), np.uint8)  # an editor's mask with a soft edge
    soft[8:24, 8:24], soft[8, 8:24] = 255, 128
    soft[0, 0] = (0, 0, 0, 255)
    assert tiny.inpaint(picture, soft, FOX)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([], "mask: must be a mask, or a list of at least one"),
        (np.zeros((32, 32), bool), "mask: nothing in it is white"),
        (Image.new("RGB", (32, 32), "red"), "mask: nothing in it is white"),
        (np.ones((32, 16), bool), "mask: must have the picture's size, 32 x 32"),
        ("no such file", "mask: cannot read"),
        (3, "mask: must be a PIL image, an array or a file"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(tiny: Paella, mask: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.inpaint(some_picture(), mask, FOX)  # type: ignore[arg-type]
