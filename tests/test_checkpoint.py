"""Model folders: what was written comes back, and whatever is wrong with one is named."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paella import checkpoint
from paella.checkpoint import CheckpointError, load_model, load_module, save_module, write_json
from paella.clip import Clip
from paella.labels import Labels, LabelsConfig
from paella.pipeline import Paella


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def weights(pipeline: Paella) -> dict[str, Tensor]:
    parts = {"predictor": pipeline.predictor, "vqgan": pipeline.vqgan, "clip": pipeline.clip.model}
    return {f"{name}/{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# --- round trips ---


def test_a_model_comes_back_exactly(tiny: Paella, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "again")
    loaded = Paella.from_pretrained(tmp_path / "again", device="cpu", dtype="float32")
    own, others = weights(tiny), weights(loaded)
    assert own.keys() == others.keys()
    assert all(torch.equal(value, others[key]) and value.dtype == others[key].dtype for key, value in own.items())
    for name in ("settings", "size", "name", "objects"):
        assert getattr(loaded, name) == getattr(tiny, name)
    assert loaded.predictor.config == tiny.predictor.config
    assert loaded.vqgan.config == tiny.vqgan.config
    assert not loaded.predictor.training and not loaded.vqgan.training


def test_half_precision_when_asked(tiny: Paella, tmp_path: Path) -> None:
    checkpoint.save_model(tiny, tmp_path, torch.float16)
    for name in ("predictor.safetensors", "vqgan.safetensors", "clip/model.safetensors"):
        stored = load_file(tmp_path / name)
        assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    loaded = weights(Paella.from_pretrained(tmp_path, device="cpu", dtype="float32"))
    assert all(torch.equal(loaded[key], value.half().to(value.dtype)) for key, value in weights(tiny).items())


def test_whole_numbers_keep_their_dtype_in_half_precision(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(3)
    save_module(module, tmp_path / "module.safetensors", torch.float16)
    stored = load_file(tmp_path / "module.safetensors")
    assert stored["num_batches_tracked"].dtype == torch.int64
    assert stored["weight"].dtype == torch.float16


# --- complaints ---


def test_every_wrong_key_is_named_at_once() -> None:
    tensors = {"weight": torch.zeros(3, 2), "surplus": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_module(lambda: nn.Linear(2, 2), lambda: tensors, "some.safetensors")
    for words in ("some.safetensors", "missing bias", "unexpected surplus", "weight has shape (3, 2), not (2, 2)"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("predictor.safetensors", "clf.weight"),
        ("vqgan.safetensors", "quantize.embedding.weight"),
        ("clip/model.safetensors", "logit_scale"),
    ],
)
def test_a_part_that_lacks_a_key_or_has_one_too_many_is_refused(folder: Path, file: str, key: str) -> None:
    change_tensors(folder / file, lambda tensors: tensors.update(surplus=tensors.pop(key)))
    with pytest.raises(CheckpointError) as caught:
        Paella.from_pretrained(folder)
    for words in (file, f"missing {key}", "unexpected surplus"):
        assert words in str(caught.value)


def test_a_wrong_shape_is_refused(folder: Path) -> None:
    change_json(folder / "predictor.json", lambda config: config.update(c_r=10))
    with pytest.raises(CheckpointError, match=r"predictor\.safetensors.*cond_mapper\.weight has shape"):
        Paella.from_pretrained(folder)


FILES = [
    "model.json",
    "predictor.json",
    "predictor.safetensors",
    "vqgan.json",
    "vqgan.safetensors",
    "clip/model.safetensors",
]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=Path(file).name):
        Paella.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named(folder: Path, file: str, keep: float) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content.rstrip()[: int(keep * len(content.rstrip()))])
    with pytest.raises(CheckpointError, match=Path(file).name):
        Paella.from_pretrained(folder)


def test_json_that_is_not_an_object_is_refused(folder: Path) -> None:
    (folder / "vqgan.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"vqgan\.json must hold a JSON object"):
        Paella.from_pretrained(folder)


@pytest.mark.parametrize("file", ["predictor.json", "vqgan.json"])
def test_an_unknown_config_key_is_named(folder: Path, file: str) -> None:
    change_json(folder / file, lambda config: config.update(chanels=3))
    with pytest.raises(CheckpointError, match=rf"{file} has unknown keys: chanels"):
        Paella.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"sampler": {"step": 8}}, "unknown keys: step"),
        ({"sampler": {"steps": 0}}, "steps: must be"),
        ({"variations": {"steps": 3}}, "variations: must be of"),
        ({"variations": 3}, "variations must be an object"),
    ],
)
def test_a_wrong_model_json_is_named(folder: Path, change: dict[str, Any], words: str) -> None:
    change_json(folder / "model.json", lambda about: about.update(change))
    with pytest.raises(CheckpointError, match=rf"model\.json.*{words}"):
        Paella.from_pretrained(folder)


@pytest.mark.parametrize("key", ["size", "sampler", "format"])
def test_a_model_json_that_lacks_something_is_named(folder: Path, key: str) -> None:
    change_json(folder / "model.json", lambda about: about.pop(key))
    with pytest.raises(CheckpointError, match=rf"model\.json.*{key}"):
        Paella.from_pretrained(folder)


def test_parts_that_do_not_fit_are_refused(folder: Path) -> None:
    change_json(folder / "vqgan.json", lambda config: config.update(n_embed=16))
    half = "quantize.embedding.weight"
    change_tensors(folder / "vqgan.safetensors", lambda tensors: tensors.update({half: tensors[half][:16].clone()}))
    with pytest.raises(CheckpointError, match=r"do not fit.*32 codes.*VQGAN has 16"):
        Paella.from_pretrained(folder)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        Paella.from_pretrained(tmp_path / "nowhere")


# --- interrupted writes ---


def test_an_interrupted_write_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "module.safetensors"
    save_module(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def dies(tensors: dict[str, Tensor], file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        save_module(nn.Linear(2, 2), path)
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_the_old_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": 2, "b": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_there_is_written_within(
    tiny: Paella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be a disk of its own, so that nothing can be moved there from beside it."""
    (tmp_path / "model").mkdir()
    made: list[Path] = []
    usual = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *args: made.append(Path(usual(*args))) or str(made[-1]))
    tiny.save_pretrained(tmp_path / "model")
    assert [path.parent for path in made] == [tmp_path / "model"] and not made[0].exists()


def test_a_clip_that_is_missing_is_not_looked_for_on_the_hub(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(folder / "clip")
    with pytest.raises(CheckpointError, match=r"^model: .*clip is missing"):
        load_model(folder)


def test_a_model_half_written_is_not_a_model(tiny: Paella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny.clip, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        Paella.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("vqgan.json", "quantizer", "best"),
        ("model.json", "size", "64"),
        ("model.json", "objects", [1]),
        ("model.json", "recipe", [1]),
    ],
)
def test_a_wrong_value_names_file_and_key(tiny_model: Path, tmp_path: Path, file: str, key: str, value: object) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), key: value}))
    with pytest.raises(CheckpointError, match=rf"{re.escape(file)}.*{key}"):
        load_model(folder)


def test_a_model_saved_over_another_kind_is_the_new_one(tiny: Paella, tmp_path: Path) -> None:
    labels = Labels(LabelsConfig(("fox", "sun"), tiny.clip.dim, False))
    Paella(tiny.predictor, tiny.vqgan, labels, tiny.settings, tiny.size).save_pretrained(tmp_path / "model")
    assert isinstance(Paella.from_pretrained(tmp_path / "model").clip, Labels)
    tiny.save_pretrained(tmp_path / "model")
    assert isinstance(Paella.from_pretrained(tmp_path / "model").clip, Clip)


def test_an_interrupted_save_leaves_the_old_model_whole(
    tiny: Paella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Clip, "save", dies)
    other = Paella(tiny.predictor, tiny.vqgan, tiny.clip, tiny.settings, tiny.size, name="other")
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
