"""Trajectories: what each step left, how sure the predictor was, how much changed."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Run, files
from fakes import CODES, a_canvas, always, box_mask, content, generators, some_picture, unsure
from PIL import Image
from torch import Tensor

from paella.canvas import Canvas
from paella.denoiser import Denoise
from paella.edits import free, known
from paella.images import to_pictures
from paella.logits import entropy
from paella.pipeline import Paella
from paella.sampler import SamplerSettings, sample
from paella.trajectory import Recorder, Step, film_strip


def gray(tokens: Tensor) -> list[Image.Image]:
    return to_pictures((tokens[:, None] / CODES).expand(-1, 3, -1, -1))


def recorded(denoise: Denoise, canvas: Canvas | None = None, **settings: int) -> list[list[Step]]:
    canvas = a_canvas(0, 1) if canvas is None else canvas
    recorder = Recorder(canvas)
    for tokens in sample(recorder.watched(denoise), canvas, SamplerSettings(**settings), generators(0, 1)):
        recorder.add(tokens)
    return recorder.trajectories(gray)


def test_entropy_of_known_distributions() -> None:
    logits = torch.full((1, 4, 1, 3), -torch.inf)
    logits[0, 0] = 0
    logits[0, 1, 0, 1] = 0  # two equal ones
    logits[0, :, 0, 2] = 7  # all equal
    assert entropy(logits).flatten().tolist() == pytest.approx([0, math.log(2), math.log(4)])


def test_who_is_sure_has_no_entropy_and_who_knows_nothing_has_all() -> None:
    for steps in recorded(always(3), steps=4):
        assert [step.entropy for step in steps] == pytest.approx([0] * 4, abs=1e-6)
        assert [step.t for step in steps] == [1, 0.75, 0.5, 0.25]
    for steps in recorded(unsure, steps=4):
        assert [step.entropy for step in steps] == pytest.approx([math.log(CODES)] * 4)


def test_what_changed_is_counted_among_the_free_tokens() -> None:
    canvas = a_canvas(0, 1)
    hole = torch.zeros(6, 5, dtype=torch.bool)
    hole[:2] = True
    holed = free(known(canvas.tokens, canvas.condition), hole, torch.full_like(canvas.tokens, 3))
    for token, share in ((3, 0), (4, 1)):  # the hole holds threes
        assert [[step.changed for step in steps] for steps in recorded(always(token), holed, steps=1)] == [[share]] * 2
    frozen = recorded(always(3), known(canvas.tokens, canvas.condition), steps=1)
    assert all(math.isnan(figure) for (step,) in frozen for figure in (step.entropy, step.changed))


def test_a_trajectory_changes_no_picture_and_ends_with_it(tiny: Paella) -> None:
    plain = tiny.generate("a dog", n=2, steps=3)
    pictures = tiny.generate("a dog", n=2, steps=3, trajectory=True)
    assert content(pictures) == content(plain)
    for picture, without in zip(pictures, plain, strict=True):
        steps = picture.info.pop("trajectory")
        assert picture.info == without.info
        assert len(steps) == 3 and len({step.picture.tobytes() for step in steps}) == 3
        assert steps[-1].picture.tobytes() == picture.tobytes()
        assert all(0 < step.entropy <= math.log(32) and 0 < step.changed <= 1 for step in steps)


def test_every_frame_of_an_edit_is_finished_as_its_picture_is(tiny: Paella) -> None:
    source = some_picture(30, 27)
    mask = box_mask(source, 4, 4, 20, 20)
    (picture,) = tiny.inpaint(source, mask, "a dog", steps=3, trajectory=True)
    frames = [step.picture for step in picture.info["trajectory"]]
    assert frames[-1].tobytes() == picture.tobytes()
    for frame in frames:
        assert frame.size == source.size and frame.getpixel((29, 26)) == source.getpixel((29, 26))
    (untouched,) = tiny.restyle(source, "a dog", strength=0, trajectory=True)
    assert untouched.info["trajectory"] == []


def test_of_pictures_without_steps_there_is_no_film_strip(tiny: Paella) -> None:
    with pytest.raises(ValueError, match=r"^trajectory: these pictures have no steps"):
        film_strip(tiny.restyle(Image.new("RGB", (32, 32)), "a fox", strength=0, trajectory=True))


@pytest.mark.parametrize(
    ("output", "expected"),
    [("out", "out/trajectory.png"), ("fox.png", "fox-trajectory.png")],
)
def test_the_command_writes_a_film_strip_with_its_figures(
    generate: Run, tmp_path: Path, output: str, expected: str
) -> None:
    result = generate("a fox", "a bear", "--steps", 3, "-o", output, "--trajectory")
    assert (result.code, result.err) == (0, "") and f"{expected}: each step" in result.out
    assert expected in files(tmp_path)
    with Image.open(expected) as strip:
        assert strip.width > 3 * 32 and strip.height > 2 * 32
        record = json.loads(strip.info["trajectory"])
    assert [(one["prompt"], one["seed"]) for one in record] == [("a fox", "0"), ("a bear", "1")]
    assert [[step["t"] for step in one["steps"]] for one in record] == [pytest.approx([1, 2 / 3, 1 / 3])] * 2
    assert all(step.keys() == {"t", "entropy", "changed"} for one in record for step in one["steps"])


def test_without_room_for_the_film_strip_the_pictures_are_there(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(pictures: object) -> None:
        raise MemoryError

    monkeypatch.setattr("paella.trajectory.film_strip", too_large)
    assert generate("a fox", "-o", "out", "--trajectory").code == 1
    assert files(tmp_path) == {"out", "out/a-fox-0.png"}


def test_a_picture_is_repeated_with_its_trajectory(generate: Run) -> None:
    assert generate("a fox", "-o", "fox.png").code == 0
    assert "bit for bit" in generate("--like", "fox.png", "-o", "again.png", "--trajectory").out
    assert Image.open("again.png").info == Image.open("fox.png").info
