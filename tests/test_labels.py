"""Laws of labels in CLIP's place: one for each picture, or a map of them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from torch.optim import AdamW

from paella.checkpoint import CheckpointError
from paella.data import collate
from paella.data.scene import BACKGROUNDS
from paella.data.scenes import LabelMaps, Scenes
from paella.labels import NULL, Labels, LabelsConfig
from paella.train.recipe import load_recipe
from paella.unet import TokenPredictor, UNetConfig

if TYPE_CHECKING:
    from paella.pipeline import Paella

OBJECTS = ("fox", "sun", "key")


def table(names: tuple[str, ...] = OBJECTS, per_place: bool = False) -> Labels:
    torch.manual_seed(0)
    return Labels(LabelsConfig(names, 6, per_place))


@pytest.fixture
def labelled(tiny: "Paella") -> "Paella":
    """The tiny model with labels in its CLIP's place, untrained."""
    from paella.pipeline import Paella

    torch.manual_seed(0)
    config = UNetConfig(num_labels=32, c_hidden=32, c_clip=6, c_r=8, down_levels=(1, 1), up_levels=(1, 1))
    return Paella(TokenPredictor(config).eval(), tiny.vqgan, table(), tiny.settings, 32, objects=OBJECTS)


def make_stage(model: Path, *more: str) -> Any:
    training = import_module("paella.train.labels")
    own = ["model.c_hidden=32", "model.c_r=8", "model.down_levels=[1,1]", "model.up_levels=[1,1]", "dim=8"]
    recipe = load_recipe(training.LabelRecipe, None, [*own, f"vqgan={model}", "output=x", "data.size=16", *more])
    return training.LabelStage(recipe)


# --- the table ---


def test_a_name_and_its_number_give_one_embedding_and_none_gives_zero() -> None:
    labels = table()
    named = labels.embed_text(["key", "fox"])
    assert torch.equal(named, labels.embedding.weight[[2, 0]])
    places = labels(torch.tensor([[[2, NULL], [0, 2]]]))
    assert places.shape == (1, 6, 2, 2)
    assert torch.equal(places[0, :, 0, 0], named[0]) and torch.equal(places[0, :, 1, 0], named[1])
    assert not places[0, :, 0, 1].any()


def test_what_is_no_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prompt: .*fox, sun, key; not 'a fox'"):
        table().embed_text(["fox", "a fox"])
    with pytest.raises(ValueError, match=r"^image: "):
        table().embed_images(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^names: "):
        table(("fox", "fox"))


def test_a_map_comes_apart_into_regions_that_cover_it_once() -> None:
    labels = np.array([[0, 0, 2], [2, 0, 2]])
    regions = table().regions(labels, f=4)
    assert [name for name, _ in regions] == ["fox", "key"]
    assert (sum(mask.astype(int) for _, mask in regions) == 1).all()
    assert (regions[1][1][::4, ::4] == (labels == 2)).all() and regions[0][1].shape == (8, 12)


# --- the data ---


def test_a_map_says_where_objects_and_background_are() -> None:
    maps = LabelMaps(Scenes(64, names=OBJECTS, snap=8, jitter=0), f=4)
    for index in range(20):
        picture, labels = maps[index]
        shown = {maps.labels[number] for number in np.unique(labels)}
        assert labels.shape == (16, 16) and len(shown) in (2, 3)
        (background,) = (name for name in shown if name.endswith(" background"))
        colour = np.array(BACKGROUNDS[background.removesuffix(" background")])
        plain = (np.asarray(picture)[2::4, 2::4] == colour).all(-1)
        assert (labels[plain] == maps.labels.index(background)).mean() > 0.98  # an object may have that colour too
        assert plain[labels == maps.labels.index(background)].mean() > 0.8  # edges are half of either


def test_pictures_with_maps_are_the_scenes() -> None:
    scenes = Scenes(64)
    assert LabelMaps(scenes, 4)[3][0].tobytes() == scenes[3][0].tobytes()


def test_scenes_may_be_named_by_label_where_they_have_one_object() -> None:
    scenes = Scenes(8, names=OBJECTS, shares=(1, 1, 0, 0, 0), wording="name")
    assert {scenes[i][1] for i in range(30)} == set(OBJECTS)
    with pytest.raises(ValueError, match="wording: name is of one object"):
        Scenes(8, wording="name")
    with pytest.raises(ValueError, match="wording: must be one of any, full, name"):
        Scenes(8, wording="short")  # type: ignore[arg-type]


# --- a model ---


def test_a_model_with_labels_comes_back_from_its_folder(labelled: "Paella", tmp_path: Path) -> None:
    from paella.pipeline import Paella

    labelled.save_pretrained(tmp_path / "model")
    again = Paella.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert isinstance(again.clip, Labels) and again.clip.config == labelled.clip.config  # type: ignore[union-attr]
    for draw in (lambda p: p.generate(["sun", "fox"]), lambda p: p.compose([("sun", "left"), ("key", "right")])):
        assert [one.tobytes() for one in draw(again)] == [one.tobytes() for one in draw(labelled)]
    with pytest.raises(ValueError, match=r"^prompt: "):
        again.generate("a sun")
    with pytest.raises(ValueError, match=r"^image: "):
        again.vary(Image.new("RGB", (32, 32)))
    (tmp_path / "model" / "labels.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"labels\.safetensors is missing"):
        Paella.from_pretrained(tmp_path / "model")


def test_the_command_line_asks_by_label(labelled: "Paella", paella: Run) -> None:
    labelled.save_pretrained("model")
    made = paella("generate", "sun", "-o", "sun.png", "--model", "model")
    assert made.code == 0 and Path("sun.png").exists()
    refused = paella("generate", "a sun", "-o", "other.png", "--model", "model")
    assert refused.code == 2 and "fox, sun, key" in refused.err and not Path("other.png").exists()
    assert "one of 3 labels" in paella("info", "--model", "model").out
    judged = paella("evaluate", "labels", "-n", 3, "--model", "model")
    assert judged.code == 0 and "the object of the label" in judged.out
    for command in ("scenes", "labels"):  # the model of the other kind
        other = paella("evaluate", command, "-n", 2, *(("--model", "model") if command == "scenes" else ()))
        assert other.code == 2 and "Traceback" not in other.err


# --- training ---


def test_labels_and_their_maps_reach_the_predictor(tiny_model: Path) -> None:
    one = make_stage(tiny_model, "data.wording=name", "data.shares=[1,0,0,0,0]")
    pixels, names = collate([one.data[i] for i in range(20)])
    drawn = torch.arange(20) % 3 > 0
    numbers, _ = one.asked(pixels, pixels, names, ~drawn, drawn)
    assert numbers.shape == (20, 1, 1)
    assert torch.equal(numbers[:, 0, 0] != NULL, drawn)
    names_of = one.modules["predictor"].labels.config.names
    assert [names_of[i] for i in numbers[drawn, 0, 0]] == [n for n, d in zip(names, drawn, strict=True) if d]
    places = make_stage(tiny_model, "per_place=true")
    pixels, maps = collate([places.data[i] for i in range(3)])
    labels, _ = places.asked(pixels, pixels, maps, torch.zeros(3, dtype=torch.bool), drawn)
    assert (labels.numpy() == np.stack(maps)).all()
    assert places.modules["predictor"].labels.config.names[-1].endswith(" background")


@torch.no_grad()
def _distinct_codes(stage: Any, pixels: torch.Tensor) -> None:
    """Codes of an untrained tokenizer that tell these pictures apart."""
    latent = stage.vqgan.latent(pixels).permute(0, 2, 3, 1).flatten(0, 2)
    stage.vqgan.quantize.embedding.weight.copy_(latent)


@pytest.mark.parametrize("per_place", [False, True])
def test_a_trained_label_decides_what_is_drawn(per_place: bool, tiny_model: Path, tmp_path: Path) -> None:
    """Two pictures, two labels: each label, and each half of a map, comes back as its picture's tokens."""
    pictures = {"dark": (30, 60, 90), "light": (200, 240, 120)}
    for name, colour in pictures.items():
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    stage = make_stage(tiny_model, f"data.folder={tmp_path}", "region_share=0", "label_smoothing=0", "sampler.steps=4")
    pixels, names = collate([stage.data[i] for i in (0, 1)])
    _distinct_codes(stage, pixels)
    true = dict(zip(names, stage.vqgan.encode(pixels), strict=True))
    assert not torch.equal(true["dark"], true["light"])
    optimizer = AdamW(stage.modules["predictor"].parameters(), 5e-3)
    for step in range(80):
        ((_, loss, _),) = stage.losses(pixels.repeat(4, 1, 1, 1), names * 4, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipeline = stage.pipeline(stage.modules["predictor"].eval())
    grids = []
    options = {"temperature": 0.01, "on_step": lambda step, steps, tokens: grids.append(tokens[0])}
    if per_place:
        pipeline.compose([("dark", "left"), ("light", "right")], size=(16, 64), softness=0, **options)
        drawn = {"dark": grids[-1][:, :6], "light": grids[-1][:, -6:]}
    else:
        drawn = {name: (pipeline.generate(name, **options), grids[-1])[1] for name in true}
    for name, tokens in drawn.items():
        assert torch.isin(tokens, true[name]).float().mean() > 0.8
        assert torch.isin(tokens, true["light" if name == "dark" else "dark"]).float().mean() < 0.3


def test_maps_need_scenes_and_a_start_needs_the_same_labels(tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("one")
    with pytest.raises(ValueError, match=r"^per_place: "):
        make_stage(tiny_model, "per_place=true", f"data.folder={tmp_path}")
    with pytest.raises(ValueError, match=r"^data\.wording: must be name"):
        make_stage(tiny_model, "data.wording=full")
    named = ["data.wording=name", "data.shares=[1,0,0,0,0]"]
    stage = make_stage(tiny_model, *named, "data.objects=[fox,sun]")
    stage.save(stage.modules["predictor"], tmp_path / "model")
    again = make_stage(tiny_model, *named, "data.objects=[fox,sun]", f"init_from={tmp_path / 'model'}")
    weights = again.modules["predictor"].state_dict()
    for key, value in stage.modules["predictor"].state_dict().items():
        assert torch.equal(weights[key], value.half().float())
    with pytest.raises(ValueError, match=r"^init_from: its labels are not those"):
        make_stage(tiny_model, *named, "data.objects=[fox,key]", f"init_from={tmp_path / 'model'}")
