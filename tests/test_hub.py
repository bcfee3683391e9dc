"""The hub, played by a dictionary; and that nobody calls it without need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from conftest import Run

from paella.card import model_card
from paella.checkpoint import CheckpointError, load_model
from paella.integrations.diffusers import PaellaPipeline
from paella.pipeline import Paella
from paella.train.recipe import Recipe


class Hub:
    """Repositories in memory: name -> path -> content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[dict[str, Any]] = []

    def api(self, token: str | None = None) -> SimpleNamespace:
        def create_repo(repo_id: str, **options: Any) -> huggingface_hub.RepoUrl:
            self.asked.append({"token": token, **options})
            self.repositories.setdefault(repo_id, {})
            return huggingface_hub.RepoUrl(f"{huggingface_hub.constants.ENDPOINT}/{repo_id}")

        def create_commit(repo_id: str, operations: list[huggingface_hub.CommitOperationAdd], **_: Any) -> None:
            for operation in operations:
                with operation.as_file() as file:
                    self.repositories[repo_id][operation.path_in_repo] = file.read()

        return SimpleNamespace(create_repo=create_repo, create_commit=create_commit)

    def snapshot_download(self, repo_id: str, allow_patterns: object = None) -> str:
        if repo_id not in self.repositories:
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"{repo_id} is nowhere")
        for name, content in self.repositories[repo_id].items():
            path = self.folder / repo_id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return str(self.folder / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "downloads")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def same(one: Paella, other: Paella) -> bool:
    return [p.tobytes() for p in one.generate("a dog", n=2)] == [p.tobytes() for p in other.generate("a dog", n=2)]


# there and back


def test_what_is_pushed_comes_back(tiny: Paella, hub: Hub) -> None:
    url = tiny.push_to_hub("me/tiny", private=True, token="secret")
    assert url.endswith("/me/tiny")
    assert hub.asked == [{"token": "secret", "private": True, "exist_ok": True}]
    again = Paella.from_pretrained("me/tiny", device="cpu", dtype="float32")
    assert same(again, tiny) and again.objects == tiny.objects


def test_the_diffusers_pipeline_is_pushed_and_comes_back(tiny: Paella, hub: Hub) -> None:
    PaellaPipeline(tiny).push_to_hub("me/tiny")
    assert same(PaellaPipeline.from_pretrained("me/tiny", device="cpu", dtype="float32").model, tiny)


def test_the_command_uploads_the_files_as_they_are(hub: Hub, paella: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("| rightly named | 76.8 |\n")
    tiny_model = shutil.copytree(tiny_model, tmp_path / "model")
    before = {path: path.read_bytes() for path in tiny_model.rglob("*") if path.is_file()}
    left_over = tiny_model / ".half-written" / "predictor.safetensors"
    left_over.parent.mkdir()
    left_over.write_bytes(b"what a save that was killed left")
    result = paella("push", tiny_model, "me/tiny", "--results", "report.md")
    assert result.code == 0 and result.out.rstrip().endswith("/me/tiny")
    pushed = dict(hub.repositories["me/tiny"])
    assert "| rightly named | 76.8 |" in pushed.pop("README.md").decode()
    assert pushed == {path.relative_to(tiny_model).as_posix(): content for path, content in before.items()}
    assert {path for path in tiny_model.rglob("*") if path.is_file()} == {*before, left_over}


def test_what_is_no_model_is_not_pushed(hub: Hub, paella: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    result = paella("push", "notes", "me/notes")
    assert result.code == 2 and "model.json" in result.err and hub.repositories == {}


@pytest.mark.parametrize("name", ["tiny", "me/tiny/2", "me/", "https://hub/me/tiny"])
def test_a_repository_without_owner_and_name_is_refused_before_the_network(
    hub: Hub, paella: Run, tiny_model: Path, name: str
) -> None:
    result = paella("push", tiny_model, name)
    assert result.code == 2 and f"repo_id: must be like owner/name, not '{name}'" in result.err
    assert hub.repositories == {}


def test_results_that_cannot_be_read_are_named(hub: Hub, paella: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_bytes(b"\xff\xfe\x00")
    for file, reason in (("nowhere.md", "No such file"), ("report.md", "not UTF-8")):
        result = paella("push", tiny_model, "me/tiny", "--results", file)
        assert result.code == 2 and f"--results: cannot read {file}: " in result.err and reason in result.err
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OSError("401:\nlog in first"), ConnectionError, 1),
        (RuntimeError("no route to host"), ConnectionError, 1),
        (huggingface_hub.errors.HFValidationError("it has two slashes"), ValueError, 2),
    ],
)
def test_what_the_hub_refuses_is_one_line_about_the_repository(
    tiny: Paella,
    tiny_model: Path,
    paella: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    code: int,
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuses)
    with pytest.raises(kind, match=r"^repo_id: ") as caught:
        tiny.push_to_hub("me/tiny")
    assert "\n" not in str(caught.value)
    result = paella("push", tiny_model, "me/tiny")
    assert (result.code, result.err.count("\n")) == (code, 1) and "repo_id: " in result.err


def test_a_model_that_is_not_on_the_hub_is_named(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"^model: nobody/nothing is neither a folder nor"):
        Paella.from_pretrained("nobody/nothing")


# the card


def test_the_card_says_what_the_model_is_and_how_it_was_made(tiny: Paella, tmp_path: Path) -> None:
    recipe = {"steps": 1200, "data": {"folder": "my-pictures"}}
    pipeline = Paella(tiny.predictor, tiny.vqgan, tiny.clip, tiny.settings, 32, objects=["fox", "owl"], recipe=recipe)
    pipeline.save_pretrained(tmp_path)
    card = model_card(Paella(**load_model(tmp_path)), "me/mine", results="\n| loss | 0.3 |\n")
    assert card.startswith("---\nlibrary_name: paella\n") and "# paella\n" in card
    for words in (
        "Paella.from_pretrained('me/mine').generate('fox')",
        "| pictures | 32 x 32 pixels",
        "2 objects: fox, owl.",
        f"```json\n{json.dumps(recipe, indent=1)}\n```",
        "| loss | 0.3 |",
    ):
        assert words in card


def test_the_card_says_what_nobody_knows(tiny: Paella) -> None:
    free = Paella(tiny.predictor, tiny.vqgan, tiny.clip, tiny.settings, 32)
    card = model_card(free, "me/mine")
    assert "does not record how it was trained" in card and "None were given." in card and "objects" not in card


def test_a_recipe_is_recorded_without_the_folder_of_its_run() -> None:
    record = Recipe(output="runs/here", steps=7).record()
    assert "output" not in record and record["steps"] == 7 and record["data"]["size"] == 64
    json.dumps(record)


# no network

GUARD = """
import os, sys
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
touched = []
def guard(event, arguments):
    if event.startswith("socket."):
        touched.append(event)
        raise PermissionError(f"the network was touched: {event}")
sys.addaudithook(guard)
"""


def sockets_touched_by(code: str, *arguments: object, first: str = "") -> str:
    """The socket events of the code, in a process in which they are errors; also those whose error was caught.

    Args:
        first: what runs before sockets are forbidden.
    """
    script = f"{first}\n{GUARD}\n{code}\nprint(*touched)"
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_the_built_in_model_needs_no_network() -> None:
    code = """
from paella import Paella
p = Paella.from_pretrained()
p.vary(p.generate("a fox", steps=1)[0], 1, prompt="an owl", steps=1)
"""
    assert sockets_touched_by(code) == ""


def test_a_local_folder_needs_no_network(tiny_model: Path, tmp_path: Path) -> None:
    code = """
from paella import Paella
from paella.clip import Clip
p = Paella.from_pretrained(sys.argv[1])
p.vary(p.generate("a fox")[0], 1, prompt="an owl")
Clip.load(sys.argv[1] + "/clip").embed_text(["a fox"])
p.save_pretrained(sys.argv[2])
PaellaPipeline.from_pretrained(sys.argv[2])("a fox")
"""
    # a package that diffusers imports opens a socket to this machine itself, to see whether it has IPv6
    adapter = "from paella.integrations.diffusers import PaellaPipeline"
    assert sockets_touched_by(code, tiny_model, tmp_path, first=adapter) == ""


def test_a_hub_id_needs_it_and_the_guard_sees_that() -> None:
    code = """
from paella import Paella
try:
    Paella.from_pretrained("nobody/nothing")
except ValueError:  # "neither a folder nor a model that the hub gives": the guard's own error is swallowed
    pass
"""
    assert "socket." in sockets_touched_by(code)
