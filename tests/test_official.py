"""The published checkpoints: read into our own classes, or refused by one line. What they compute: test_parity.py."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paella import official
from paella.checkpoint import CheckpointError
from paella.unet import UNetConfig
from paella.vqgan import VQGANConfig

PARITY = Path(__file__).parent / "parity"
CONFIGS = json.loads((PARITY / "config.json").read_text())
FILES = {
    "unet": "paella_v1_unet.safetensors",
    "gumbel_vqgan_f8": "gumbel_vqgan_f8.safetensors",
    "vqgan_f8": "vqgan_f8.safetensors",
}
every_model = pytest.mark.parametrize("entry", FILES)


def state(entry: str) -> dict[str, Tensor]:
    return load_file(PARITY / FILES[entry])


def load(entry: str, weights: Path | None = None, **changes: object) -> nn.Module:
    loader = official.load_predictor if entry == "unet" else official.load_vqgan
    return loader(PARITY / FILES[entry] if weights is None else weights, {**CONFIGS[entry], **changes})


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def equal(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == tensors.keys() and all(torch.equal(own[key], value.float()) for key, value in tensors.items())


# --- what is read ---


@every_model
def test_the_weights_are_those_of_the_file_in_float32_and_evaluation_mode(entry: str) -> None:
    module = load(entry)
    assert equal(module, state(entry))
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    assert not any(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


@every_model
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_pickle_gives_the_same(entry: str, suffix: str, tmp_path: Path) -> None:
    assert equal(load(entry, saved(state(entry), tmp_path / f"weights{suffix}")), state(entry))


def test_a_file_may_change_once_it_is_read(tmp_path: Path) -> None:
    wanted = {key: value.float() for key, value in state("unet").items()}
    paths = [saved(wanted, tmp_path / "a.pt"), tmp_path / "a.safetensors"]
    save_file(wanted, paths[1])
    for path in paths:
        module = load("unet", path)
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert equal(module, wanted)


@every_model
def test_a_training_checkpoint_is_unwrapped_and_its_loss_reported(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loss = {"loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(())}
    content = {
        "epoch": 3,
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "state_dict": {**state(entry), **loss},
    }
    path = saved(content, tmp_path / "last.ckpt")
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(UserWarning, match=r"weights: 2 keys of .*last\.ckpt are of a training loss") as caught:
        assert equal(load(entry, path), state(entry))
    assert len(caught) == 1 and caught[0].filename == __file__


def test_the_quantizer_is_recognised_by_its_keys(tmp_path: Path) -> None:
    assert load("gumbel_vqgan_f8").config.quantizer == "gumbel"
    assert load("vqgan_f8").config.quantizer == "nearest"


def test_the_first_model_has_our_default_sizes() -> None:
    assert official.unet_config(official.V1["unet"]) == UNetConfig()
    vqgan = official.vqgan_config(official.V1["gumbel_vqgan_f8"], "gumbel")
    assert vqgan == VQGANConfig(quantizer="gumbel") and vqgan.f == 8


def test_the_resolution_only_says_where_attention_is_and_dropout_nothing() -> None:
    network = {**CONFIGS["vqgan_f8"]["ddconfig"], "resolution": 256, "attn_resolutions": [32], "dropout": 0.5}
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load("vqgan_f8", ddconfig=network).latent(pixels), load("vqgan_f8").latent(pixels))
    with pytest.raises(CheckpointError, match=r"unexpected encoder\.down\.3\.attn\.0\.norm\.weight"):
        load("vqgan_f8", ddconfig={**network, "attn_resolutions": []})


# --- what is refused ---


@every_model
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_wrong_key_is_named_at_once(entry: str, suffix: str, tmp_path: Path) -> None:
    tensors = state(entry)
    lost, short, *_ = sorted(key for key, value in tensors.items() if value.ndim > 1)
    tensors["surplus"] = tensors.pop(lost)
    tensors[short] = tensors[short][:1].clone()
    path = tmp_path / f"weights{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        load(entry, path)
    for words in (str(path), f"missing {lost}", "unexpected surplus", f"{short} has shape (1,"):
        assert words in str(caught.value)


def test_numbers_of_another_kind_are_named(tmp_path: Path) -> None:
    path = saved({**state("unet"), "clf.bias": torch.zeros(64, dtype=torch.int64)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"clf\.bias holds torch\.int64, not torch\.float32"):
        load("unet", path)


@pytest.mark.parametrize("entry", ["unet", "vqgan_f8"])
def test_another_model_s_file_is_refused(entry: str) -> None:
    other = PARITY / FILES["vqgan_f8" if entry == "unet" else "unet"]
    complaint = "holds another model: missing" if entry == "unet" else "holds no VQGAN"
    with pytest.raises(CheckpointError, match=f"{other.name} {complaint}"):
        load(entry, other)


@every_model
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(entry: str, suffix: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(state(entry), path)
    content = (path if suffix == ".pt" else PARITY / FILES[entry]).read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    refused(entry, path, "not a whole")


class Dangerous:
    """A pickle of this runs a command when it is read by a careless program."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


def refused(entry: str, path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(entry, path)
    assert "\n" not in str(caught.value)
    for word in (str(path), *words):
        assert word in str(caught.value)


@every_model
def test_code_in_a_pickle_does_not_run(entry: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    danger = Dangerous(trace)
    pickle.loads(pickle.dumps(danger))
    trace.rmdir()  # it is a danger
    for content in (danger, {**state(entry), "surplus": danger}, {"state_dict": state(entry), "callbacks": danger}):
        refused(entry, saved(content, tmp_path / "weights.pt"), "mkdir", "nothing is run")
    torch.save(danger, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(entry, tmp_path / "old.pt", "not a whole checkpoint")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(danger))
    refused(entry, tmp_path / "bare.pt", "not a whole checkpoint")
    assert not trace.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    refused("unet", saved(nn.Linear(2, 2), tmp_path / "module.pt"), "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "holds no state dict, but a list"),
        ({"state": {}, "param_groups": []}, "holds no state dict: state is a dict"),
        ({"state_dict": {"a": 3}}, "holds no state dict: a is a int"),
    ],
)
def test_what_is_no_state_dict_is_refused(content: object, words: str, tmp_path: Path) -> None:
    refused("unet", saved(content, tmp_path / "weights.pt"), words)


@pytest.mark.parametrize("name", ["weights.txt", "weights", "weights.pkl"])
def test_other_kinds_of_files_are_refused(name: str, tmp_path: Path) -> None:
    refused("unet", saved(state("unet"), tmp_path / name), ".safetensors, .pt, .pth, .ckpt, .bin")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_missing_file_is_refused(suffix: str, tmp_path: Path) -> None:
    refused("unet", tmp_path / f"nowhere{suffix}", "is missing")


@pytest.mark.parametrize(
    ("entry", "changes", "words"),
    [
        ("unet", {"c_hiden": 64}, "predictor's config has unknown keys: c_hiden"),
        ("unet", {"c_hidden": 65}, "c_hidden must be a multiple of 4, not 65"),
        ("unet", {"c_hidden": -64}, "no network can be made of"),
        ("unet", {"c_r": "16"}, "no network can be made of"),
        ("unet", {"down_levels": 3}, "predictor's config"),
        ("vqgan_f8", {"remap": "used.npy"}, "VQGAN's config has unknown keys: remap"),
        ("vqgan_f8", {"n_embed": "64"}, "no network can be made of"),
        ("vqgan_f8", {"ddconfig": None}, "VQGAN's ddconfig must hold keys with values, not None"),
        ("vqgan_f8", {"ddconfig.attn_type": "linear"}, "VQGAN's ddconfig has unknown keys: attn_type"),
        ("vqgan_f8", {"ddconfig.double_z": True}, "double_z must be False, not True"),
        ("vqgan_f8", {"ddconfig.in_channels": 1}, "in_channels must be 3, not 1"),
        ("vqgan_f8", {"ddconfig.out_ch": 4}, "out_ch must be 3, not 4"),
        ("vqgan_f8", {"ddconfig.resamp_with_conv": False}, "resamp_with_conv must be True, not False"),
        ("vqgan_f8", {"ddconfig.ch": 20}, "no network can be made of"),
        ("vqgan_f8", {"ddconfig.ch_mult": 2}, "VQGAN's ddconfig"),
        ("vqgan_f8", {"ddconfig.resolution": "64"}, "VQGAN's ddconfig"),
    ],
)
def test_a_config_that_our_classes_do_not_support_is_refused(entry: str, changes: dict[str, Any], words: str) -> None:
    config = copy.deepcopy(CONFIGS[entry])
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    with pytest.raises(CheckpointError) as caught:
        load(entry, **config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("entry", "key"), [("vqgan_f8", "n_embed"), ("vqgan_f8", "ddconfig")])
def test_a_config_that_lacks_something_is_refused(entry: str, key: str) -> None:
    config = {name: value for name, value in CONFIGS[entry].items() if name != key}
    with pytest.raises(CheckpointError, match=key):
        official.load_vqgan(PARITY / FILES[entry], config)
