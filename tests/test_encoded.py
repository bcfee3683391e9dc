"""Laws of encoded data: what a predictor learns from is the same, whenever tokens and embeddings are made."""

import shutil
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from PIL import Image
from training import make_stage, rows, schema, settings, train

from paella.checkpoint import save_model
from paella.data import encoded as encoded_data
from paella.data import open_loader
from paella.data.encoded import Encoded, shard_file
from paella.data.folder import Folder
from paella.pipeline import Paella
from paella.train import encode as encoder
from paella.train.predictor import EncodedStage
from paella.train.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("small_gallery")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoded_data, encoder):
        monkeypatch.setattr(module, "SHARD", 6)


@pytest.fixture
def described_twice(pictures: Path, tmp_path: Path) -> Path:
    """The ten pictures, with a second caption for each second one."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    for i in range(0, 10, 2):
        (folder / f"{i}.txt").write_text(f"picture number {i}\nanother name of {i}\n")
    return folder


def encode(model: Path, output: Path, *more: str, number: int | None = None) -> list[tuple[int, int]]:
    """Encodes by the tiny model; returns what was told of the progress."""
    told: list[tuple[int, int]] = []
    recipe: Any = load_recipe(schema("predictor"), None, settings("predictor", model, Path("unused"), *more))
    encoder.encode(recipe, output, number, lambda *numbers: told.append(numbers))
    return told


def make_encoded_stage(model: Path, folder: Path, *more: str) -> EncodedStage:
    overrides = settings("predictor", model, Path("unused"), f"data.encoded={folder}", *more)
    recipe: Any = load_recipe(schema("predictor"), None, overrides)
    return EncodedStage(recipe)


def test_a_predictor_learns_from_encoded_pictures_what_it_learns_from_the_pictures(
    tiny_model: Path, described_twice: Path, tmp_path: Path
) -> None:
    """Every batch of three epochs has the same tokens, the same captions' turns and nearly the same losses."""
    encode(tiny_model, tmp_path / "encoded", f"data.folder={described_twice}")
    shared = ("image_share=0.5", "region_share=0.5")
    stages: list[Any] = [
        make_stage("predictor", tiny_model, f"data.folder={described_twice}", *shared),
        make_encoded_stage(tiny_model, tmp_path / "encoded", *shared),
    ]
    batches = [islice(open_loader(stage.data, 5, seed=3), 6) for stage in stages]
    for (pixels, captions), (tokens, embeddings) in zip(*batches, strict=True):
        assert torch.equal(tokens, stages[0].vqgan.encode(pixels))
        torch.testing.assert_close(embeddings.text, stages[0].clip.embed_text(captions), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(embeddings.image, stages[0].clip.embed_images(pixels), rtol=1e-3, atol=1e-3)
        losses = []
        for stage, batch in zip(stages, ((pixels, captions), (tokens, embeddings)), strict=True):
            torch.manual_seed(7)
            ((_, loss, _),) = stage.losses(*batch, 0)
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_step_asks_neither_the_scenes_nor_the_tokenizer_nor_clip(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tiny_model, tmp_path, number=8)
    stage = make_encoded_stage(tiny_model, tmp_path, "image_share=0.5")
    for name in ("vqgan.VQGAN.latent", "clip.Clip.embed_text", "clip.Clip.embed_images", "data.scenes.Scenes._draw"):
        monkeypatch.setattr(f"paella.{name}", None)
    tokens, embeddings = next(iter(open_loader(stage.data, 4, seed=0)))
    ((_, loss, _),) = stage.losses(tokens, embeddings, 0)
    loss.backward()
    assert tokens.shape == (4, 4, 4) and torch.isfinite(loss)


def test_a_run_on_encoded_scenes_is_resumed_exactly_and_shows_previews(tiny_model: Path, tmp_path: Path) -> None:
    encode(tiny_model, tmp_path / "encoded", number=10)
    more = [f"data.encoded={tmp_path / 'encoded'}", "steps=6", "preview_every=3"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train("predictor", tiny_model, whole, *more)
    usual = EncodedStage.losses

    def interrupts(self: Any, *batch: Any) -> Any:
        if batch[-1] == 3:
            signal.raise_signal(signal.SIGINT)
        yield from usual(self, *batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EncodedStage, "losses", interrupts)
        train("predictor", tiny_model, resumed, *more)
    train("predictor", tiny_model, resumed, *more)
    weights = [(run / "model" / "predictor.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    speed = {"samples per second": None, "share of peak": None}
    assert [{**row, **speed} for row in rows(resumed)] == [{**row, **speed} for row in rows(whole)]
    assert len(list((whole / "preview").glob("*.png"))) == 2
    assert Paella.from_pretrained(whole / "model").objects


def test_all_captions_are_kept_and_taken_in_turn(tiny_model: Path, described_twice: Path, tmp_path: Path) -> None:
    encode(tiny_model, tmp_path / "encoded", f"data.folder={described_twice}")
    data, folder = Encoded(tmp_path / "encoded"), Folder(described_twice, 16)
    clip: Any = make_stage("predictor", tiny_model).clip  # type: ignore[attr-defined]
    assert len(data) == 10 and data.names == []
    for i in range(10):
        assert data.caption(i) == folder.caption(i)
        for turn in range(3):
            tokens, embeddings = data.draw(i, turn)
            assert tokens.shape == (4, 4) and tokens.dtype == torch.int64 and embeddings.text.dtype == torch.float32
            expected = clip.embed_text([folder.draw(i, turn)[1]])[0]
            torch.testing.assert_close(embeddings.text, expected, rtol=1e-3, atol=1e-3)
    for index in (-1, 10):
        with pytest.raises(IndexError):
            data.draw(index)


def test_interrupted_encoding_goes_on_and_is_refused_until_it_is_whole(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert encode(tiny_model, whole, number=20)[-1] == (20, 20)

    class Stopped(Exception):
        pass

    def stops(done: int, pictures: int) -> None:
        if done > 14:
            raise Stopped

    recipe: Any = load_recipe(schema("predictor"), None, settings("predictor", tiny_model, Path("unused")))
    with pytest.raises(Stopped):
        encoder.encode(recipe, resumed, 20, stops)
    with pytest.raises(ValueError, match=r"^data\.encoded: .*2 of 4 shards are missing"):
        make_encoded_stage(tiny_model, resumed)
    first = shard_file(resumed, 0).stat().st_mtime_ns
    assert encode(tiny_model, resumed, "data.workers=1", number=20)[0] == (12, 20)
    assert shard_file(resumed, 0).stat().st_mtime_ns == first
    assert {file.name for file in resumed.iterdir()} == {file.name for file in whole.iterdir()}
    for file in whole.iterdir():
        assert (resumed / file.name).read_bytes() == file.read_bytes()


def test_another_data_set_does_not_go_on_in_the_same_folder(
    tiny_model: Path, described_twice: Path, tmp_path: Path
) -> None:
    output = tmp_path / "encoded"
    encode(tiny_model, output, number=3)
    for more, number, words in (((), 4, "pictures: 3, not 4"), (("seed=1",), 3, "seed"), (("data.snap=4",), 3, "data")):
        with pytest.raises(ValueError, match=f"^output: .*another {words}"):
            encode(tiny_model, output, *more, number=number)
    encode(tiny_model, tmp_path / "mine", f"data.folder={described_twice}")
    picture = described_twice / "0.png"
    before = picture.read_bytes()
    Image.new("RGB", (16, 16), "red").save(picture)
    with pytest.raises(ValueError, match=r"^output: .*another content"):
        encode(tiny_model, tmp_path / "mine", f"data.folder={described_twice}")
    picture.write_bytes(before)
    assert encode(tiny_model, tmp_path / "mine", f"data.folder={described_twice}")
    (described_twice / "0.txt").write_text("changed")
    with pytest.raises(ValueError, match=r"^output: .*another content"):
        encode(tiny_model, tmp_path / "mine", f"data.folder={described_twice}")


def test_a_recipe_must_fit_what_was_encoded(tiny: Paella, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoded"
    encode(tiny_model, output, "data.snap=4", number=3)
    for part, change in (("vqgan", tiny.vqgan.encoder.conv_out.bias), ("clip", tiny.clip.whitening.mean)):  # type: ignore[union-attr]
        with torch.no_grad():
            change.mul_(2)  # exactly taken back
            save_model(tiny, tmp_path / part)
            change.mul_(0.5)
        with pytest.raises(ValueError, match=f"^{part}: is not the one that encoded"):
            make_encoded_stage(tiny_model, output, "data.snap=4", f"{part}={tmp_path / part}")
    with pytest.raises(ValueError, match=r"^data\.snap: must be 4, as when .* was encoded, not 1"):
        make_encoded_stage(tiny_model, output)
    with pytest.raises(ValueError, match=r"^data\.size: must be 16"):
        make_encoded_stage(tiny_model, output, "data.snap=4", "data.size=32")
    make_encoded_stage(tiny_model, output, "data.snap=4", "data.workers=2", "seed=5")
    with torch.no_grad():
        tiny.vqgan.decoder.conv_out.bias.mul_(2)  # a decoder trained on: the tokens still hold
        save_model(tiny, tmp_path / "decoder", dtype=None)
        tiny.vqgan.decoder.conv_out.bias.mul_(0.5)
    make_encoded_stage(tiny_model, output, "data.snap=4", f"vqgan={tmp_path / 'decoder'}")


@pytest.mark.parametrize("kind", ["vqgan", "clip", "labels"])
def test_only_predictors_learn_from_encoded_data(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.encoded: holds tokens"):
        make_stage(kind, tiny_model, f"data.encoded={tmp_path}")


def test_what_cannot_be_read_is_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data\.encoded: stands in the place of data\.folder"):
        make_encoded_stage(tiny_model, tmp_path, f"data.folder={tmp_path}")
    with pytest.raises(ValueError, match=r"^data\.encoded: cannot read .*encoded\.json"):
        make_encoded_stage(tiny_model, tmp_path)
    encode(tiny_model, tmp_path, number=3)
    shard_file(tmp_path, 0).write_bytes(b"half a")
    with pytest.raises(ValueError, match=r"^data\.encoded: .*000000\.safetensors is not a whole"):
        make_encoded_stage(tiny_model, tmp_path)
    for text, words in (("{}", "has format None"), ('{"format": 1}', "lacks 'objects'")):
        (tmp_path / "encoded.json").write_text(text)
        with pytest.raises(ValueError, match=rf"^data\.encoded: .*encoded\.json {words}"):
            make_encoded_stage(tiny_model, tmp_path)


def test_the_command_encodes_what_a_recipe_describes(
    paella: Run, tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = settings("predictor", tiny_model, Path("run"))
    Path("recipe.yaml").write_text("output: run\n")
    command = ("dataset", "encode", "recipe.yaml", *entries)
    done = paella(*command, "--number", 7, "-o", "scenes")
    assert (done.code, done.out.strip()) == (0, "scenes: 7 encoded pictures")
    assert paella("train", "predictor", "recipe.yaml", *entries, "steps=1", "data.encoded=scenes").code == 0
    assert paella(*command, f"data.folder={pictures}", "-o", "mine").out.strip() == "mine: 10 encoded pictures"
    for more, words in (
        (("-o", "other"), "--number: must be given"),
        (("-o", "other", "-n", 0), "--number: must be given, at least 1"),
        (("-o", "other", "-n", 3, f"data.folder={pictures}"), "--number: is for scenes"),
        (("-o", "other", "-n", 3, "data.encoded=scenes"), "data.encoded: holds tokens"),
        (("-o", "scenes", "-n", 8), "--output: scenes was begun with another pictures: 7, not 8"),
        (("-o", "recipe.yaml", "-n", 8), "--output: recipe.yaml is not a folder"),
    ):
        refused = paella(*command, *more)
        assert refused.code in (1, 2) and words in refused.err and not Path("other").exists()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "encode", interrupted)
    stopped = paella(*command, "-n", 7, "-o", "scenes")
    assert stopped.code == 130 and "the same command goes on" in stopped.err
