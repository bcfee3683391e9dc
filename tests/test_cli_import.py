"""`paella import-checkpoint`: three published parts become a folder that draws, or one line says what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Run
from PIL import Image
from safetensors.torch import load_file, save_file

from paella.checkpoint import CheckpointError
from paella.clip import Clip
from paella.official import unet_config
from paella.pipeline import Paella
from paella.sampler import SamplerSettings
from paella.unet import TokenPredictor

PARITY = Path(__file__).parent / "parity"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP in the files and with the quirks of a published one."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clips") / "published"
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(vocabulary), "eos_token_id": 2, "hidden_act": "gelu"}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 32, "image_mean": [0.4, 0.5, 0.6]}))
    return folder


@pytest.fixture
def import_checkpoint(paella: Run, clip: Path) -> Run:
    """The command with the parity models, but for what is given."""

    def call(**changes: object) -> object:
        options: dict[str, object] = {
            "predictor": PARITY / "paella_v1_unet.safetensors",
            "vqgan": PARITY / "gumbel_vqgan_f8.safetensors",
            "clip": clip,
            "config": PARITY / "config.json",
            "output": "model",
            **changes,
        }
        given = [(f"--{name}", value) for name, value in options.items() if value is not None]
        return paella("import-checkpoint", *(word for pair in given for word in pair))

    return call  # type: ignore[return-value]


@pytest.mark.parametrize("vqgan", ["gumbel_vqgan_f8", "vqgan_f8"])
def test_the_folder_draws(import_checkpoint: Run, paella: Run, vqgan: str) -> None:
    result = import_checkpoint(vqgan=PARITY / f"{vqgan}.safetensors")
    assert (result.code, result.err) == (0, "") and result.out.startswith("model: paella-v1")
    assert paella("generate", "a fox", "--model", "model", "--output", "fox.png").code == 0
    with Image.open("fox.png") as picture:
        assert picture.size == (64, 64) and picture.info["model"] == "paella-v1"
        assert len(set(picture.get_flattened_data())) > 100


def test_the_folder_is_complete_and_has_the_first_model_s_settings(import_checkpoint: Run, clip: Path) -> None:
    moved = shutil.copytree(clip, Path("clip"))
    assert import_checkpoint(clip=moved, name="mine").code == 0
    shutil.rmtree(moved)
    model = Paella.from_pretrained("model", device="cpu", dtype="float32")
    assert (model.name, model.size) == ("mine", 64)
    assert model.settings == SamplerSettings(steps=8, guidance=5, typical_mass=0.2, temperature=1, renoise="initial")
    for part, file in ((model.predictor, "paella_v1_unet"), (model.vqgan, "gumbel_vqgan_f8")):
        published = load_file(PARITY / f"{file}.safetensors")
        assert all(torch.equal(value, published[key].float()) for key, value in part.state_dict().items())


def test_embeddings_enter_as_the_published_encoder_gives_them(import_checkpoint: Run, clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    assert import_checkpoint().code == 0
    model = Paella.from_pretrained("model", device="cpu", dtype="float32")
    assert model.clip.whitening is None
    tokens = CLIPTokenizer.from_pretrained(clip)(["a fox"], return_tensors="pt")
    with torch.no_grad():
        features = CLIPModel.from_pretrained(clip).get_text_features(**tokens)
    expected = getattr(features, "pooler_output", features)
    assert abs(expected.norm() - 1) > 0.5
    torch.testing.assert_close(model._embed(["a fox"]), expected)


def test_pickles_are_imported_as_well(import_checkpoint: Run, clip: Path) -> None:
    other = shutil.copytree(clip, Path("clip"))
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    torch.save(load_file(PARITY / "paella_v1_unet.safetensors"), "unet.pt")
    tensors = load_file(PARITY / "gumbel_vqgan_f8.safetensors")
    torch.save({"state_dict": {**tensors, "loss.logvar": torch.zeros(())}}, "vqgan.ckpt")
    result = import_checkpoint(predictor="unet.pt", vqgan="vqgan.ckpt", clip="clip")
    assert result.code == 0
    assert result.err == "paella: warning: weights: 1 keys of vqgan.ckpt are of a training loss, and left out\n"
    assert import_checkpoint(output="again").code == 0
    for path in Path("again").rglob("*.safetensors"):
        own, others = load_file(path), load_file("model" / path.relative_to("again"))
        assert own.keys() == others.keys() and all(torch.equal(value, others[key]) for key, value in own.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_are_stored_as_asked(import_checkpoint: Run, dtype: str) -> None:
    assert import_checkpoint(dtype=dtype).code == 0
    for name in ("predictor.safetensors", "vqgan.safetensors", "clip/model.safetensors"):
        assert {value.dtype for value in load_file(Path("model") / name).values()} == {getattr(torch, dtype)}


def test_without_a_config_the_sizes_are_those_of_the_first_model(import_checkpoint: Run) -> None:
    result = import_checkpoint(config=None)
    assert result.code == 2 and "embedding.weight has shape (64, 16), not (8192, 320)" in result.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predictor": "nowhere.pt"}, ["--predictor: nowhere.pt is missing"]),
        ({"predictor": PARITY / "vqgan_f8.safetensors"}, ["--predictor: ", "vqgan_f8.safetensors holds another model"]),
        ({"predictor": PARITY / "config.json"}, ["config.json is no index"]),
        ({"vqgan": PARITY / "README.md"}, ["--vqgan: ", "README.md must be a file of weights"]),
        ({"vqgan": PARITY / "paella_v1_unet.safetensors"}, ["--vqgan: ", "paella_v1_unet.safetensors holds no VQGAN"]),
        ({"config": "nowhere.json"}, ["--config: cannot read nowhere.json"]),
        ({"config": PARITY / "README.md"}, ["--config: ", "README.md is not valid JSON"]),
        ({"clip": PARITY}, ["--clip: ", "model.safetensors is missing"]),
        ({"clip": "builtin"}, ["do not fit", "embeddings of 32", "CLIP"]),
        ({"dtype": "float64"}, ["--dtype", "bfloat16"]),
        ({"predictor": None}, ["--predictor"]),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    import_checkpoint: Run, changes: dict[str, object], words: list[str]
) -> None:
    result = import_checkpoint(**changes)
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert result.err.startswith("paella: error: ") and all(word in result.err for word in words), result.err
    assert not Path("model").exists()


def test_a_config_without_the_vqgan_s_entry_is_refused(import_checkpoint: Run) -> None:
    whole = json.loads((PARITY / "config.json").read_text())
    Path("config.json").write_text(json.dumps({"unet": whole["unet"], "vqgan_f8": whole["vqgan_f8"]}))
    result = import_checkpoint(config="config.json")
    assert result.code == 2 and "--config: lacks gumbel_vqgan_f8; it has unet, vqgan_f8" in result.err


def test_a_model_is_not_overwritten(import_checkpoint: Run, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "model")
    before = Path("model/model.json").read_bytes()
    result = import_checkpoint()
    assert result.code == 2 and "--output: model holds a model already" in result.err
    assert Path("model/model.json").read_bytes() == before


# a CLIP's folder


def test_a_clip_in_several_files_is_read_whole(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    CLIPModel.from_pretrained(clip).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists() and not (folder / "model.safetensors").exists()
    own, others = Clip.load(folder).model.state_dict(), Clip.load(clip).model.state_dict()
    assert all(torch.equal(value, others[key]) for key, value in own.items())
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"model-.*\.safetensors is missing"):
        Clip.load(folder)


def test_a_published_clip_does_without_a_preprocessor_config(clip: Path, tmp_path: Path) -> None:
    assert Clip.load(clip).mean == (0.4, 0.5, 0.6)
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    assert Clip.load(folder).mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)


# memory

MEDIUM = {"num_labels": 64, "c_hidden": 704, "c_clip": 32, "c_r": 64, "down_levels": [1, 2, 3], "up_levels": [3, 2, 1]}

MEASURE = """
import re, sys
from pathlib import Path
from paella.cli import run

def peak():  # not getrusage: its peak begins with that of the process which started this one
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

for name in ("small", "medium"):  # the small one takes whatever the first time takes
    before = peak()
    weights, config, output = next(Path(name).glob("weights.*")), f"{name}/config.json", f"{name}/model"
    own = ["--predictor", weights, "--config", config, "--output", output]
    assert run(["import-checkpoint", *map(str, own), *sys.argv[1:]]) == 0
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux tells it")
@pytest.mark.parametrize(("suffix", "dtype"), [(".safetensors", torch.float32), (".pt", torch.float16)])
def test_a_model_is_imported_in_little_more_than_its_size(
    clip: Path, tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    configs = json.loads((PARITY / "config.json").read_text())
    for name, config in {"small": configs["unet"], "medium": MEDIUM}.items():
        with torch.device("meta"):
            shapes = TokenPredictor(unet_config(config)).state_dict()
        tensors = {key: torch.zeros(value.shape, dtype=dtype) for key, value in shapes.items()}
        path = tmp_path / name / f"weights{suffix}"
        path.parent.mkdir()
        save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
        path.with_name("config.json").write_text(json.dumps({**configs, "unet": config}))
    size = sum(4 * value.numel() for value in tensors.values())  # in float32, which is what it becomes
    others = ["--vqgan", str(PARITY / "gumbel_vqgan_f8.safetensors"), "--clip", str(clip)]
    command = [sys.executable, "-c", MEASURE, *others]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    taken = int(done.stdout.split()[-1])
    assert size > 150e6
    assert 0.95 * size < taken < 1.3 * size
