"""What the documentation shows is so: its Python runs, its commands are understood, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from paella.cli import app, run
from paella.cli.train import RECIPES
from paella.train.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"[a-z]+:|#")  # another site, or a place in the same document

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(document: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(number of the line above it, text) of each fenced block in one of the languages."""
    text = document.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield text.count("\n", 0, found.start()) + 1, found[2]


def commands(document: Path) -> Iterator[list[str]]:
    """The words behind `paella` of each such command line, without comment and prompt."""
    for _, block in blocks(document, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            if words[:1] == ["paella"]:
                yield words[1:]


def understood(words: list[str]) -> None:
    """Parses the command line as `paella` does, without doing what it says."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):  # paella --help, and the like
        assert rest[:1] in (["--help"], ["--version"]), f"there is no command paella {shlex.join(words)}"
        assert run(words) == 0
        return
    given = command.make_context("paella", rest).params
    if "overrides" in given:
        stage = given.get("stage", "predictor")  # whose data are encoded
        schema = getattr(import_module(f"paella.train.{stage}"), RECIPES[stage])
        load_recipe(schema, ROOT / given["recipe"], given["overrides"] or [])


@every_document
def test_python_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}  # one for the document: a block may go on where one ended
    for line, block in blocks(document, "python"):
        exec(compile("\n" * line + block, str(document), "exec"), namespace)


@every_document
def test_commands_are_understood(document: Path) -> None:
    for words in commands(document):
        understood(words)


@every_document
def test_links_lead_somewhere(document: Path) -> None:
    prose = INLINE_CODE.sub("", FENCE.sub("", document.read_text(encoding="utf-8")))
    targets = [target for found in LINK.findall(prose) for target in found if target]
    relative = [target.partition("#")[0] for target in targets if not ELSEWHERE.match(target)]
    assert [target for target in relative if not (document.parent / target).exists()] == []


def test_the_readme_shows_python_commands_and_a_picture() -> None:
    readme = ROOT / "README.md"
    assert [*blocks(readme, "python")]
    assert {words[0] for words in commands(readme)} >= {"generate", "train", "info"}
    assert "](docs/images/" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "generate 'a fox' --no-such-option",
        "no-such-command --output fox.png",
        "train vqgan recipes/vqgan.yaml no_such_key=1",
        "train vqgan no-such-recipe.yaml",
    ],
)
def test_a_wrong_command_is_not_understood(line: str) -> None:
    with pytest.raises(Exception, match=r"no.such"):
        understood(shlex.split(line))
