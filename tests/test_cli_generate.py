"""`paella generate`: what a picture is, where it goes, and what is said on the way."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import Run, files
from PIL import Image

from paella.cli.files import write_file


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_one_picture_goes_to_its_file_with_its_metadata(generate: Run, tmp_path: Path) -> None:
    result = generate("a fox", "--output", "new/fox.png", "--seed", 7, "--steps", 1, "--negative-prompt", "a bear")
    assert result.code == 0 and result.err == ""
    assert "new/fox.png" in result.out and " s" in result.out
    assert files(tmp_path) == {"new", "new/fox.png"}
    with Image.open("new/fox.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
        info = picture.info
    assert {key: info[key] for key in ("ability", "prompt", "seed", "model", "negative_prompt")} == {
        "ability": "generate",
        "prompt": "a fox",
        "seed": "7",
        "model": "tiny",
        "negative_prompt": "a bear",
    }
    assert json.loads(info["settings"])["steps"] == 1


def test_several_pictures_go_to_a_folder_with_a_contact_sheet(generate: Run, tmp_path: Path) -> None:
    result = generate("a fox", "Ein Bär!", "-n", 2, "-o", "out", "--size", "32x64")
    assert result.code == 0 and "out/sheet.png" in result.out
    names = {"a-fox-0.png", "a-fox-1.png", "ein-bär-2.png", "ein-bär-3.png"}
    assert files(tmp_path) == {"out", "out/sheet.png", *(f"out/{name}" for name in names)}
    assert Image.open("out/a-fox-1.png").size == (64, 32)
    assert Image.open("out/ein-bär-3.png").info["prompt"] == "Ein Bär!"


def test_several_pictures_go_to_one_file_as_a_contact_sheet(generate: Run, tmp_path: Path) -> None:
    assert generate("a fox", "-n", 3, "-o", "all.png").code == 0
    assert files(tmp_path) == {"all.png"}
    assert Image.open("all.png").width > 3 * 32


def test_a_folder_keeps_what_is_there_and_a_file_is_written_anew(generate: Run, tmp_path: Path) -> None:
    for steps in (1, 2):
        for output in ("out", "sweep-1.5", "all.png"):
            assert generate("a fox", "-n", 2, "--steps", steps, "-o", output).code == 0
    names = {f"{stem}{number}.png" for stem in ("a-fox-0", "a-fox-1", "sheet") for number in ("", "-2")}
    assert files(tmp_path / "out") == files(tmp_path / "sweep-1.5") == names
    assert json.loads(Image.open("out/a-fox-1.png").info["settings"])["steps"] == 1
    assert json.loads(Image.open("out/a-fox-1-2.png").info["settings"])["steps"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "sweep-1.5", "all.png"}


def test_two_that_write_the_same_name_at_once_both_keep_their_file(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"

    def write(file: IO[bytes]) -> None:
        path.write_bytes(b"of another process, meanwhile")
        file.write(b"ours")

    assert write_file(path, write, beside=True) == tmp_path / "fox-2.png"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "fox.png": b"of another process, meanwhile",
        "fox-2.png": b"ours",
    }


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_ctrl_c_keeps_the_pictures_that_are_finished(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    from paella.engine import Engine

    usual, drawn = Engine.decode, []

    def decode(engine: Engine, tokens: Any) -> Any:
        if len(drawn) == finished:
            raise KeyboardInterrupt
        drawn.append(tokens)
        return usual(engine, tokens)

    monkeypatch.setattr(Engine, "decode", decode)
    result = generate("a fox", "a bear", "an owl", "-o", "out")
    assert (result.code, result.err.count("\n")) == (130, 1)
    assert result.err.startswith(f"paella: warning: interrupted: {finished} of 3 pictures")
    names = ["a-fox-0.png", "a-bear-1.png"][:finished] + ["sheet.png"] * (finished > 1)
    assert files(tmp_path) == {f"out/{name}" for name in names} | ({"out"} if finished else set())


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        (["a fox"], ""),
        (["two foxes", "une pomme rouge", "빨간색 배경의 여우 얼굴"], ""),
        (["a dragon on a red background"], "'a dragon on a red background': names none of the 40 objects"),
        (["an octopux", "a Fox"], "'an octopux': names none"),
        (["an octopux", "a foxtrot"], "'an octopux' and 1 more: names none"),
        (["an octopux"], "Nearest: octopus"),
        (["an appel"], "Nearest: red apple"),
    ],
)
def test_a_prompt_without_a_known_object_is_hinted_at(generate: Run, prompts: list[str], named: str) -> None:
    result = generate(*prompts, "-o", "out")
    assert (result.code, result.err.count("\n")) == (0, bool(named)) and named in result.err


def test_a_model_of_own_pictures_may_know_more_than_it_lists(paella: Run, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "own")
    about = json.loads((tmp_path / "own" / "model.json").read_text())
    about["recipe"] = {"data": {"folder": "my-pictures"}}
    (tmp_path / "own" / "model.json").write_text(json.dumps(about))
    assert paella("generate", "a dragon", "--model", tmp_path / "own", "--output", "dragon.png").err == ""


def test_a_negative_prompt_without_guidance_is_warned_of(generate: Run) -> None:
    result = generate("a fox", "--guidance", 1, "--negative-prompt", "a bear", "-o", "fox.png")
    assert result.code == 0 and result.err.startswith("paella: warning: --negative-prompt: does nothing at guidance 1")
    assert generate("a fox", "--guidance", 2, "--negative-prompt", "a bear", "-o", "fox.png").err == ""


@pytest.mark.parametrize("way", ["file", "dash", "pipe"])
def test_prompts_come_from_lines(generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    lines = "a fox\n\n  a bär \r\n".encode()
    (tmp_path / "prompts.txt").write_bytes(lines)
    typed(monkeypatch, b"ignored" if way == "file" else lines)
    assert generate(*{"file": ["--file", "prompts.txt"], "dash": ["-"], "pipe": []}[way], "-o", "out").code == 0
    assert files(tmp_path / "out") == {"a-fox-0.png", "a-bär-1.png", "sheet.png"}


def test_prompts_do_not_come_from_two_places(generate: Run) -> None:
    result = generate("-", "--file", "none.txt")
    assert result.code == 2 and "--file: prompts come from arguments or from a file, not from both" in result.err


def test_like_repeats_a_picture_bit_for_bit(generate: Run) -> None:
    options = ["--size", "32x48", "--steps", 3, "--guidance", 2, "--temperature", 0.9, "--typical-mass", 0.5]
    assert generate("a fox", "-n", 2, *options, "--seed", 5, "--negative-prompt", "a bear", "-o", "out").code == 0
    result = generate("--like", "out/a-fox-6.png", "-o", "again.png")
    assert (result.code, result.err) == (0, "") and "bit for bit" in result.out
    with Image.open("out/a-fox-6.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes() and first.info == second.info


def test_like_repeats_settings_that_have_no_option(paella: Run, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    about = json.loads((tmp_path / "model/model.json").read_text())
    about["sampler"]["renoise"] = "fresh"
    (tmp_path / "model/model.json").write_text(json.dumps(about))
    assert paella("generate", "a fox", "-o", "first.png", "--model", "model").code == 0
    assert paella("generate", "--like", "first.png", "-o", "again.png", "--model", tiny_model).code == 0
    assert Image.open("first.png").tobytes() == Image.open("again.png").tobytes()


def test_like_gives_way_to_explicit_options(generate: Run) -> None:
    assert generate("a fox", "--seed", 5, "--steps", 3, "-o", "fox.png").code == 0
    result = generate("a bear", "--like", "fox.png", "--steps", 1, "--seed", 9, "--size", 48, "-o", "bear.png")
    assert result.code == 0 and "bit for bit" not in result.out
    with Image.open("bear.png") as picture:
        assert (picture.info["prompt"], picture.info["seed"], picture.size) == ("a bear", "9", (48, 48))
        assert json.loads(picture.info["settings"])["steps"] == 1


def test_like_warns_of_another_model(generate: Run, paella: Run, tiny_model: Path, tmp_path: Path) -> None:
    assert generate("a fox", "-o", "fox.png").code == 0
    shutil.copytree(tiny_model, tmp_path / "model")
    about = json.loads((tmp_path / "model/model.json").read_text())
    (tmp_path / "model/model.json").write_text(json.dumps({**about, "name": "other"}))
    result = paella("generate", "--like", "fox.png", "-o", "again.png", "--model", "model")
    assert result.code == 0 and result.err.startswith("paella: warning: --like:") and "tiny" in result.err


def test_a_long_prompt_is_cut_with_one_line(generate: Run) -> None:
    result = generate("a fox " * 100, "-o", "fox.png")
    assert result.code == 0 and result.err.startswith("paella: warning: prompt: cut") and result.err.count("\n") == 1
