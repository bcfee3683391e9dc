"""Training on several processes: what two with half a batch each learn is what one learns, and they stop together."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training import SCHEMAS, settings, train

from paella import processes
from paella.processes import average, mean_of_all, of_all
from paella.train.loop import CHECKPOINT

pytestmark = pytest.mark.usefixtures("small_gallery")

RUN = """
import os, signal, sys, torch
torch.set_num_threads(1)
from importlib import import_module
from paella.train import clip, loop
from paella.train.recipe import load_recipe

clip.GALLERY = 16
told, kind, schema, *arguments = sys.argv[1:]
usual = loop.learning_rate
def interrupts(config, step, steps):
    if step == 2 and told == os.environ["RANK"]:
        os.kill(os.getpid(), signal.SIGTERM)
    return usual(config, step, steps)
loop.learning_rate = interrupts
learns = loop.Trainer.step
def step(self, batches, number):
    logged = learns(self, batches, number)
    last = list(self.plain[self.stage.shipped].parameters())[-1]
    torch.save(last, os.path.join(self.recipe.output, f"{os.environ['RANK']}-{number + 1}.pt"))
    return logged
loop.Trainer.step = step
module = import_module(f"paella.train.{kind}")
module.main(load_recipe(getattr(module, schema), None, arguments))
"""


def on_processes(count: int, kind: str, model: Path, output: Path, *more: str, told: int | None = None) -> list[int]:
    """Trains as `torchrun --nproc-per-node` does; returns how each ended. `told`: which one is to end in step 3."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    addressed = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    addressed["WORLD_SIZE"] = str(count)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(told), kind, SCHEMAS[kind], *settings(kind, model, output, *more)],
            env=os.environ | addressed | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        errors = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    codes = [child.returncode for child in children]
    assert set(codes) <= {0, -signal.SIGINT}, errors
    return codes


ADVERSARIAL = ["decoder_only=true", "discriminator_from=0", "adversarial_from=0"]


@pytest.mark.parametrize(
    ("kind", "more"), [("clip", []), ("vqgan", ADVERSARIAL), ("vqgan", ["revive_below=0"])], ids=str
)
def test_two_processes_learn_what_one_learns_of_the_batches_of_both(
    kind: str, more: list[str], tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """CLIP's loss contrasts all samples, the adversarial loss is weighed by the gradients of all, and a codebook learns
    from all. Compared are averages, of gradients and of codes: weights that have no gradient are moved by rounding."""
    more = [*more, "steps=3", f"data.folder={pictures}", "precision=float32"]
    if kind == "vqgan":
        more += [f"init_from={tiny_model}", "plain_share=0"]  # a start, and pictures, without random numbers
    assert on_processes(1, kind, tiny_model, tmp_path / "one", *more, "batch_size=4") == [0]
    assert on_processes(2, kind, tiny_model, tmp_path / "two", *more, "batch_size=2") == [0, 0]
    one, two = (load_file(tmp_path / run / CHECKPOINT) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        if name.endswith(("/exp_avg", "embed_avg")):
            assert (two[name] - one[name]).norm() <= 1e-3 * one[name].norm() + 1e-6, name


@pytest.mark.parametrize(("average_every", "told"), [(1, 1), (2, 0)])
def test_when_one_process_is_told_to_stop_all_do_and_go_on_as_if_nothing_was(
    average_every: int, told: int, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    more = ["steps=6", f"data.folder={pictures}", "batch_size=2", "log_every=2", f"average_every={average_every}"]
    arguments = (2, "predictor", tiny_model)
    assert on_processes(*arguments, tmp_path / "resumed", *more, told=told) == [-signal.SIGINT] * 2
    with safe_open(tmp_path / "resumed" / CHECKPOINT, "pt") as file:
        assert file.metadata()["step"] == "4"  # told in the third, and asked when the fourth was logged
    for run in ("resumed", "whole"):
        assert on_processes(*arguments, tmp_path / run, *more) == [0, 0]
    resumed, whole = (load_file(tmp_path / run / CHECKPOINT) for run in ("resumed", "whole"))
    assert not [name for name, value in whole.items() if not torch.equal(value, resumed[name])]
    for step in range(1, 7):
        one, other = (torch.load(tmp_path / "whole" / f"{number}-{step}.pt") for number in range(2))
        assert torch.equal(one, other) == (step % average_every == 0), step


@pytest.mark.parametrize("kind", ["clip", "vqgan", "predictor", "labels", "wordings"])
def test_what_one_process_shows_leaves_all_with_the_same_weights(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """A module that several processes share, asked by one alone, would send what the others take for gradients."""
    assert on_processes(2, kind, tiny_model, tmp_path, "steps=3", "preview_every=1") == [0, 0]
    for step in (1, 2, 3):
        first, second = (torch.load(tmp_path / f"{number}-{step}.pt", weights_only=True) for number in (0, 1))
        assert torch.equal(first, second)


def test_weights_become_their_mean_however_they_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [torch.arange(3.0), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    expected = [own[0] / 2, (own[1] + 1) / 2]
    flat = torch.cat([torch.zeros(3), torch.ones(96)])  # the other process's
    monkeypatch.setattr(processes, "mean_of_all", lambda mine: (mine + flat) / 2)
    average(own)
    assert all(map(torch.equal, own, expected))
    assert own[1].is_contiguous(memory_format=torch.channels_last)


def test_one_process_has_the_rows_and_the_mean_of_all() -> None:
    own = torch.ones(2, 3, requires_grad=True)
    assert of_all(own) is own
    assert torch.equal(mean_of_all(own), own) and not mean_of_all(own).requires_grad


def test_only_a_predictor_learns_apart(tiny_model: Path, tmp_path: Path) -> None:
    for kind in ("clip", "vqgan"):
        with pytest.raises(ValueError, match=r"^average_every: must be 1 but for predictors, not 2"):
            train(kind, tiny_model, tmp_path, "average_every=2", "log_every=2")
