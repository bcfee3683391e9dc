"""The judge of generated scenes: what it must find, and what it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from paella.data.render import OBJECT_SIZES, render
from paella.data.scene import BACKGROUNDS, Scene, held_out
from paella.data.vocabulary import objects
from paella.evaluate.matching import Matcher, background_colour, rooms
from paella.evaluate.scenes import (
    KINDS,
    ROWS,
    Kind,
    evaluate_scenes,
    format_table,
    held_out_prompts,
    real_pictures,
    score_scenes,
    wilson,
)

NAMES = list(objects())


def pixels(*pictures: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).permute(0, 3, 1, 2)


def drawn(scene: Scene, size: int = 64, seed: int = 0) -> Image.Image:
    return render(scene, size, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_real_scenes_are_judged_right(kind: Kind) -> None:
    prompts = held_out_prompts(40, kind, seed=1)
    scenes, captions = [scene for scene, _ in prompts], [words for _, words in prompts]
    rates = score_scenes(real_pictures(scenes, 64, seed=1), scenes, captions)
    for row in (f"{kind}_top1", f"{kind}_top5", "pair_both_top1", "background"):
        if row in rates:
            assert rates[row]["rate"] == 1, row


def test_blurred_and_noisy_scenes_are_judged_right() -> None:
    scenes = [scene for scene, _ in held_out_prompts(30, "single", seed=2)]
    rng = np.random.default_rng(2)
    pictures = []
    for picture in real_pictures(scenes, 64, seed=2):
        blurred = np.array(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float64)
        pictures.append(Image.fromarray((blurred + rng.normal(0, 15, blurred.shape)).clip(0, 255).astype(np.uint8)))
    assert score_scenes(pictures, scenes, ["" for _ in scenes])["single_top1"]["rate"] >= 0.95


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_any_size_of_picture(size: int) -> None:
    scenes = [Scene((name,), "teal", "single") for name in ("fox", "key", "pizza", "snowman")]
    pictures = pixels(*(drawn(scene, size) for scene in scenes))
    best = Matcher(NAMES, size).scores(pictures).argmax(1)
    assert [NAMES[i] for i in best] == ["fox", "key", "pizza", "snowman"]


@pytest.mark.parametrize("size", [48, 56, 64])
def test_copies_are_counted_in_any_size_of_picture(size: int) -> None:
    scenes = [Scene((name,) * count, "white", "count") for name in ("fox", "key", "pizza") for count in (2, 3, 4)]
    matcher = Matcher(["fox", "key", "pizza"], size)
    right = [
        matcher.copies(pixels(drawn(scene, size, seed))[0], scene.objects[0]) == len(scene.objects)
        for scene in scenes
        for seed in range(4)
    ]
    assert np.mean(right) >= 0.9


def test_another_object_is_wrong() -> None:
    scenes = [scene for scene, _ in held_out_prompts(10, "single", seed=3)]
    asked = [Scene((NAMES[NAMES.index(s.objects[0]) - 1],), s.background, s.layout) for s in scenes]
    rates = score_scenes(real_pictures(scenes, 64, seed=3), asked, ["" for _ in asked])
    assert rates["single_top1"]["rate"] == 0
    assert "background" not in rates  # no prompt named it


@pytest.mark.parametrize("layout", KINDS["pair"])
def test_the_order_of_a_pair_counts(layout: Any) -> None:
    pair, swapped = (Scene(names, "gray", layout) for names in (("fox", "key"), ("key", "fox")))
    picture = drawn(pair)
    right, wrong = (score_scenes([picture], [scene], ["on a gray background"]) for scene in (pair, swapped))
    assert right["pair_both_top1"]["rate"] == right["pair_each_top1"]["rate"] == 1
    assert right["pair_swapped"]["rate"] == 0
    assert wrong["pair_both_top1"]["rate"] == wrong["pair_each_top1"]["rate"] == 0
    assert wrong["pair_swapped"]["rate"] == 1


def test_one_object_of_a_pair_is_not_both() -> None:
    only_left = drawn(Scene(("fox", "key"), "gray", "horizontal")).copy()
    only_left.paste(only_left.getpixel((0, 0)), (32, 0, 64, 64))
    rates = score_scenes([only_left], [Scene(("fox", "key"), "gray", "horizontal")], [""])
    assert rates["pair_both_top1"]["rate"] == 0
    assert rates["pair_each_top1"]["rate"] == 0.5


def test_a_blank_picture_matches_nothing(matcher: Matcher) -> None:
    blank = [Image.new("RGB", (64, 64), colour) for colour in BACKGROUNDS.values()]
    for layout, sides in OBJECT_SIZES.items():
        for room in rooms(layout, 64):
            assert matcher.scores(pixels(*blank), room, sides).abs().max() < 1e-3
    scenes = [Scene((name,), "white", "single") for name in NAMES[: len(blank)]]
    assert score_scenes(blank, scenes, ["" for _ in scenes])["single_top5"]["rate"] == 0


def test_faint_noise_matches_little(matcher: Matcher) -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(np.clip(rng.normal(0.5, 0.02, (8, 3, 64, 64)), 0, 1))
    assert matcher.scores(noise).max() < 0.3


def test_a_faded_object_matches_as_well(matcher: Matcher) -> None:
    """The correlation knows no contrast: neither of colours to the background, nor of all channels to each other."""
    picture = pixels(drawn(Scene(("butterfly",), "black", "single"))) / 255
    background = picture[:, :, :1, :1]
    plain, faded = matcher.scores(picture), matcher.scores(background + 0.4 * (picture - background))
    torch.testing.assert_close(plain, faded, atol=1e-4, rtol=0)


def test_scores_are_of_one_picture_alone(matcher: Matcher) -> None:
    pictures = pixels(*(drawn(Scene((name,), "pink", "small"), seed=i) for i, name in enumerate(NAMES[:5])))
    together = matcher.scores(pictures, sides=OBJECT_SIZES["small"])
    alone = torch.cat([matcher.scores(picture[None], sides=OBJECT_SIZES["small"]) for picture in pictures])
    assert together.shape == (5, len(NAMES))
    assert together.max() <= 1 + 1e-5
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_wrong_size_is_an_error(matcher: Matcher) -> None:
    with pytest.raises(ValueError, match="64"):
        matcher.scores(torch.zeros(1, 3, 32, 32))


def test_backgrounds_are_named_whatever_stands_on_them() -> None:
    scenes = [Scene(("fox", "sun"), name, "vertical") for name in BACKGROUNDS for _ in range(5)]
    pictures = pixels(*(drawn(scene, seed=i) for i, scene in enumerate(scenes)))
    assert background_colour(pictures) == background_colour(pictures / 255) == [scene.background for scene in scenes]


def test_held_out_prompts_are_that() -> None:
    for kind, layouts in KINDS.items():
        prompts = held_out_prompts(60, kind, seed=0)
        assert prompts == held_out_prompts(60, kind, seed=0) != held_out_prompts(60, kind, seed=1)
        assert {scene.layout for scene, _ in prompts} == set(layouts)
        assert all(held_out(scene) == (kind == "pair") for scene, _ in prompts)
        assert len({scene.background for scene, _ in prompts}) == len(BACKGROUNDS)
    with pytest.raises(ValueError, match="no pair"):
        held_out_prompts(1, "pair", 0, names=["fox"])


class Copyist:
    """Draws every prompt right, in the order that the prompts come in; its tokenizer loses everything."""

    def generate(self, prompt: list[str], *, seed: int, **settings: Any) -> list[Image.Image]:
        scenes = [scene for kind in KINDS for scene, _ in held_out_prompts(len(prompt) // 3, kind, seed)]
        return real_pictures(scenes, 64, seed + 1)

    def reconstruct(self, pictures: list[Image.Image]) -> list[Image.Image]:
        return [Image.new("RGB", picture.size) for picture in pictures]


def test_report() -> None:
    shown = []
    report = evaluate_scenes(Copyist(), 12, seed=5, on_pictures=lambda *these: shown.append(these), steps=8)
    (pictures, captions), *more = shown
    assert len(pictures) == len(captions) == 36
    assert not more
    scores = report["scores"]
    assert list(scores["real"]) == list(ROWS)
    for row, rate in scores["generated"].items():
        assert rate["rate"] == (row != "pair_swapped")
        if not row.startswith("background"):
            assert row == "relation" or scores["reconstructed"][row]["rate"] == 0
    table = format_table(report)
    assert "steps 8" in table
    assert all(meaning in table for meaning in ROWS.values())


def test_wilson() -> None:
    """Against the values of the textbook formula for 81 of 263 (Newcombe 1998)."""
    rate = wilson(81 / 263, 263)
    assert (round(rate["low"], 4), round(rate["high"], 4)) == (0.2553, 0.3662)
    assert wilson(1, 500)["high"] == pytest.approx(1)
    assert wilson(1, 500)["low"] > 0.99
