"""Laws of the training loop and its parts, and what every stage has in common."""

import json
import math
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW
from training import SCHEMAS, STAGES, make_stage, rows, settings, train

from paella import checkpoint
from paella.data import collate
from paella.train import loop
from paella.train.loop import learning_rate, parameter_groups
from paella.train.predictor import PredictorStage, TokenStage
from paella.train.recipe import OptimizerConfig
from paella.train.state import Average, load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("small_gallery")


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1, final_rate=0.25)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[55] == pytest.approx((2.0 + 0.5) / 2)  # half-way
    assert rates[99] == pytest.approx(0.5, abs=0.01)
    assert learning_rate(config, 100, 100) == learning_rate(config, 200, 100) == pytest.approx(0.5)


def test_the_learning_rate_can_be_held_and_a_run_be_short() -> None:
    held = OptimizerConfig(learning_rate=2.0, warmup=0.0, final_rate=1.0)
    assert [learning_rate(held, step, 50) for step in range(50)] == [2.0] * 50
    assert learning_rate(OptimizerConfig(), 0, 1) == OptimizerConfig().learning_rate


def test_the_average_follows_its_recursion_and_counts_are_copied() -> None:
    module = nn.BatchNorm1d(1)
    average, expected = Average(module, decay=0.6), 1.0
    for step in range(1, 30):
        module.weight.data.fill_(float(step))
        module.num_batches_tracked.fill_(step)
        average.update(module, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.tensors["num_batches_tracked"] == 29
    assert average.tensors["bias"].item() == 0  # what does not change is its own average


def test_the_average_is_applied_for_a_while() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    average = Average(module, 0.9)
    module.weight.data.fill_(5.0)
    with average.applied_to(module) as shipped:
        assert shipped is module and not module.training
        assert module.weight.item() == 1.0
    assert module.training
    assert module.weight.item() == 5.0
    assert average.tensors["weight"].item() == 1.0


def test_every_trained_parameter_is_in_one_group_and_embeddings_and_biases_do_not_decay() -> None:
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    module[3].requires_grad_(False)
    groups = {
        group["weight_decay"]: group["params"] for group in parameter_groups(module, OptimizerConfig(weight_decay=0.1))
    }
    assert groups.keys() == {0.1, 0.0}
    assert [id(p) for p in groups[0.1]] == [id(module[1].weight)]
    others = [module[0].weight, module[1].bias, module[2].weight, module[2].bias]
    assert {id(p) for p in groups[0.0]} == {id(p) for p in others}


def test_layers_of_many_inputs_learn_at_a_smaller_rate_in_proportion() -> None:
    layers = {
        "linear": (nn.Linear(64, 8), 1 / 4),
        "narrow": (nn.Linear(4, 8), 1),
        "convolution": (nn.Conv2d(4, 8, 4), 1 / 4),
        "depthwise": (nn.Conv2d(8, 8, 3, groups=8), 1),
        "transposed": (nn.ConvTranspose2d(8, 4, 4, stride=2), 1 / 2),
        "embedding": (nn.Embedding(8, 64), 1),
        "norm": (nn.LayerNorm(64), 1),
    }
    module = nn.ModuleDict({name: layer for name, (layer, _) in layers.items()})
    groups = parameter_groups(module, OptimizerConfig(full_rate_inputs=16))
    scales = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    for layer, scale in layers.values():
        assert scales[id(layer.weight)] == scale
        assert scales.get(id(getattr(layer, "bias", None)), 1) == 1
    assert {group["scale"] for group in parameter_groups(module, OptimizerConfig())} == {1}


def test_a_parameter_that_two_layers_share_is_trained_once() -> None:
    module = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
    module[1].weight = module[0].weight
    parameters = [p for group in parameter_groups(module, OptimizerConfig()) for p in group["params"]]
    assert {id(p) for p in parameters} == {id(p) for p in module.parameters()} and len(parameters) == 2


Parts = tuple[dict[str, nn.Module], Average, dict[str, torch.optim.Optimizer]]


def some_parts(seed: int, width: int = 3) -> Parts:
    torch.manual_seed(seed)
    modules: dict[str, nn.Module] = {"a": nn.Linear(2, width), "b": nn.BatchNorm1d(2)}
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: AdamW(module.parameters(), 0.1) for name, module in modules.items()
    }
    average = Average(modules["a"], 0.5)
    for step in range(1, 4):
        modules["a"](modules["b"](torch.randn(5, 2))).square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        average.update(modules["a"], step)
    return modules, average, optimizers


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    modules, average, optimizers = some_parts(0)
    save_checkpoint(tmp_path / "c.safetensors", 3, "one", modules, average, optimizers)
    others = some_parts(1)
    assert load_checkpoint(tmp_path / "c.safetensors", "one", *others) == 3
    for name, module in modules.items():
        state, same = module.state_dict(), others[0][name].state_dict()
        assert all(torch.equal(state[key], same[key]) for key in state)
        memory, other = (parts[name].state_dict()["state"] for parts in (optimizers, others[2]))
        assert memory.keys() == other.keys() and memory
        for index, values in memory.items():
            assert all(torch.equal(value, other[index][key]) for key, value in values.items())
    assert all(torch.equal(value, others[1].tensors[key]) for key, value in average.tensors.items())


def test_moments_stay_with_their_parameters_whatever_the_groups(tmp_path: Path) -> None:
    """Other settings of the optimizer group parameters in another way."""
    modules, average, optimizers = some_parts(0)
    save_checkpoint(tmp_path / "c.safetensors", 3, "one", modules, average, optimizers)
    others = some_parts(1)
    for part, module in others[0].items():
        others[2][part] = AdamW([{"params": [parameter]} for parameter in reversed([*module.parameters()])], 0.1)
    load_checkpoint(tmp_path / "c.safetensors", "one", *others)
    for part, module in modules.items():
        for own, other in zip(module.parameters(), others[0][part].parameters(), strict=True):
            memory, same = optimizers[part].state[own], others[2][part].state[other]
            assert memory.keys() == same.keys() and all(torch.equal(memory[key], same[key]) for key in memory)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path, parts = tmp_path / "c.safetensors", some_parts(0)
    save_checkpoint(path, 3, "one", *parts)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"^checkpoint: .*c\.safetensors is damaged"):
        load_checkpoint(path, "one", *parts)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    modules, average, optimizers = some_parts(0)
    save_checkpoint(tmp_path / "c.safetensors", 3, "one", modules, average, optimizers)
    with pytest.raises(ValueError, match=r"c\.safetensors does not fit this recipe"):
        load_checkpoint(tmp_path / "c.safetensors", "one", *some_parts(0, width=4))
    with pytest.raises(ValueError, match="another text tokenizer"):
        load_checkpoint(tmp_path / "c.safetensors", "two", *some_parts(0))


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parts = tmp_path / "c.safetensors", some_parts(0)
    save_checkpoint(path, 3, "one", *parts)

    def dies(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, 4, "one", *parts)
    assert load_checkpoint(path, "one", *some_parts(1)) == 3


def test_a_full_disk_is_told_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, file: Path, metadata: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"^cannot write .*c\.safetensors: .*No space left"):
        save_checkpoint(tmp_path / "c.safetensors", 3, "one", *some_parts(0))


def test_a_run_that_ends_between_its_first_checkpoint_and_its_model_can_go_on(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["steps=3", f"data.folder={pictures}", "checkpoint_minutes=0"]
    usual = PredictorStage.save

    def dies(self: PredictorStage, shipped: nn.Module, folder: Path) -> None:
        usual(self, shipped, folder)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PredictorStage, "save", dies)
        with pytest.raises(MemoryError):
            train("predictor", tiny_model, tmp_path / "run", *more)
    again, whole = (train("predictor", tiny_model, tmp_path / name, *more) for name in ("run", "whole"))
    first, second = ((run / "model" / "predictor.safetensors").read_bytes() for run in (again, whole))
    assert first == second


@pytest.mark.parametrize("kind", set(STAGES) - {"wordings"})  # which begins with given ones
def test_initial_weights_are_decided_by_the_seed(kind: str, tiny_model: Path) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        stage = make_stage(kind, tiny_model, f"seed={seed}")
        return list(stage.modules[stage.shipped].parameters())

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert not all(torch.equal(one, same) for one, same in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("vqgan", ["discriminator_from=0", "adversarial_from=0"]),
        ("vqgan", ["decoder_only=true"]),
        ("clip", []),
        ("predictor", ["null_share=0"]),
    ],
)
def test_one_step_changes_every_trained_parameter(kind: str, more: list[str], tiny_model: Path) -> None:
    if "decoder_only=true" in more:
        more = [*more, f"init_from={tiny_model}"]
    stage = make_stage(kind, tiny_model, *more)
    before = {part: {k: v.clone() for k, v in module.named_parameters()} for part, module in stage.modules.items()}
    optimizers = {
        part: AdamW(parameter_groups(module, OptimizerConfig()), 1e-2) for part, module in stage.modules.items()
    }
    seen = []
    for part, loss, _ in stage.losses(*collate([stage.data[i] for i in range(4)]), 0):
        seen.append(part)
        loss.backward()
        optimizers[part].step()
    assert seen == list(stage.modules)
    trained = {
        f"{p}.{k}" for p, module in stage.modules.items() for k, v in module.named_parameters() if v.requires_grad
    }
    changed = {
        f"{part}.{key}"
        for part, module in stage.modules.items()
        for key, value in module.named_parameters()
        if not torch.equal(value, before[part][key])
    }
    # the discriminator's last bias adds to real and fake scores alike: the hinge loss holds it until one is far enough
    assert changed <= trained
    assert trained - changed <= {"discriminator.8.bias"}


INTERRUPTED = """
import os, signal, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from importlib import import_module
from paella.train import loop
from paella.train.recipe import load_recipe

usual = loop.learning_rate
def interrupts(config, step, steps):
    if step == 3 and sys.argv[2]:
        os.killpg(0, signal.Signals[sys.argv[2]])  # to the whole group, as Ctrl-C: the data workers get it too
    return usual(config, step, steps)
loop.learning_rate = interrupts
module = import_module(f"paella.train.{sys.argv[3]}")
module.main(load_recipe(getattr(module, sys.argv[4]), None, sys.argv[5:]))
"""


@pytest.mark.parametrize(("kind", "how"), [("vqgan", "SIGINT"), ("clip", "SIGTERM"), ("predictor", "SIGINT")])
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, how: str, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    """Interrupted in step 4 of 7: in the middle of the second epoch of ten pictures, with the next batch on its way."""
    more = ["steps=7", f"data.folder={pictures}", "data.workers=1", "preview_every=2"]
    if kind == "vqgan":
        more += ["discriminator_from=1", "adversarial_from=2"]
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    arguments = [str(torch.get_num_threads()), how, kind, SCHEMAS[kind], *settings(kind, tiny_model, resumed, *more)]
    child = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGINT, child.stderr  # what Python makes of a KeyboardInterrupt
    assert "DataLoader worker" not in child.stderr
    with safe_open(resumed / loop.CHECKPOINT, "pt") as file:
        assert file.metadata()["step"] == "4"

    for output in (resumed, whole):
        train(kind, tiny_model, output, *more)
    files = sorted(path.relative_to(whole) for path in (whole / "model").rglob("*") if path.is_file())
    assert any(path.suffix == ".safetensors" for path in files)
    for path in files:
        assert (resumed / path).read_bytes() == (whole / path).read_bytes(), path
    ours, theirs = load_file(resumed / loop.CHECKPOINT), load_file(whole / loop.CHECKPOINT)
    assert ours.keys() == theirs.keys()
    assert not [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    speed = {"samples per second": None, "share of peak": None}
    assert all(speed.keys() <= row.keys() for row in rows(whole) if "rate" in row)
    assert [{**row, **speed} for row in rows(resumed)] == [{**row, **speed} for row in rows(whole)]


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("predictor", tiny_model, tmp_path, "steps=2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    usual = TokenStage.losses

    def losses(self: Any, pixels: torch.Tensor, annotations: Any, step: int) -> Any:
        for part, loss, metrics in usual(self, pixels, annotations, step):
            yield part, loss * math.nan, metrics

    monkeypatch.setattr(TokenStage, "losses", losses)
    with pytest.raises(RuntimeError, match=r"^predictor: its loss or gradient is no longer finite in step 3"):
        train("predictor", tiny_model, tmp_path, "steps=4")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


def test_the_first_step_that_is_not_finite_is_named_and_nothing_of_it_is_logged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = TokenStage.losses

    def losses(self: Any, pixels: torch.Tensor, annotations: Any, step: int) -> Any:
        for part, loss, metrics in usual(self, pixels, annotations, step):
            yield part, loss * (math.nan if step == 2 else 1), metrics

    monkeypatch.setattr(TokenStage, "losses", losses)
    with pytest.raises(RuntimeError, match=r"no longer finite in step 3"):
        train("predictor", tiny_model, tmp_path, "steps=20", "log_every=2", "accumulate=2")
    assert [row["step"] for row in rows(tmp_path)] == [2] and not (tmp_path / loop.CHECKPOINT).exists()


def test_an_interrupt_while_a_preview_is_made_leaves_a_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = PredictorStage.preview

    def preview(self: PredictorStage, shipped: nn.Module) -> Image.Image:
        signal.raise_signal(signal.SIGTERM)
        return usual(self, shipped)

    monkeypatch.setattr(PredictorStage, "preview", preview)
    with pytest.raises(KeyboardInterrupt):
        train("predictor", tiny_model, tmp_path, "steps=9", "preview_every=2")
    with safe_open(tmp_path / loop.CHECKPOINT, "pt") as file:
        assert file.metadata()["step"] == "3"


def test_a_finished_run_is_not_trained_again(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    more = ["steps=1", f"data.folder={pictures}"]
    first = (train("predictor", tiny_model, tmp_path, *more) / "model" / "predictor.safetensors").read_bytes()
    count = len(rows(tmp_path))
    again = (train("predictor", tiny_model, tmp_path, *more) / "model" / "predictor.safetensors").read_bytes()
    assert again == first
    assert len(rows(tmp_path)) == count
    shutil.rmtree(tmp_path / "model")
    assert (train("predictor", tiny_model, tmp_path, *more) / "model" / "predictor.safetensors").read_bytes() == first
    (tmp_path / loop.CHECKPOINT).unlink()
    with pytest.raises(ValueError, match=r"^output: .*model is there, and no checkpoint"):
        train("predictor", tiny_model, tmp_path, *more)


def test_a_run_that_broke_off_leaves_no_line_twice(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    more = f"data.folder={pictures}"
    train("predictor", tiny_model, tmp_path, "steps=2", more)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # after the last checkpoint
        file.write(json.dumps({"step": 3, "loss": 1.0}) + "\n" + '{"step": 4, "lo')
    train("predictor", tiny_model, tmp_path, "steps=4", more)
    steps = [row["step"] for row in rows(tmp_path) if "rate" in row]
    assert steps == [1, 2, 3, 4]


def test_a_model_records_the_recipe_of_its_run_and_its_own_sizes(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    run = train("predictor", tiny_model, tmp_path, "steps=1", f"data.folder={pictures}")
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe.pop("output") == str(tmp_path)
    sizes = json.loads((run / "model" / "predictor.json").read_text())
    del sizes["architecture"]
    recorded = json.loads((run / "model" / "model.json").read_text())["recipe"]
    assert recorded == recipe | {"model": sizes} and recipe["model"] != sizes
