"""The command line: what it writes, and that whatever goes wrong is one line, an exit code and nothing left behind."""

from __future__ import annotations

import errno
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, files
from PIL import Image
from torch.utils.data import DataLoader

from paella.cli.errors import Command


def failed(result: Result, code: int, *named: str) -> None:
    assert (result.code, result.err.count("\n")) == (code, 1), result
    assert result.err.startswith("paella: error: ")
    assert all(name in result.err for name in named), result.err


# the other commands


def test_info(paella: Run, tiny_model: Path) -> None:
    result = paella("info", "--model", tiny_model)
    assert result.code == 0
    for word in (
        "tiny",
        "predictor",
        "VQGAN",
        "CLIP",
        "32 x 32",
        "f = 4",
        "steps 2",
        "cpu",
        "float",
        "threads",
        "torch",
    ):
        assert word in result.out
    listed = paella("info", "--objects", "--model", tiny_model).out.splitlines()
    assert listed == json.loads((tiny_model / "model.json").read_text())["objects"]


def test_version_and_help(paella: Run) -> None:
    assert paella("--version").out.startswith("paella 0.")
    assert "generate" in paella("--help").out
    assert paella().out == paella("--help").out
    for command in (["generate"], ["info"], ["train"], ["dataset", "preview"], ["evaluate", "scenes"]):
        assert paella(*command, "--help").code == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_the_command_keeps_memory_that_is_freed() -> None:
    faults = """
import resource, torch
from paella import cli
from paella.allocator import freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    page_faults()
    print(fetched, page_faults(), freed_memory() > 2**26)

fetched = page_faults()
cli.run = run
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", faults], capture_output=True, text=True, check=True)
    fetched, kept, known = done.stdout.split()
    assert int(kept) < 100 and int(kept) < int(fetched) / 4
    assert known == "True"  # so that the estimate of memory counts it as free


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "paella", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("paella 0.")


def test_help_loads_nothing_slow() -> None:
    code = (
        "import sys; from paella.cli import run; run(['generate', '--help']);"
        "sys.exit(str(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "" and "--typical-mass" in done.stdout


def test_dataset_preview(paella: Run, tmp_path: Path) -> None:
    assert paella("dataset", "preview", "--number", 4, "--size", 32, "--snap", 4, "-o", "scenes.png").code == 0
    assert Image.open("scenes.png").width > 4 * 32
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("good", "bare"):
        Image.new("RGB", (40, 30), "red").save(mine / f"{name}.png")
    (mine / "broken.png").write_bytes(b"nonsense")
    for name in ("good", "broken"):
        (mine / f"{name}.txt").write_text("a red picture")
    result = paella("dataset", "preview", "--folder", "mine", "-o", "mine.png")
    assert result.code == 0 and Path("mine.png").exists()
    assert "2 skipped" in result.out and "bare.png" in result.out and "broken.png" in result.out


def test_evaluate_scenes(paella: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paella.evaluate.parts.SCENES", 16)
    monkeypatch.setattr("paella.train.clip.GALLERY", 20)
    result = paella("evaluate", "scenes", "-n", 2, "--steps", 1, "-o", "report", "--model", tiny_model)
    assert result.code == 0
    assert "background" in result.out and "PSNR" in result.out and "R@1" in result.out
    assert files(tmp_path / "report") == {"report.json", "report.md", "sheet.png"}
    report = json.loads(Path("report/report.json").read_text())
    assert report["settings"]["steps"] == report["sampler"]["steps"] == 1
    assert report["command"].startswith("paella evaluate scenes -n 2") and report["model"] == "tiny"
    assert report["machine"]["versions"] and len(report["parts"]["predictor"]) == 4
    assert result.out.startswith(Path("report/report.md").read_text().split("\n\n", 1)[1])


@pytest.mark.parametrize(("what", "row"), [("words", "Korean"), ("counts", "as many as asked for")])
def test_evaluate_words_and_counts(paella: Run, tiny_model: Path, tmp_path: Path, what: str, row: str) -> None:
    result = paella("evaluate", what, "-n", 2, "--steps", 1, "-o", "report", "--model", tiny_model)
    assert result.code == 0 and f"| {row} | 2 |" in result.out
    assert files(tmp_path / "report") == {f"{what}.json", f"{what}.md"}
    report = json.loads(Path(f"report/{what}.json").read_text())
    assert report["scores"].keys() == {"generated", "reconstructed", "real"}
    assert report["sampler"]["steps"] == 1


def test_train_runs_a_recipe(paella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("paella.train.vqgan.main", seen.append)
    (tmp_path / "recipe.yaml").write_text("output: runs/x\nsteps: 3\n")
    result = paella("train", "vqgan", "recipe.yaml", "steps=5", "data.size=32")
    assert result.code == 0 and "runs/x/model" in result.out
    assert (seen[0].steps, seen[0].data.size, seen[0].output) == (5, 32, "runs/x")


def test_a_finished_training_run_says_that_nothing_was_left_to_do(
    paella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(recipe: Any) -> None:
        checkpoint = Path(recipe.output) / "checkpoint.safetensors"
        if not checkpoint.exists():
            checkpoint.parent.mkdir()
            checkpoint.touch()

    monkeypatch.setattr("paella.train.clip.main", main)
    (tmp_path / "recipe.yaml").write_text("output: run\nsteps: 3\n")
    assert paella("train", "clip", "recipe.yaml").out == "run/model: trained for 3 steps\n"
    assert "nothing was left to do" in paella("train", "clip", "recipe.yaml").out


def test_an_interrupted_training_run_says_how_to_go_on(
    paella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(recipe: Any) -> None:
        Path(recipe.output).mkdir()
        (Path(recipe.output) / "checkpoint.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("paella.train.clip.main", interrupted)
    (tmp_path / "recipe.yaml").write_text("output: run\n")
    result = paella("train", "clip", "recipe.yaml")
    assert result.code == 130 and result.err.count("\n") == 1
    assert "run/checkpoint.safetensors" in result.err and "same command" in result.err


# what goes wrong


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--nonsense"], ["--nonsense"]),
        (["nonsense"], ["nonsense"]),
        (["generate"], ["prompt", "standard input"]),
        (["generate", ""], ["prompt", "empty"]),
        (["generate", "a fox", "  "], ["prompt", "empty"]),
        (["generate", "a fox", "--nonsense"], ["--nonsense", "paella generate --help"]),
        (["generate", "a fox", "--guidance"], ["--guidance"]),
        (["generate", "a fox", "--guidance", "nan"], ["--guidance", "finite"]),
        (["generate", "a fox", "--guidance", "inf"], ["--guidance", "finite"]),
        (["generate", "a fox", "--guidance", "much"], ["--guidance", "number"]),
        (["generate", "a fox", "--steps", "0"], ["--steps", "at least 1"]),
        (["generate", "a fox", "--steps", "2.5"], ["--steps", "integer"]),
        (["generate", "a fox", "--typical-mass", "0"], ["--typical-mass", "above 0"]),
        (["generate", "a fox", "--typical-mass", "nan"], ["--typical-mass", "at most 1"]),
        (["generate", "a fox", "--temperature", "0"], ["--temperature", "above 0"]),
        (["generate", "a fox", "--number", "0"], ["--number", "at least 1"]),
        (["generate", "a fox", "--size", "30"], ["--size", "multiples of 4", "32 x 32"]),
        (["generate", "a fox", "--size", "32x65"], ["--size", "32 x 64"]),
        (["generate", "a fox", "--size", "0"], ["--size", "at least 4"]),
        (["generate", "a fox", "--size", "-4"], ["--size", "64x128"]),
        (["generate", "a fox", "--size", "32x"], ["--size", "64x128"]),
        (["generate", "a fox", "--seed", "-1"], ["--seed", "2^63"]),
        (["generate", "a fox", "--seed", str(2**63)], ["--seed", "2^63"]),
        (["generate", "a fox", "--file", "prompts.txt"], ["--file", "both"]),
        (["generate", "--file", "missing.txt"], ["--file", "missing.txt"]),
        (["generate", "--file", "blank.txt"], ["prompt", "blank.txt"]),
        (["generate", "--file", "latin1.txt"], ["--file", "UTF-8"]),
        (["generate", "--like", "missing.png"], ["--like", "missing.png"]),
        (["generate", "--like", "blank.txt"], ["--like", "blank.txt"]),
        (["generate", "--like", "plain.png"], ["--like", "prompt, seed, settings"]),
        (["generate", "--like", "future.png"], ["--like", "settings"]),
        (["generate", "a fox", "--output", "fox.jpg"], ["--output", ".png"]),
        (["generate", "a fox", "--output", "fox.mp4"], ["--output", ".png", "folder"]),
        (["generate", "a fox", "--model", "missing"], ["--model", "missing"]),
        (["generate", "a fox", "--model", "."], ["--model", "model.json"]),
        (["train"], ["stage"]),
        (["train", "painter", "recipe.yaml"], ["stage", "vqgan", "predictor"]),
        (["train", "vqgan"], ["recipe"]),
        (["train", "vqgan", "missing.yaml"], ["recipe", "missing.yaml"]),
        (["train", "vqgan", "recipe.yaml", "steps"], ["recipe", "key=value"]),
        (["train", "vqgan", "recipe.yaml", "strides=3"], ["recipe", "strides"]),
        (["train", "vqgan", "recipe.yaml", "steps=many"], ["recipe", "many"]),
        (["train", "vqgan", "nameless.yaml"], ["recipe", "output"]),
        (["train", "vqgan", "broken.yaml"], ["recipe"]),
        (["dataset"], ["command", "paella dataset --help"]),
        (["dataset", "preview", "--number", "0"], ["--number"]),
        (["dataset", "preview", "--output", "folder"], ["--output", ".png"]),
        (["dataset", "preview", "--folder", "missing"], ["--folder", "missing"]),
        (["dataset", "preview", "--folder", "empty"], ["--folder", "empty"]),
        (["evaluate", "scenes", "--steps", "0"], ["--steps"]),
        (["evaluate", "scenes", "--seed", "-1"], ["--seed"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input(paella: Run, tiny_model: Path, tmp_path: Path, args: list[str], named: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    (tmp_path / "latin1.txt").write_bytes("ein Bär".encode("latin-1"))
    (tmp_path / "recipe.yaml").write_text("output: run\n")
    (tmp_path / "nameless.yaml").write_text("steps: 3\n")
    (tmp_path / "broken.yaml").write_text("output: [run\n")
    plain = Image.new("RGB", (32, 32))
    plain.save(tmp_path / "plain.png")
    from paella.cli.files import write_picture

    plain.info = {"prompt": "a fox", "seed": "0", "settings": '{"speed": 1}'}
    write_picture(plain, tmp_path / "future.png")
    before = files(tmp_path)
    if args[0] in ("generate", "evaluate") and "--model" not in args and args[-1] != "--guidance":
        args = [*args, "--model", str(tiny_model)]
    failed(paella(*args), 2, *named)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "args", [["generate", "a fox"], ["dataset", "preview"], ["evaluate", "scenes"], ["train", "clip", "recipe.yaml"]]
)
@pytest.mark.parametrize("place", ["under a file", "in the way"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    paella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], place: str
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("paella.pipeline.Paella.from_pretrained", work)
    monkeypatch.setattr("paella.data.scenes.Scenes.__getitem__", work)
    monkeypatch.setattr("paella.train.clip.main", work)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "recipe.yaml").write_text("output: run\n")
    before = files(tmp_path)
    output = "file/out.png" if place == "under a file" else "folder.png" if args[0] == "dataset" else "file"
    result = paella(*args, f"output={output}") if args[0] == "train" else paella(*args, "--output", output)
    failed(result, 1, "output", output.partition("/")[0])
    assert files(tmp_path) == before


def test_a_full_disk_leaves_no_half_written_file(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(picture: Image.Image, file: Any, *_: object, **__: object) -> None:
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "fox.png").write_bytes(b"what was there")
    monkeypatch.setattr(Image.Image, "save", save)
    failed(generate("a fox", "-o", "fox.png"), 1, "--output", "fox.png", "No space")
    assert files(tmp_path) == {"fox.png"} and Path("fox.png").read_bytes() == b"what was there"


@pytest.mark.parametrize("package", ["omegaconf", "accelerate"])
def test_a_missing_package_is_named_with_its_remedy(
    paella: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "output: run\nsteps: 1\ntokenizer_captions: 10\nmodel: {width: 12, vocabulary: 300}\n"
    )
    monkeypatch.setattr("paella.train.clip.GALLERY", 8)
    monkeypatch.setitem(sys.modules, package, None)
    failed(paella("train", "clip", "recipe.yaml"), 1, package, 'pip install -e ".[train]"')
    assert files(tmp_path) == {"recipe.yaml"}


def test_a_bug_is_one_line_too(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("fox")

    monkeypatch.setattr("paella.pipeline.Paella.generate", broken)
    failed(generate("a fox"), 1, "KeyError", "PAELLA_DEBUG")
    monkeypatch.setenv("PAELLA_DEBUG", "1")
    with pytest.raises(KeyError):
        generate("a fox")


def test_what_a_data_loader_s_process_raised_is_said_without_its_traceback() -> None:
    class Broken:
        def __getitem__(self, index: int) -> object:
            raise ValueError("data.folder: cat.png is gone")

    loader = DataLoader(Broken(), sampler=[0], num_workers=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Original Traceback") as raised:
        next(iter(loader))
    failure = Command("train")._failure(raised.value)
    assert (str(failure), failure.code) == ("data.folder: cat.png is gone", 2)


def test_ctrl_c_anywhere_is_one_line(generate: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("paella.images.contact_sheet", interrupted)
    failed(generate("a fox", "-n", 2, "-o", "out"), 130, "interrupted")


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _reshape(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.ndim > 1)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, path)


def _empty_object(path: Path) -> None:
    path.write_text("{}")


def _of_another_model(path: Path) -> None:
    """Its ids are greater than the model knows."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: number + 1000 * (number > 1) for word, number in vocabulary.items()}
    path.write_text(json.dumps(tokenizer))


WEIGHTS = ("predictor.safetensors", "vqgan.safetensors", "clip/model.safetensors")
CONFIGS = ("model.json", "predictor.json", "vqgan.json", "clip/config.json", "clip/preprocessor_config.json")
DAMAGE = [
    *((file, damage) for file in WEIGHTS for damage in (_remove, _truncate, _reshape)),
    *((file, damage) for file in CONFIGS for damage in (_remove, _truncate)),
    ("model.json", _empty_object),
    *(("clip/tokenizer.json", damage) for damage in (_remove, _truncate, _empty_object, _of_another_model)),
]


@pytest.mark.parametrize(
    ("file", "damage"), DAMAGE, ids=[f"{file}{damage.__name__}".replace("/", "_") for file, damage in DAMAGE]
)
def test_a_damaged_model_is_told_by_its_file(
    paella: Run, tiny_model: Path, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    damage(tmp_path / "model" / file)
    before = files(tmp_path)
    failed(paella("generate", "a fox", "--model", "model"), 2, "--model", f"model/{file}")
    assert files(tmp_path) == before
