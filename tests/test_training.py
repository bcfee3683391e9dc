"""Laws of training: the loop, its parts, and the three stages on models so tiny that they train in seconds."""

import json
import math
import re
import signal
import subprocess
import sys
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.optim import AdamW

from paella import checkpoint
from paella.checkpoint import load_predictor, load_vqgan, save_vqgan
from paella.data import Stream, collate, open_data, open_loader
from paella.data.folder import Folder
from paella.data.scenes import Scene, Scenes, held_out
from paella.train import clip as clip_training
from paella.train import loop
from paella.train.loop import Average, Stage, learning_rate, load_checkpoint, parameter_groups, save_checkpoint
from paella.train.predictor import SmoothedCrossEntropy, TokenStage, clean_regions
from paella.train.recipe import DataConfig, OptimizerConfig, Recipe, load_recipe
from paella.train.vqgan import reconstruction_figures
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN, VQGANConfig

RECIPES = Path(__file__).parent.parent / "recipes"
SCHEMAS = {"vqgan": "VQGANRecipe", "clip": "ClipRecipe", "predictor": "PredictorRecipe", "labels": "LabelRecipe"}
STAGES = {"vqgan": "VQGANStage", "clip": "ClipStage", "predictor": "PredictorStage", "labels": "LabelStage"}
TINY = {
    "vqgan": "ch=32 ch_mult=[1,1] num_res_blocks=1 attn_levels=[] mid_attention=false z_channels=8 embed_dim=4 "
    "n_embed=16 patch=2",
    "clip": "dim=16 width=16 heads=2 text_layers=1 vision_layers=1 vocabulary=300",
    "predictor": "c_hidden=32 c_r=8 down_levels=[1,1] up_levels=[1,1]",
    "labels": "c_hidden=32 c_r=8 down_levels=[1,1] up_levels=[1,1]",
}


def schema(kind: str) -> type[Recipe]:
    return getattr(import_module(f"paella.train.{kind}"), SCHEMAS[kind])


def settings(kind: str, model: Path, output: Path, *more: str) -> list[str]:
    """The overrides of a tiny run; a predictor takes its VQGAN and CLIP from `model`."""
    own = [f"model.{entry}" for entry in TINY[kind].split()]
    if kind == "clip":
        own += ["tokenizer_captions=50"]
    if kind == "predictor":
        own += [f"vqgan={model}", f"clip={model}", "sampler.steps=2"]
    if kind == "labels":
        own += [f"vqgan={model}", "sampler.steps=2", "per_place=true"]
    return [*own, f"output={output}", "batch_size=4", "log_every=1", "preview_every=1000", "data.size=16", *more]


def make_stage(kind: str, model: Path, *more: str) -> Stage:
    recipe: Any = load_recipe(schema(kind), None, settings(kind, model, Path("unused"), *more))
    return getattr(import_module(f"paella.train.{kind}"), STAGES[kind])(recipe)


def train(kind: str, model: Path, output: Path, *more: str) -> Path:
    """A run as `paella train` makes it."""
    module = import_module(f"paella.train.{kind}")
    return module.main(load_recipe(schema(kind), None, settings(kind, model, output, *more)))


def rows(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def small_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_training, "GALLERY", 24)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten tiny pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        low = np.repeat(np.repeat(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), 4, axis=0), 4, axis=1)
        Image.fromarray(low).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture number {i}\n")
    return folder


# --- recipes ---


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    kind = re.split(r"[-_.]", path.name)[0]
    recipe = load_recipe(schema("predictor" if kind == "baseline" else kind), path)
    assert recipe.steps > 0 and not Path(recipe.output).is_absolute()


def test_there_is_a_recipe_for_every_stage() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} >= set(SCHEMAS)


def test_overrides_come_last(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: here\nsteps: 5\nmodel: {ch: 64, ch_mult: [1, 2]}\noptimizer: {warmup: 0.5}\n")
    recipe: Any = load_recipe(schema("vqgan"), path, ["steps=7", "model.ch=32"])
    assert (recipe.output, recipe.steps, recipe.optimizer.warmup) == ("here", 7, 0.5)
    assert (recipe.model.ch, list(recipe.model.ch_mult)) == (32, [1, 2])
    assert recipe.optimizer.learning_rate == OptimizerConfig().learning_rate


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stepz=5"], "stepz"),
        (["optimizer.momentum=1"], "momentum"),
        (["steps=many"], "many"),
        (["model.c_hidden=wide"], "wide"),
        (["steps"], "'steps' is not of the form key=value"),
        ([], "output"),  # what has no default
    ],
)
def test_a_wrong_entry_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe: .*{words}"):
        load_recipe(schema("predictor"), None, [*(["output=x"] if overrides else []), *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps: must be at least 1, not 0"),
        ("log_every=0", "log_every: must be at least 1, not 0"),
        ("precision=fp8", "precision: must be bf16 or no, not 'fp8'"),
        ("data.jitter=-1", r"data\.jitter: must be at least 0, not -1"),
        ("data.size=15", r"data\.size: must be a multiple of [24], the VQGAN's compression, not 15"),
        ("data.mirrored=2", r"data\.mirrored: must be within 0 \.\.\. 1, not 2"),
        ("data.objects=[fox,blob]", r"data\.objects: 'blob' is not in the vocabulary"),
        ("data.objects=[]", r"data\.objects: must not be empty"),
        ("data.shares=[1,2]", r"data\.shares: must be one for each of"),
    ],
)
@pytest.mark.parametrize("kind", ["vqgan", "predictor"])
def test_a_value_out_of_range_is_refused_before_the_first_step(
    kind: str, override: str, message: str, tiny_model: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make_stage(kind, tiny_model, override)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^recipe: cannot read .*missing\.yaml"):
        load_recipe(Recipe, tmp_path / "missing.yaml")
    for text, words in (("output: x\nstepz: 5\n", "stepz"), ("output: [x\n", "line"), ("- steps\n", "")):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"^recipe: .*{words}"):
            load_recipe(Recipe, tmp_path / "wrong.yaml")


# --- data ---


def test_a_stream_is_decided_by_position_alone() -> None:
    for length in (None, 10, 1):
        whole = list(islice(Stream(length, seed=3), 45))
        for start in (0, 1, 9, 10, 23):
            assert list(islice(Stream(length, 3, start), 45 - start)) == whole[start:]


def test_every_epoch_of_a_finite_stream_is_another_permutation() -> None:
    whole = list(islice(Stream(10, seed=3), 50))
    epochs = [tuple(whole[i : i + 10]) for i in range(0, 50, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(i, i + 10)) for i in range(0, 50, 10)]
    assert len({tuple(number % 10 for number in epoch) for epoch in epochs}) == 5
    assert whole != list(islice(Stream(10, seed=4), 50))


def test_an_endless_stream_counts() -> None:
    assert list(islice(Stream(None, 0, 7), 3)) == [7, 8, 9]


def test_a_loader_goes_on_where_it_was_and_workers_change_nothing(pictures: Path) -> None:
    data = Folder(pictures, size=16)
    whole = list(islice(open_loader(data, 4, seed=1), 6))
    later = list(islice(open_loader(data, 4, seed=1, start=12, workers=1), 3))
    for (pixels, captions), (same_pixels, same_captions) in zip(whole[3:], later, strict=True):
        assert pixels.shape == (4, 3, 16, 16)
        assert torch.equal(pixels, same_pixels)
        assert captions == same_captions


PAIR = re.compile(r"^an? (.+) (to the left of|to the right of|above|below) an? (.+) on an? .+ background$")


def pair_of(caption: str) -> tuple[str, ...]:
    """The ordered pair that a caption names, from left to right or from above; empty where it names no pair."""
    match = PAIR.match(caption)
    if match is None:
        return ()
    return match.group(1, 3) if match[2] in ("to the left of", "above") else match.group(3, 1)


@pytest.mark.parametrize("lookalike_groups", [False, True])
def test_held_out_pairs_are_never_in_the_data(lookalike_groups: bool) -> None:
    data: Any = open_data(DataConfig(size=16, lookalike_groups=lookalike_groups), seed=0)
    pairs = [pair for pair in (pair_of(data.caption(i)) for i in range(2000)) if pair]
    assert len(pairs) > 500
    assert not any(held_out(Scene(pair, "white", "horizontal")) for pair in pairs)


def test_clip_is_judged_on_held_out_pairs() -> None:
    _, captions = clip_training.hard_gallery(Scenes(16), seed=0)
    assert len(set(captions)) == len(captions) == 24
    assert any(held_out(Scene(pair, "white", "horizontal")) for pair in map(pair_of, captions) if pair)


# --- the loop's parts ---


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
    save_checkpoint(tmp_path / "c.safetensors", 3, modules, average, optimizers)
    others = some_parts(1)
    assert load_checkpoint(tmp_path / "c.safetensors", *others) == 3
    for name, module in modules.items():
        state, same = module.state_dict(), others[0][name].state_dict()
        assert all(torch.equal(state[key], same[key]) for key in state)
        memory, other = (parts[name].state_dict()["state"] for parts in (optimizers, others[2]))
        assert memory.keys() == other.keys() and memory
        for index, values in memory.items():
            assert all(torch.equal(value, other[index][key]) for key, value in values.items())
    assert all(torch.equal(value, others[1].tensors[key]) for key, value in average.tensors.items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    modules, average, optimizers = some_parts(0)
    save_checkpoint(tmp_path / "c.safetensors", 3, modules, average, optimizers)
    with pytest.raises(ValueError, match=r"c\.safetensors does not fit this recipe"):
        load_checkpoint(tmp_path / "c.safetensors", *some_parts(0, width=4))


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parts = tmp_path / "c.safetensors", some_parts(0)
    save_checkpoint(path, 3, *parts)

    def dies(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, 4, *parts)
    assert load_checkpoint(path, *some_parts(1)) == 3


# --- every stage ---


@pytest.mark.parametrize("kind", STAGES)
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
    speed = {"samples per second": None}
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


def test_a_finished_run_is_not_trained_again(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    more = ["steps=1", f"data.folder={pictures}"]
    first = (train("predictor", tiny_model, tmp_path, *more) / "model" / "predictor.safetensors").read_bytes()
    count = len(rows(tmp_path))
    again = (train("predictor", tiny_model, tmp_path, *more) / "model" / "predictor.safetensors").read_bytes()
    assert again == first
    assert len(rows(tmp_path)) == count


def test_a_model_records_the_recipe_of_its_run(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    run = train("predictor", tiny_model, tmp_path, "steps=1", f"data.folder={pictures}")
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe.pop("output") == str(tmp_path)
    assert json.loads((run / "model" / "model.json").read_text())["recipe"] == recipe


# --- the predictor ---


def test_the_smoothed_cross_entropy_is_torch_s_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, weights = 4 * torch.randn(6, 9, generator=generator), torch.rand(6, generator=generator)
    labels = torch.randint(9, (6,), generator=generator)
    losses, gradients = [], []
    for loss_of in (
        lambda x: SmoothedCrossEntropy.apply(x, labels, 0.1),
        lambda x: functional.cross_entropy(x, labels, label_smoothing=0.1, reduction="none"),
    ):
        rows = logits.clone().requires_grad_()
        losses.append(loss_of(rows))
        (losses[-1] * weights).sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_the_predictor_overfits_one_batch(tiny_model: Path) -> None:
    stage: Any = make_stage(
        "predictor",
        tiny_model,
        *("model.c_hidden=64", "null_share=0", "image_share=0", "region_share=0", "label_smoothing=0"),
    )
    pixels, captions = collate([stage.data[i] for i in range(4)])
    latent = stage.vqgan.latent(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    stage.vqgan.quantize.embedding.weight.copy_(latent[::2])  # untrained codes would leave all but a few unused
    assert len(stage.vqgan.encode(pixels).unique()) > 16
    optimizer = AdamW(stage.modules["predictor"].parameters(), 5e-3)
    losses = []
    for step in range(150):
        ((_, loss, metrics),) = stage.losses(pixels, captions, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss.item(), float(metrics["accuracy"])))
    assert losses[0][0] > 2
    loss, accuracy = np.mean(losses[-20:], axis=0)
    assert loss < 0.3
    assert accuracy > 0.9


def test_the_condition_is_the_caption_s_or_the_picture_s_or_nothing(tiny_model: Path) -> None:
    stage: Any = make_stage("predictor", tiny_model, "image_share=0.5")
    pixels, captions = collate([stage.data[i] for i in range(2)] * 100)
    null = torch.arange(200) % 5 == 0
    condition = stage.condition(pixels, captions, null)
    assert torch.equal(condition.eq(0).all(1), null)
    kinds = {
        "null": torch.zeros_like(condition),
        "image": stage.clip.embed_images(pixels),
        "text": stage.clip.embed_text(captions),
    }
    share = {name: (condition - own).abs().amax(1).lt(1e-4).float().mean().item() for name, own in kinds.items()}
    assert sum(share.values()) == pytest.approx(1)
    assert share == pytest.approx({"null": 0.2, "image": 0.4, "text": 0.4}, abs=0.12)


def test_null_conditions_have_their_share_and_another_where_a_region_is_clean(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: Any = make_stage("predictor", tiny_model, "null_share=0.2", "region_share=0.5", "region_null_share=0.6")
    pixels, captions = collate([stage.data[i] for i in range(2)] * 200)
    asked = []

    def condition(pixels: torch.Tensor, captions: list[str], null: torch.Tensor) -> torch.Tensor:
        asked.append(null)
        return torch.zeros(len(captions), stage.clip.dim)

    monkeypatch.setattr(stage, "condition", condition)
    for share, expected in ((0, 0.2), (1, 0.6), (0.5, 0.4)):
        stage.recipe.region_share = share
        next(stage.losses(pixels, captions, 0))
        assert asked[-1].float().mean().item() == pytest.approx(expected, abs=0.09)


def test_training_starts_from_a_model_when_asked(tiny_model: Path, tmp_path: Path) -> None:
    own = load_predictor(tiny_model)
    stage = make_stage("predictor", tiny_model, f"init_from={tiny_model}")
    assert isinstance(stage.modules["predictor"], TokenPredictor) and stage.modules["predictor"].training
    for key, value in stage.modules["predictor"].state_dict().items():
        assert torch.equal(value, own.state_dict()[key])
    save_vqgan(VQGAN(VQGANConfig(32, (1,), 1, (), False, 8, 4, n_embed=16, patch=2)), tmp_path)
    with pytest.raises(ValueError, match="init_from: its predictor is not for this VQGAN"):
        make_stage("predictor", tiny_model, f"init_from={tiny_model}", f"vqgan={tmp_path}")


def is_rectangle(mask: torch.Tensor) -> bool:
    where = mask.nonzero()
    if not len(where):
        return False
    (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
    return bool(mask[top : bottom + 1, left : right + 1].all())


def test_clean_regions_are_rectangles_or_all_but_one() -> None:
    torch.manual_seed(0)
    masks = clean_regions(400, 5, 7, share=1.0)
    assert masks.shape == (400, 5, 7) and masks.dtype == torch.bool
    inside, outside = ([is_rectangle(mask) for mask in some] for some in (masks, ~masks))
    assert all(one or other for one, other in zip(inside, outside, strict=True))
    assert np.mean(outside) > 0.4 and np.mean(inside) > 0.4
    assert masks.float().mean((0,)).min() > 0.2  # every place may be clean, and noisy
    assert masks.float().mean((0,)).max() < 0.8


def test_many_clean_regions_are_stripes_or_halves() -> None:
    torch.manual_seed(0)
    masks = clean_regions(400, 5, 7, share=1.0)
    as_wide = (masks == masks[:, :, :1]).all(2).all(1)
    as_high = (masks == masks[:, :1]).all(1).all(1)
    assert as_wide.float().mean() > 0.2 and as_high.float().mean() > 0.2


def test_clean_regions_have_their_share() -> None:
    torch.manual_seed(0)
    assert not clean_regions(50, 5, 7, share=0.0).any()
    assert clean_regions(2000, 5, 7, share=0.3).any(2).any(1).float().mean().item() == pytest.approx(0.3, abs=0.04)


# --- the tokenizer ---


def test_a_vqgan_learns_uses_its_codes_and_survives_the_discriminator(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    data, codes = f"data.folder={pictures}", ("model.z_channels=16", "model.embed_dim=16", "model.n_embed=32")
    train(
        "vqgan",
        tiny_model,
        tmp_path,
        *(data, *codes, "steps=100", "batch_size=8", "preview_every=20", "optimizer.learning_rate=5e-3"),
        *("discriminator_from=40", "adversarial_from=60", "adaptive_limit=0.05"),
    )
    figures = [row for row in rows(tmp_path) if "PSNR" in row]
    assert [row["step"] for row in figures] == [20, 40, 60, 80, 100]
    assert figures[-1]["PSNR"] > figures[0]["PSNR"] + 1
    assert figures[-1]["codes used"] > 0.5
    steps = [row for row in rows(tmp_path) if "l1" in row]
    assert [row["step"] for row in steps if "discriminator" in row] == list(range(41, 101))
    weights = {row["step"]: row["adaptive weight"] for row in steps if "adaptive weight" in row}
    assert list(weights) == list(range(61, 101))
    assert all(0 < weight <= 0.05 for weight in weights.values())
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())
    assert len(list((tmp_path / "preview").glob("*.png"))) == 5

    vqgan = load_vqgan(tmp_path / "model")  # what was judged is what is written
    pixels = make_stage("vqgan", tiny_model, data, *codes).fixed  # type: ignore[attr-defined]
    written = reconstruction_figures(vqgan, pixels)
    assert written["PSNR"] == pytest.approx(figures[-1]["PSNR"], abs=0.01)
    assert written["codes used"] == figures[-1]["codes used"]


def test_the_adaptive_weight_balances_the_losses_up_to_its_limit(tiny_model: Path) -> None:
    stage: Any = make_stage("vqgan", tiny_model, "adversarial_from=0", "adaptive_limit=2")
    output = stage.modules["autoencoder"](collate([stage.data[0]])[0])[0]
    loss = output.square().mean()
    for times, expected in ((4.0, 0.25), (1.0, 1.0), (0.625, 1.6), (0.1, 2.0)):
        assert stage._adaptive_weight(loss, times * loss).item() == pytest.approx(expected, rel=1e-3)


def test_sharpening_the_decoder_leaves_the_tokens_alone(tiny_model: Path, tmp_path: Path) -> None:
    train("vqgan", tiny_model, tmp_path, "steps=2", "decoder_only=true", f"init_from={tiny_model}")
    before, after = load_vqgan(tiny_model).state_dict(), load_vqgan(tmp_path / "model").state_dict()
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    with pytest.raises(ValueError, match="decoder_only: needs init_from"):
        make_stage("vqgan", tiny_model, "decoder_only=true")


# --- CLIP ---


def test_a_clip_learns_which_caption_is_whose(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    train(
        "clip",
        tiny_model,
        tmp_path,
        *("steps=40", "batch_size=10", f"data.folder={pictures}", "preview_every=40", "optimizer.learning_rate=5e-3"),
    )
    losses = [row["loss"] for row in rows(tmp_path) if "loss" in row]
    assert losses[0] > 1.5
    assert losses[-1] < 0.5 * losses[0]
    (figures,) = [row for row in rows(tmp_path) if "R@1" in row]
    assert figures["chance"] == 0.1
    assert figures["R@1"] >= 0.5


def test_text_only_leaves_the_pictures_embeddings_as_they_are(tiny_model: Path) -> None:
    stage = make_stage("clip", tiny_model, "text_only=true", f"init_from={tiny_model}")
    trained = {name for name, p in stage.modules["towers"].named_parameters() if p.requires_grad}
    assert not any("vision" in name or "visual" in name for name in trained)
    assert any("text_model" in name for name in trained)
    with pytest.raises(ValueError, match="text_only: needs init_from"):
        make_stage("clip", tiny_model, "text_only=true")
