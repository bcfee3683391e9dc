"""The abilities on the command line: what each writes, and its errors, which are one line that names the option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

FOX, DOG = "a fox on a green background", "a dog on a red background"


@pytest.fixture
def edit(paella: Run, tiny_model: Path) -> Run:
    """Runs an ability of the tiny model in a folder that holds a picture, a mask of it, and one that is all black."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("picture.png")
    mask = np.zeros((32, 32), bool)
    Image.fromarray(mask).save("black.png")
    mask[8:24, 8:24] = True
    Image.fromarray(mask).save("mask.png")

    return lambda *args: paella(*args, "--model", tiny_model)


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def test_inpaint_keeps_what_the_mask_leaves_out(edit: Run) -> None:
    assert edit("inpaint", "picture.png", FOX, "--mask", "mask.png", "-o", "new.png").code == 0
    old, new = pixels("picture.png"), pixels("new.png")
    mask = pixels("mask.png")[..., 0] > 0
    assert (old[~mask] == new[~mask]).all() and (old[mask] != new[mask]).any()


def test_several_masks_take_a_prompt_each(edit: Run) -> None:
    left = np.zeros((32, 32), bool)
    left[:, :4] = True
    Image.fromarray(left).save("left.png")
    result = edit("inpaint", "picture.png", FOX, DOG, "-m", "mask.png", "-m", "left.png", "-n", 2, "-o", "new")
    assert result.code == 0, result.err
    assert len(list(Path("new").iterdir())) == 3  # two pictures and their sheet


def test_outpaint_adds_what_was_asked_for(edit: Run) -> None:
    result = edit("outpaint", "picture.png", "--right", 10, "--top", 3, "--region", f"{FOX}@right", "-o", "new.png")
    assert result.code == 0, result.err
    new = pixels("new.png")
    assert new.shape == (35, 42, 3) and (new[3:, :32] == pixels("picture.png")).all()


def test_vary_draws_four(edit: Run) -> None:
    assert edit("vary", "picture.png", "-o", "new").code == 0
    assert len(list(Path("new").glob("picture-vary-*.png"))) == 4
    assert edit("vary", "picture.png", FOX, "--strength", 1, "-n", 1, "-o", "towards.png").code == 0


@pytest.mark.parametrize(("output", "kind"), [("row.gif", "GIF"), ("row.webp", "WEBP")])
def test_interpolate_makes_an_animation(edit: Run, output: str, kind: str) -> None:
    assert edit("interpolate", FOX, "picture.png", "--frames", 3, "-o", output).code == 0
    with Image.open(output) as film:
        assert (film.format, film.n_frames, film.size) == (kind, 3, (32, 32))


def test_an_end_that_is_a_file_of_any_kind_is_a_picture(edit: Run) -> None:
    Image.open("picture.png").convert("RGB").save("picture.ppm")
    assert edit("interpolate", "picture.ppm", FOX, "-n", 1, "-o", "row.png").code == 0
    assert Image.open("row.png").info["prompt"] == f"a picture → {FOX}"


def test_what_an_ability_is_asked_for_is_hinted_at_where_the_model_does_not_know_it(edit: Run) -> None:
    for args in (
        ("interpolate", "a dragon", "picture.png", "-n", 2),
        ("compose", "--region", "a dragon@left", "--region", "a fox@right"),
        ("inpaint", "picture.png", "a dragon", "-m", "mask.png"),
    ):
        result = edit(*args, "-o", "new")
        assert result.code == 0 and "'a dragon': names none of the 40 objects" in result.err, result
    assert edit("inpaint", "picture.png", "-m", "mask.png", "-o", "new").err == ""


def test_interpolate_makes_a_folder_of_frames(edit: Run) -> None:
    assert edit("interpolate", FOX, DOG, "--frames", 3, "-o", "frames").code == 0
    assert len(list(Path("frames").iterdir())) == 4  # and their sheet
    first = sorted(Path("frames").glob("*-000.png"))[0]
    assert edit("generate", FOX, "-o", "fox.png").code == 0
    assert (pixels(str(first)) == pixels("fox.png")).all()


def test_files_are_named_by_what_was_done_to_which_picture(edit: Run) -> None:
    assert edit("restyle", "picture.png", FOX, "-o", "here").code == 0
    assert edit("vary", "picture.png", "-n", 1, "-o", "here").code == 0
    assert edit("generate", FOX, "-o", "here").code == 0
    names = sorted(path.name for path in Path("here").glob("*-0.png"))
    assert [name[:16] for name in names] == ["a-fox-on-a-green", "picture-restyle-", "picture-vary-0.p"], names


@pytest.mark.parametrize(("output", "allowed"), [("row.mp4", ".png or .gif or .webp"), ("row.jpg", ".png or .gif")])
def test_an_unknown_ending_is_refused_with_those_that_are_known(edit: Run, output: str, allowed: str) -> None:
    result = edit("interpolate", FOX, DOG, "--frames", 3, "-o", output)
    assert result.code == 2 and f"--output: must end in {allowed}" in result.err and not Path(output).exists()


def test_restyle_and_compose_write_their_pictures(edit: Run) -> None:
    assert edit("restyle", "picture.png", FOX, "--strength", 0.5, "-o", "new.png").code == 0
    assert pixels("new.png").shape == (32, 32, 3)
    regions = ("--region", f"{FOX} @ left", "--region", f"{DOG}@16,0,32,32")
    assert edit("compose", *regions, "--size", "32x64", "-o", "both.png").code == 0
    assert pixels("both.png").shape == (32, 64, 3)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("inpaint", "picture.png"), "--mask: missing"),
        (("inpaint", "picture.png", "-m", "black.png"), "--mask: nothing in it is white"),
        (("inpaint", "none.png", "-m", "mask.png"), "image: cannot read none.png"),
        (("inpaint", "picture.png", "-m", "mask.png", "--feather", -1), "--feather: must be 0 or more"),
        (("inpaint", "picture.png", "-m", "mask.png", "-n", 0), "--number: must be at least 1"),
        (("outpaint", "picture.png"), "--left: one of"),
        (("outpaint", "picture.png", "--top", -1), "--top: must be 0 or more"),
        (("outpaint", "picture.png", "--top", 8, "--region", "a fox"), "--region: must be like PROMPT@WHERE"),
        (("outpaint", "picture.png", "--top", 8, "-m", "black.png"), "--mask: nothing in it is white"),
        (("interpolate", FOX, "none.png"), "end: cannot read none.png"),
        (("vary", "picture.png", FOX, "--strength", 2), "--strength: must be within 0 ... 1"),
        (("interpolate", FOX, DOG, "--frames", 0), "--frames: must be at least 1"),
        (("restyle", "picture.png", FOX, "--strength", -0.1), "--strength: must be within 0 ... 1"),
        (("inpaint", "picture.png", "-m", "mask.png", "--feather", 8), "--feather: must be at most 7 pixels"),
        (("compose",), "--region: missing"),
        (("compose", "--region", "@left"), "--region: the prompt of a region"),
        (("compose", "--region", "a fox@0,0,99,99"), "--region: the box (0, 0, 99, 99)"),
        (("compose", "--region", "a fox@left", "--softness", -1), "--softness: must be 0 or more"),
    ],
)
def test_bad_input_is_one_line_that_names_the_option(edit: Run, args: tuple[object, ...], named: str) -> None:
    result = edit(*args, "-o", "new.png")
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert named in result.err and not Path("new.png").exists()
