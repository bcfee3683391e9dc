"""Baselines go through training, model folders, pipeline and figures as the paper's own predictor does."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.optim import AdamW
from training import assert_overfits

from paella.baselines.maskgit import MaskGIT
from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.checkpoint import CheckpointError, Predictor, load_model, load_predictor
from paella.data import collate
from paella.evaluate.metrics import mean_where
from paella.evaluate.parts import predictor_figures
from paella.images import to_tensor
from paella.method import Denoising, method_of
from paella.noise import add_noise
from paella.train.labels import LabelRecipe, LabelStage
from paella.train.predictor import PredictorRecipe, PredictorStage, main
from paella.train.recipe import load_recipe
from paella.unet import TokenPredictor, UNetConfig

if TYPE_CHECKING:
    from paella.pipeline import Paella

RECIPES = Path(__file__).parent.parent / "recipes"
CODES = 32  # of the tiny model's tokenizer
UNET = {"num_labels": CODES, "c_hidden": 32, "c_clip": 16, "c_r": 8, "down_levels": (1, 1), "up_levels": (1, 1)}
TRANSFORMER: dict[str, Any] = {
    **{"num_labels": CODES, "width": 16, "c_clip": 16, "c_r": 8, "layers": 2, "heads": 2, "grid": 8},
}
PREDICTORS: dict[str, Any] = {
    "transformer": lambda: TransformerPredictor(TransformerConfig(**TRANSFORMER)),
    "transformer, masked": lambda: TransformerPredictor(TransformerConfig(**TRANSFORMER, mask_token=True)),
    "unet, masked": lambda: TokenPredictor(UNetConfig(**UNET, mask_token=True)),  # type: ignore[arg-type]
}
MASKED = [name for name in PREDICTORS if "masked" in name]


def model(tiny: Paella, name: str) -> Paella:
    """The tiny model with a baseline in its predictor's place, untrained."""
    from paella.pipeline import Paella

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor: Predictor = PREDICTORS[name]().eval()
    return Paella(predictor, tiny.vqgan, tiny.clip, tiny.settings, tiny.size, name=name)


@pytest.fixture(params=PREDICTORS)
def baseline(request: pytest.FixtureRequest, tiny: Paella) -> Paella:
    return model(tiny, request.param)


def content(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def a_picture(width: int = 30, height: int = 26) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# --- which method a predictor is for ---


def test_a_predictor_s_own_config_says_how_it_is_trained_and_asked(tiny: Paella) -> None:
    assert isinstance(method_of(tiny.predictor), Denoising)
    assert isinstance(method_of(PREDICTORS["transformer"]()), Denoising)
    for name in MASKED:
        assert method_of(PREDICTORS[name]()) == MaskGIT(CODES)


def test_denoising_corrupts_with_noise_and_judges_every_place() -> None:
    tokens, noise = torch.randint(9, (2, 5, 6)), torch.randint(9, (2, 5, 6))
    uniform, t = torch.rand(2, 5, 6), torch.tensor([0.2, 0.7])
    noisy = Denoising().corrupt(tokens, t, noise, uniform)
    assert torch.equal(noisy, add_noise(tokens, t, noise, uniform))
    assert Denoising().counted(noisy).all()


@pytest.mark.parametrize("name", MASKED)
def test_the_mask_token_is_an_input_and_never_an_output(name: str) -> None:
    predictor = PREDICTORS[name]()
    logits = predictor(torch.full((1, 8, 8), CODES), torch.zeros(1, 16), torch.ones(1))
    assert logits.shape == (1, CODES, 8, 8)
    with pytest.raises(IndexError):
        predictor(torch.full((1, 8, 8), CODES + 1), torch.zeros(1, 16), torch.ones(1))


# --- pictures ---


def test_a_picture_does_not_depend_on_its_batch(baseline: Paella) -> None:
    together = baseline.generate("a dog", n=3, seed=5)
    assert content(together) == content([baseline.generate("a dog", seed=5 + i)[0] for i in range(3)])
    assert len(set(content(together))) == 3


@pytest.mark.parametrize("steps", [1, 3])
def test_every_step_shows_codes_that_the_tokenizer_has(baseline: Paella, steps: int) -> None:
    seen: list[Tensor] = []
    baseline.generate("a dog", size=(20, 44), steps=steps, on_step=lambda _, __, tokens: seen.append(tokens))  # type: ignore[func-returns-value]
    assert [tokens.shape for tokens in seen] == [(1, 5, 11)] * steps
    assert all(tokens.min() >= 0 and tokens.max() < CODES for tokens in seen)


def test_inpainting_keeps_tokens_at_every_step_and_pixels_bit_for_bit(baseline: Paella) -> None:
    picture, mask = a_picture(), np.zeros((26, 30), dtype=bool)
    mask[4:14, 10:20] = True
    seen: list[Tensor] = []
    (result,) = baseline.inpaint(
        picture,
        Image.fromarray(mask),
        "a dog",
        steps=3,
        on_step=lambda _, __, tokens: seen.append(tokens),  # type: ignore[func-returns-value]
    )
    before, after = np.asarray(picture), np.asarray(result)
    assert np.array_equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).any()
    changed = (torch.stack(seen) != seen[0]).any(0)[0]
    assert changed.any() and not changed[:, :1].any() and not changed[5:].any()  # the mask, and one token around


def test_the_other_abilities_work_too(baseline: Paella) -> None:
    picture = a_picture()
    assert baseline.outpaint(picture, "a dog", left=6, bottom=3)[0].size == (36, 29)
    assert len(baseline.vary(picture, n=2)) == 2
    assert len(baseline.interpolate("a dog", "a cat", frames=2)) == 2
    assert baseline.compose([("a dog", "left"), ("a cat", "right")])[0].size == (32, 32)
    assert baseline.restyle(picture, "a dog", strength=1.0)[0].size == picture.size


@pytest.mark.parametrize("name", MASKED)
def test_restyling_is_refused_where_noisy_tokens_would_pass_for_known_ones(tiny: Paella, name: str) -> None:
    with pytest.raises(ValueError, match=r"^start: must be 0 or 1 .*MaskGIT.*strength"):
        model(tiny, name).restyle(a_picture(), "a dog", strength=0.5)


# --- model folders ---


def test_a_model_folder_comes_back_exactly_and_draws_the_same(baseline: Paella, tmp_path: Path) -> None:
    from paella.pipeline import Paella

    baseline.save_pretrained(tmp_path)
    loaded = Paella.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert type(loaded.predictor) is type(baseline.predictor)
    assert loaded.predictor.config == baseline.predictor.config
    assert content(loaded.generate("a dog", n=2)) == content(baseline.generate("a dog", n=2))


def test_a_folder_without_an_architecture_holds_a_u_net(tiny: Paella, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    config = json.loads((folder / "predictor.json").read_text())
    assert config.pop("architecture") == "unet"
    del config["mask_token"]
    (folder / "predictor.json").write_text(json.dumps(config))
    loaded = load_predictor(folder)
    assert isinstance(loaded, TokenPredictor) and loaded.config == tiny.predictor.config
    assert all(torch.equal(value, tiny.predictor.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("wrong", ["mamba", ["unet"], None])
def test_an_unknown_architecture_is_named(tiny_model: Path, tmp_path: Path, wrong: object) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "predictor.json").read_text())
    (folder / "predictor.json").write_text(json.dumps({**config, "architecture": wrong}))
    with pytest.raises(CheckpointError, match=r"predictor\.json: architecture must be one of unet, transformer, not "):
        load_model(folder)


# --- training ---


def recipe(tiny_model: Path, output: Path | str, name: str, *more: str) -> PredictorRecipe:
    """A recipe of the repository, scaled down to seconds."""
    small = "width=16 layers=2 heads=2 c_r=8"
    return load_recipe(
        PredictorRecipe,
        RECIPES / f"baseline-{name}.yaml",
        [
            *(f"transformer.{entry}" for entry in small.split()),
            *(f"vqgan={tiny_model}", f"clip={tiny_model}", f"output={output}", "data.size=16", "data.snap=1"),
            *("batch_size=4", "log_every=1", "steps=3", "sampler.steps=2", *more),
        ],
    )


@pytest.mark.parametrize("name", ["transformer", "maskgit"])
def test_a_recipe_trains_a_model_that_generates(tiny_model: Path, tmp_path: Path, name: str) -> None:
    from paella.pipeline import Paella

    main(recipe(tiny_model, tmp_path, name, "data.objects=[fox,sun,key]"))
    loaded = Paella.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.predictor.config == TransformerConfig(**{**TRANSFORMER, "grid": 4}, mask_token=name == "maskgit")
    assert isinstance(method_of(loaded.predictor), MaskGIT) == (name == "maskgit")
    assert sorted(loaded.objects) == ["fox", "key", "sun"]
    assert loaded.generate("a fox")[0].size == (16, 16)
    losses = [json.loads(line).get("loss") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) == 3

    going_on = PredictorStage(recipe(tiny_model, "unused", name, f"init_from={tmp_path / 'model'}"))
    assert asdict(going_on.modules["predictor"].config) == asdict(loaded.predictor.config)  # type: ignore[arg-type]
    assert type(going_on.method) is type(method_of(loaded.predictor))


@pytest.mark.parametrize("more", [["transformer.mask_token=false"], [], ["transformer=null", "model.mask_token=true"]])
def test_one_step_changes_every_parameter(tiny_model: Path, more: list[str]) -> None:
    unet = ["model.c_hidden=32", "model.c_r=8", "model.down_levels=[1,1]", "model.up_levels=[1,1]"]
    stage = PredictorStage(recipe(tiny_model, "unused", "maskgit", *unet, "null_share=0", *more))
    (predictor,) = stage.modules.values()
    before = {name: parameter.clone() for name, parameter in predictor.named_parameters()}
    optimizer = AdamW(predictor.parameters(), 1e-2)
    ((_, loss, _),) = stage.losses(*collate([stage.data[i] for i in range(4)]), 0)
    loss.backward()
    optimizer.step()
    assert [name for name, value in predictor.named_parameters() if torch.equal(value, before[name])] == []


def test_the_loss_is_that_of_hidden_tokens_alone(tiny_model: Path) -> None:
    stage = PredictorStage(recipe(tiny_model, "unused", "maskgit", "region_share=0.5", "label_smoothing=0"))
    seen: dict[str, Tensor] = {}

    class Fake(torch.nn.Module):
        def forward(self, tokens: Tensor, condition: Tensor, t: Tensor) -> Tensor:
            seen["tokens"] = tokens
            seen["logits"] = torch.randn(len(tokens), CODES, *tokens.shape[1:])
            return seen["logits"]

    stage.modules["predictor"] = Fake()
    pixels, captions = collate([stage.data[i] for i in range(8)])
    ((_, loss, metrics),) = stage.losses(pixels, captions, 0)
    u, hidden = stage.vqgan.encode(pixels), seen["tokens"] == CODES
    assert hidden.any() and not hidden.all()
    assert torch.equal(seen["tokens"][~hidden], u[~hidden])
    expected = F.cross_entropy(seen["logits"].permute(0, 2, 3, 1)[hidden], u[hidden])
    torch.testing.assert_close(loss, expected)
    assert float(metrics["copied"]) == 0


def test_a_batch_without_a_hidden_token_teaches_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paella.train import predictor as training

    monkeypatch.setattr(training, "clean_regions", lambda b, h, w, share: torch.ones(b, h, w, dtype=torch.bool))
    stage = PredictorStage(recipe(tiny_model, "unused", "maskgit"))
    ((_, loss, _),) = stage.losses(*collate([stage.data[i] for i in range(4)]), 0)
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in stage.modules["predictor"].parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["transformer", "maskgit"])
def test_a_baseline_overfits_one_batch(tiny_model: Path, name: str) -> None:
    stage = PredictorStage(
        recipe(
            *(tiny_model, "unused", name, "transformer.width=64"),
            *("null_share=0", "image_share=0", "region_share=0", "label_smoothing=0"),
        )
    )
    assert_overfits(stage)


@pytest.mark.parametrize("mask_token", [False, True])
def test_labels_of_each_place_may_be_a_baseline_s_condition(tiny_model: Path, mask_token: bool) -> None:
    small = ["transformer.width=16", "transformer.layers=1", "transformer.heads=2", "dim=8", "batch_size=4"]
    more = [f"vqgan={tiny_model}", "output=unused", "data.size=16", "per_place=true"]
    settings = load_recipe(LabelRecipe, None, [*small, *more, f"transformer.mask_token={mask_token}"])
    stage = LabelStage(settings)
    ((_, loss, _),) = stage.losses(*collate([stage.data[i] for i in range(4)]), 0)
    loss.backward()
    labels = stage.labels.embedding.weight.grad
    assert labels is not None and labels.any()
    assert isinstance(method_of(stage.modules["predictor"].predictor), MaskGIT) == mask_token  # type: ignore[arg-type]


# --- figures ---


def test_a_mean_is_taken_where_it_counts_and_is_nothing_where_nothing_does() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    counted = torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])
    first, second = mean_where(values, counted)
    assert first == 2.5 and second.isnan()
    assert torch.equal(mean_where(values > 2, torch.ones_like(counted)), torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("name", MASKED)
def test_figures_of_a_predictor_with_masks_are_of_hidden_tokens(tiny: Paella, name: str) -> None:
    pixels = to_tensor([a_picture(32, 32)] * 40)
    figures = predictor_figures(model(tiny, name), pixels, ["a dog"] * 40, seed=0)
    assert all(row["copied"] == 0 and row["loss"] > 0 for row in figures.values())
