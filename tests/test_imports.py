"""Imports point one way (docs/architecture.md), and the light rooms stay light."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import paella

SOURCE = Path(paella.__file__).parent

# the rooms at the bottom, and all that each may import of ours
ALLOWED = {
    "allocator": set(),
    "arguments": set(),
    "canvas": set(),
    "denoiser": set(),
    "noise": set(),
    "logits": set(),
    "kernels": set(),
    "images": set(),
    "fingerprint": set(),
    "clip": {"gpu"},
    "labels": set(),
    "gpu": {"arguments"},
    "blocks": {"gpu", "noise"},
    "placement": {"blocks"},
    "edits": {"canvas", "noise"},
    "sampler": {"canvas", "denoiser", "gpu", "noise", "logits"},
    "unet": {"blocks", "denoiser"},
    "packing": {"blocks"},
    "speedups": {"blocks", "gpu", "packing"},
    "tiles": set(),
    "vqgan": {"tiles"},
    "memory": {"allocator", "blocks", "sampler", "vqgan"},
    "baselines.transformer": {"blocks", "denoiser"},
    "baselines.maskgit": {"canvas", "denoiser", "noise", "logits", "sampler"},
    "method": {"canvas", "denoiser", "noise", "sampler", "baselines.maskgit"},
    "card": {"labels"},
    "hub": {"card"},
    "checkpoint": {"clip", "labels", "sampler", "speedups", "unet", "vqgan", "baselines.transformer"},
    "official": {"checkpoint", "sampler", "unet", "vqgan"},
    "trajectory": {"canvas", "denoiser", "images", "logits", "sampler"},
    "batches": {"canvas", "checkpoint", "denoiser", "packing", "sampler", "speedups"},
    "engine": {
        *("arguments", "batches", "placement", "canvas", "noise", "logits", "images", "clip", "edits", "sampler"),
        *("unet", "vqgan", "checkpoint", "fingerprint", "hub", "labels", "memory", "method", "official", "packing"),
        *("speedups", "trajectory"),
    },
    "pipeline": {"arguments", "canvas", "edits", "engine", "images"},
}
TOPS = {"cli", "serve", "integrations"}  # nobody else imports these


@cache
def modules() -> dict[str, Path]:
    """Dotted name below `paella` -> file."""
    names = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(module: str) -> frozenset[str]:
    """What a module of ours imports of ours when it is imported: not inside functions, not for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            for name in node.names:  # of a package either one of its modules, or something that it defines itself
                submodule = f"{node.module}.{name.name}"
                found.add(submodule if submodule.removeprefix("paella.") in modules() else node.module or "")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(modules()[module].read_text(encoding="utf-8")))
    ours = {name.removeprefix("paella.") for name in found if name.startswith("paella.")}
    return frozenset(ours & modules().keys())


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    assert imports(room) <= ALLOWED[room]


def test_imports_have_no_circles() -> None:
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in imports(module):
                walk(other, (*path, module))
            done.add(module)

    for module in modules():
        walk(module, ())


def test_nothing_imports_the_commands_the_server_or_the_adapters() -> None:
    for module in modules().keys() - {"__main__"}:
        tops = {other.split(".")[0] for other in imports(module)} & TOPS
        assert tops <= {module.split(".")[0]}, module


def test_only_training_and_what_uses_it_imports_the_trainer() -> None:
    users = {module.split(".")[0] for module in modules() if any(o.split(".")[0] == "train" for o in imports(module))}
    assert users <= {"train", "cli", "baselines", "evaluate", "experiments"}


def loaded_by(statement: str, *names: str) -> list[str]:
    """Which of these modules are loaded after the statement, in a process of its own."""
    code = f"import sys\n{statement}\nprint(*(name for name in {names!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_import_paella_is_fast() -> None:
    assert loaded_by("import paella", "torch", "transformers", "PIL", "numpy", "huggingface_hub", "diffusers") == []


def test_the_sampler_knows_no_model() -> None:
    heavy = ("paella.unet", "paella.vqgan", "paella.clip", "paella.kernels", "transformers")
    assert loaded_by("import paella.sampler", "paella.sampler", *heavy) == ["paella.sampler"]


def test_drawing_needs_neither_the_hub_nor_diffusers() -> None:
    assert loaded_by("import paella.pipeline", "paella.pipeline", "paella.hub", "diffusers") == ["paella.pipeline"]


def test_public_names_are_there_and_others_are_not() -> None:
    for name in paella.__all__:
        assert getattr(paella, name) is not None
    assert set(paella._PUBLIC) | {"__version__"} == set(paella.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Paela'"):
        paella.Paela  # noqa: B018
