"""Laws of the three stages."""

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from training import assert_overfits, make_stage, rows, settings, train

from paella.blocks import ResBlock
from paella.checkpoint import load_clip, load_predictor, load_vqgan, save_model, save_vqgan
from paella.clip import Clip
from paella.data import collate
from paella.data.vocabulary import objects
from paella.images import blanked, moved
from paella.pipeline import Paella
from paella.train.clip import nearest_captions, retrieval
from paella.train.encode import encode
from paella.train.growth import grown
from paella.train.loop import CHECKPOINT
from paella.train.loss import SmoothedCrossEntropy, contrastive
from paella.train.predictor import EncodedStage, PredictorRecipe, PredictorStage, clean_regions
from paella.train.recipe import load_recipe
from paella.train.vqgan import reconstruction_figures
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN, VQGANConfig

pytestmark = pytest.mark.usefixtures("small_gallery")


@pytest.mark.parametrize("cached", [1, 20, 1000])  # a row at a time, a few, all
def test_the_smoothed_cross_entropy_is_torch_s_with_its_gradient(monkeypatch: pytest.MonkeyPatch, cached: int) -> None:
    monkeypatch.setattr("paella.train.loss.CACHED", cached)
    generator = torch.Generator().manual_seed(0)
    logits, weights = 4 * torch.randn(7, 9, generator=generator), torch.rand(7, generator=generator)
    labels = torch.randint(9, (7,), generator=generator)
    losses, gradients = [], []
    for loss_of in (
        lambda x: SmoothedCrossEntropy.apply(x, labels, 0.1)[0],
        lambda x: functional.cross_entropy(x, labels, label_smoothing=0.1, reduction="none"),
    ):
        rows = logits.clone().requires_grad_()
        losses.append(loss_of(rows))
        (losses[-1] * weights).sum().backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert torch.equal(SmoothedCrossEntropy.apply(logits, labels, 0.1)[1], logits.argmax(1) == labels)


def test_the_predictor_overfits_one_batch(tiny_model: Path) -> None:
    stage: Any = make_stage(
        "predictor",
        tiny_model,
        *("model.c_hidden=64", "null_share=0", "image_share=0", "region_share=0", "label_smoothing=0"),
    )
    assert_overfits(stage)


NOTHING = torch.zeros(200, 4, 4, dtype=torch.bool)  # is clean


@pytest.mark.parametrize("context_share", [0.0, 0.5, 1.0])
def test_what_is_clean_may_be_the_condition_where_there_is_no_caption(tiny_model: Path, context_share: float) -> None:
    stage: Any = make_stage("predictor", tiny_model, "image_share=0", f"context_share={context_share}")
    pixels, captions = collate([stage.data[i] for i in range(2)] * 100)
    null, regions = torch.arange(200) % 2 == 0, NOTHING.clone()
    regions[::4, :2] = True
    condition, _ = stage.asked(NOTHING, pixels, captions, null, regions)
    context = stage.clip.embed_images(blanked(pixels, regions))
    seen = (condition - context).abs().amax(1) < 1e-4
    assert not seen[~(null & regions.flatten(1).any(1))].any()
    assert seen[::4].float().mean().item() == pytest.approx(context_share, abs=0.25)
    assert torch.equal(condition.eq(0).all(1), null & ~seen)


def test_the_condition_is_the_caption_s_or_the_picture_s_or_nothing(tiny_model: Path) -> None:
    stage: Any = make_stage("predictor", tiny_model, "image_share=0.5")
    pixels, captions = collate([stage.data[i] for i in range(2)] * 100)
    null = torch.arange(200) % 5 == 0
    condition, _ = stage.asked(NOTHING, pixels, captions, null, NOTHING)
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
    nulls = []

    def asked(u: torch.Tensor, _: Any, captions: list[str], null: torch.Tensor, regions: torch.Tensor) -> Any:
        nulls.append(null)
        return torch.zeros(len(captions), stage.clip.dim), u

    monkeypatch.setattr(stage, "asked", asked)
    for share, expected in ((0, 0.2), (1, 0.6), (0.5, 0.4)):
        stage.recipe.region_share = share
        next(stage.losses(pixels, captions, 0))
        assert nulls[-1].float().mean().item() == pytest.approx(expected, abs=0.09)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_t_is_a_power_of_a_uniform_number(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, power: float) -> None:
    stage: Any = make_stage("predictor", tiny_model, f"t_power={power}")
    pixels, captions = collate([stage.data[i] for i in range(2)] * 400)
    drawn, corrupt = [], stage.method.corrupt
    monkeypatch.setattr(stage, "method", SimpleNamespace(counted=stage.method.counted))
    stage.method.corrupt = lambda u, t, *rest: drawn.append(t) or corrupt(u, t, *rest)
    next(stage.losses(pixels, captions, 0))
    for limit in (0.25, 0.5, 0.75):  # the share of u ** power below it
        assert drawn[0].lt(limit).float().mean().item() == pytest.approx(limit ** (1 / power), abs=0.06)


def test_training_starts_from_a_model_when_asked(tiny_model: Path, tmp_path: Path) -> None:
    own = load_predictor(tiny_model)
    stage = make_stage("predictor", tiny_model, f"init_from={tiny_model}")
    assert isinstance(stage.modules["predictor"], TokenPredictor) and stage.modules["predictor"].training
    for key, value in stage.modules["predictor"].state_dict().items():
        assert torch.equal(value, own.state_dict()[key])
    recorded = stage.pipeline(stage.modules["predictor"]).recipe
    assert recorded is not None and recorded["model"] == asdict(own.config)  # and not what the recipe says of a new one
    save_vqgan(VQGAN(VQGANConfig(32, (1,), 1, (), False, 8, 4, n_embed=16, patch=2)), tmp_path)
    with pytest.raises(ValueError, match="init_from: its predictor is not for this VQGAN"):
        make_stage("predictor", tiny_model, f"init_from={tiny_model}", f"vqgan={tmp_path}")


def test_a_grown_predictor_computes_what_the_given_one_does_and_learns_with_all_of_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    own = load_predictor(tiny_model)
    more = [f"init_from={tiny_model}", "grow=true", "model.down_levels=[1,2]", "model.up_levels=[3,1]"]
    larger = make_stage("predictor", tiny_model, *more).modules["predictor"].eval()
    assert larger.config.down_levels == (1, 2) and larger.config.up_levels == (3, 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(16, (2, 8, 8), generator=generator)
    condition, t = torch.randn(2, own.config.c_clip, generator=generator), torch.rand(2, generator=generator)
    with torch.no_grad():
        assert torch.equal(own(tokens, condition, t), larger(tokens, condition, t))
    run = train("predictor", tiny_model, tmp_path, *more, "steps=3")
    trained = load_predictor(run / "model")
    assert all((block.channelwise[-1].weight != 0).any() for block in trained.modules() if isinstance(block, ResBlock))
    with pytest.raises(ValueError, match=r"model\.up_levels: a U-Net of \(1, 1\) cannot grow to \(0, 2\)"):
        make_stage("predictor", tiny_model, *more, "model.up_levels=[0,2]")
    with pytest.raises(ValueError, match="grow: needs init_from"):
        make_stage("predictor", tiny_model, "grow=true")
    mixed = TokenPredictor(replace(own.config, kernels=(1, 3)))
    with pytest.raises(ValueError, match="grow: a U-Net whose kernels differ"):
        grown(mixed, (2, 2), (2, 2))


def test_pictures_that_are_asked_for_by_their_embedding_are_drawn_in_other_places(tiny_model: Path) -> None:
    more = ("image_share=0.5", "image_shift=0.5", "data.snap=8")
    stage: Any = make_stage("predictor", tiny_model, *more)
    pixels, captions = collate([stage.data[i] for i in range(2)] * 300)
    null = torch.arange(600) % 3 == 0
    u = torch.randint(1000, (600, 8, 8))
    condition, drawn = stage.asked(u, pixels, captions, null, torch.zeros(600, 8, 8, dtype=torch.bool))
    of_picture = (condition - stage.clip.embed_images(pixels)).abs().amax(1) < 1e-4
    assert torch.equal(drawn[~of_picture], u[~of_picture])
    offsets = {(down, right) for down in (-2, 0, 2) for right in (-2, 0, 2)}  # tokens of four pixels
    seen = {
        (down, right)
        for own, other in zip(u[of_picture], drawn[of_picture], strict=True)
        for down in range(-4, 5)
        for right in range(-4, 5)
        if torch.equal(other, moved(own[None], torch.tensor([[down, right]]))[0])
    }
    assert seen == offsets


def test_a_start_from_a_model_of_another_vqgan_or_clip_is_warned_of(
    tiny_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    def changed(folder: str, file: str, prefix: str) -> Path:
        own = shutil.copytree(tiny_model, tmp_path / folder)
        tensors = load_file(own / file)
        save_file({key: value + key.startswith(prefix) for key, value in tensors.items()}, own / file)
        return own

    encoder = changed("encoder", "vqgan.safetensors", "encoder.")
    decoder = changed("decoder", "vqgan.safetensors", "decoder.")
    clip = changed("clip", "clip/model.safetensors", "text_projection")
    half = tmp_path / "half"
    save_model(Paella.from_pretrained(tiny_model, device="cpu"), half)  # as training stores a model

    def warned(*more: str) -> list[str]:
        recwarn.clear()
        make_stage("predictor", tiny_model, f"init_from={tiny_model}", *more)
        return [str(one.message) for one in recwarn if str(one.message).startswith("init_from: ")]

    assert warned() == warned(f"vqgan={decoder}") == warned(f"vqgan={half}", f"clip={half}") == []
    (message,) = warned(f"vqgan={encoder}")
    assert f"another VQGAN than {encoder}" in message
    (message,) = warned(f"clip={clip}")
    assert f"another CLIP than {clip}" in message and "% of the variance" in message


def test_a_predictor_begins_with_another_clip_about_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    """With scenes, and with what was encoded of them; a run that goes on has what it has learned."""
    other = shutil.copytree(tiny_model, tmp_path / "other")
    whitening = load_file(other / "clip/whitening.safetensors")
    turned = {**whitening, "matrix": 2 * whitening["matrix"].flip(1)}
    save_file(turned, other / "clip/whitening.safetensors")
    own, asked = load_predictor(tiny_model), ["a fox on a red background", "a panda", "a bus above an owl"]
    tokens, t = torch.randint(32, (3, 8, 8)), torch.full((3,), 0.7)
    before, after = (Clip.load(folder / "clip").embed_text(asked) for folder in (tiny_model, other))
    known, misread = own(tokens, before, t), own(tokens, after, t)

    run, encoded = tmp_path / "run", tmp_path / "encoded"
    more = [f"init_from={tiny_model}", f"clip={other}", "data.size=32"]

    def recipe(*entries: str) -> Any:
        return load_recipe(PredictorRecipe, None, settings("predictor", tiny_model, run, *more, *entries))

    encode(recipe(), encoded, 512, lambda done, of: None)
    for stage in (PredictorStage(recipe()), EncodedStage(recipe(f"data.encoded={encoded}"))):
        read = stage.modules["predictor"](tokens, after, t)
        assert (read - known).norm() < 0.2 * (misread - known).norm()
    run.mkdir()
    (run / CHECKPOINT).touch()
    torch.testing.assert_close(PredictorStage(recipe()).modules["predictor"](tokens, after, t), misread)


def test_objects_that_would_be_forgotten_are_named(
    tiny_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The tiny model knows the built-in model's first 40."""

    def warned(number: int, *more: str) -> list[str]:
        recwarn.clear()
        own = ["steps=1", "decoder_only=true", f"init_from={tiny_model}", *more]
        train("vqgan", tiny_model, tmp_path / str(number), *own)
        return [str(one.message) for one in recwarn if str(one.message).startswith("init_from: ")]

    (found,) = warned(0, "data.objects=[fox,sun]")
    assert found.startswith(f"init_from: {tiny_model} knows 39 objects that are not in the data, such as dog face")
    assert warned(1) == warned(2, "data.objects=[all]") == []


@pytest.mark.parametrize(
    ("kind", "key"), [("predictor", "vqgan"), ("predictor", "clip"), ("predictor", "init_from"), ("vqgan", "init_from")]
)
def test_a_part_that_cannot_be_loaded_is_told_by_its_key(tiny_model: Path, tmp_path: Path, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: .*nowhere"):
        make_stage(kind, tiny_model, f"{key}={tmp_path}/nowhere")


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


def test_a_vqgan_learns_uses_its_codes_and_survives_the_discriminator(
    tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    data, codes = f"data.folder={pictures}", ("model.z_channels=16", "model.embed_dim=16", "model.n_embed=32")
    train(
        "vqgan",
        tiny_model,
        tmp_path,
        *(data, *codes, "steps=140", "batch_size=8", "preview_every=20", "optimizer.learning_rate=5e-3"),
        *("discriminator_from=40", "adversarial_from=60", "adaptive_limit=0.05"),
    )
    figures = [row for row in rows(tmp_path) if "PSNR" in row]
    assert [row["step"] for row in figures] == list(range(20, 141, 20))
    assert figures[-1]["PSNR"] > figures[0]["PSNR"] + 1
    assert figures[-1]["codes used"] > 0.5
    steps = [row for row in rows(tmp_path) if "l1" in row]
    assert [row["step"] for row in steps if "discriminator" in row] == list(range(41, 141))
    weights = {row["step"]: row["adaptive weight"] for row in steps if "adaptive weight" in row}
    assert list(weights) == list(range(61, 141))
    assert all(0 < weight <= 0.05 for weight in weights.values())
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())
    assert len(list((tmp_path / "preview").glob("*.png"))) == 7

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


def test_the_contrastive_loss_is_the_cross_entropy_but_for_captions_that_are_there_twice() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = torch.eye(5, dtype=torch.bool)
    assert contrastive(logits, own).item() == pytest.approx(functional.cross_entropy(logits, torch.arange(5)).item())
    right = own.clone()
    right[0, 1] = right[1, 0] = True
    p = logits.softmax(1)
    expected = -torch.stack([p[0, :2].sum(), p[1, :2].sum(), *p.diagonal()[2:]]).log().mean()
    assert contrastive(logits, right).item() == pytest.approx(expected.item())
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive(logits, right).dtype == torch.float32


def test_a_caption_of_several_pictures_is_right_for_each(tiny_model: Path) -> None:
    clip = load_clip(tiny_model)
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    captions = ["a fox", "a key"]
    found = nearest_captions(clip, pictures, captions)
    right = [captions[one] for one in found]
    twice = retrieval(clip, [*pictures, *pictures], [*right, *right])
    assert twice == 1.0


def test_text_only_leaves_the_pictures_embeddings_as_they_are(tiny_model: Path) -> None:
    stage = make_stage("clip", tiny_model, "text_only=true", f"init_from={tiny_model}")
    trained = {name for name, p in stage.modules["towers"].named_parameters() if p.requires_grad}
    assert not any("vision" in name or "visual" in name for name in trained)
    assert any("text_model" in name for name in trained)
    with pytest.raises(ValueError, match="text_only: needs init_from"):
        make_stage("clip", tiny_model, "text_only=true")


def test_own_pictures_are_rehearsed_among_scenes(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    more = [f"data.folder={pictures}", "rehearse=0.5", f"init_from={tiny_model}"]
    run = train("predictor", tiny_model, tmp_path, "steps=2", "preview_every=2", *more)
    assert Paella.from_pretrained(run / "model").objects == list(objects())
    assert (run / "preview" / "0000002.png").is_file()
    with pytest.raises(ValueError, match=r"rehearse: goes with data\.folder"):
        make_stage("predictor", tiny_model, "rehearse=0.5")


@pytest.mark.parametrize("part", ["vqgan", "clip"])
def test_a_run_is_not_resumed_with_another_vqgan_or_clip(part: str, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    train("predictor", tmp_path / "model", tmp_path / "run", "steps=1")
    file, key = {
        "vqgan": ("vqgan.safetensors", "quantize.embedding.weight"),
        "clip": ("clip/model.safetensors", "text_projection.weight"),
    }[part]
    tensors = load_file(tmp_path / "model" / file)
    assert key in tensors, list(tensors)
    save_file({name: value + (name == key) for name, value in tensors.items()}, tmp_path / "model" / file)
    with pytest.raises(ValueError, match="this recipe has another VQGAN or CLIP"):
        train("predictor", tmp_path / "model", tmp_path / "run", "steps=2")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("transformer.width=32", "transformer: .* has a U-Net"),
        ("model.mask_token=true", r"model\.mask_token: .* without one"),
    ],
)
def test_a_start_of_another_kind_than_the_recipe_asks_for_is_refused(entry: str, words: str, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=words):
        make_stage("predictor", tiny_model, f"init_from={tiny_model}", entry)


def test_a_run_is_not_resumed_with_other_labels(tiny_model: Path, tmp_path: Path) -> None:
    entries = ("steps=1", "preview_every=1")
    train("labels", tiny_model, tmp_path, *entries, "data.objects=[fox,key]")
    with pytest.raises(ValueError, match="other labels"):
        train("labels", tiny_model, tmp_path, *entries, "data.objects=[key,fox]")


@pytest.mark.parametrize("kind", ["clip", "predictor"])
def test_captions_that_clip_does_not_read_to_their_end_are_counted_once(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    for name, words in (("long", "a dog on a red background " * 20), ("short", "a dog")):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(words)
    with pytest.warns(UserWarning, match=r"^data\.folder: 1 of 2 captions are cut") as told:
        make_stage(kind, tiny_model, f"data.folder={tmp_path}")
    assert len(told) == 1
