"""`paella evaluate quality`: what it measures, from which networks, and that it goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, files
from PIL import Image
from torch import Tensor, nn

from paella.data.scene import any_held_out, held_out
from paella.data.vocabulary import objects
from paella.evaluate import quality
from paella.evaluate.features import open_extractor
from paella.evaluate.metrics import bootstrap, estimate
from paella.evaluate.quality import HeldOutScenes, Seen, evaluate_quality, score
from paella.fingerprint import fingerprint
from paella.pipeline import Paella

N = 10


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "EVERY", 4)
    monkeypatch.setattr(quality, "estimate", partial(estimate, repeats=5))  # the time that a hundred take


@contextmanager
def ctrl_c(pipeline: Paella, after: int) -> Iterator[list[str]]:
    """Ctrl-C comes when so many pictures were drawn; yields the prompts that were drawn."""
    drawn: list[str] = []
    generate = Paella.generate

    def until(self: Paella, prompt: Any, **options: Any) -> list[Image.Image]:
        if len(drawn) >= after:
            raise KeyboardInterrupt
        drawn.extend(prompt)
        return generate(self, prompt, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Paella, "generate", until)
        yield drawn


def measure(tiny: Paella, work: Path | None = None, **options: Any) -> dict[str, Any] | None:
    extractor = open_extractor("clip", tiny)
    return evaluate_quality(tiny, HeldOutScenes(32, names=tiny.objects), N, extractor=extractor, work=work, **options)


def test_the_command(paella: Run, tiny_model: Path, tiny: Paella, tmp_path: Path) -> None:
    ask = ("evaluate", "quality", "-n", N, "--steps", 1, "--model", tiny_model)
    result = paella(*ask)
    assert result.code == 0, result
    found = json.loads((tmp_path / "quality.json").read_text())
    assert (found["n"], found["sampler"]["steps"], found["data"]) == (N, 1, "scenes")
    assert found["model"]["name"] == "tiny" and len(found["model"]["sha256"]) == 64
    assert found["features"]["name"] == "CLIP image encoder of the model tiny, whitened"
    assert found["features"]["sha256"] == fingerprint(tiny.clip.weights())  # type: ignore[union-attr]
    for scores in found["scores"].values():
        assert set(scores) == set(quality.ROWS)
        assert all(one["low"] <= one["value"] <= one["high"] for one in scores.values())
    assert 1 <= found["tokenizer"]["perplexity"] <= found["tokenizer"]["codes"] == 32
    assert "| precision |" in result.out and "| precision |" in (tmp_path / "quality.md").read_text()
    (cache,) = files(tmp_path) - {"quality.json", "quality.md"}  # the work file is gone
    stamp = (tmp_path / cache).stat().st_mtime_ns
    (tmp_path / "prompts.txt").write_text("a fox\n\na dog face\n")
    assert paella(*ask, "--prompts", "prompts.txt", "-o", "other.json").code == 0
    assert (tmp_path / cache).stat().st_mtime_ns == stamp  # and nothing is computed anew of the real pictures
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["scores"]["real"] == found["scores"]["real"]
    assert other["scores"]["generated"] != found["scores"]["generated"]


def test_a_run_goes_on_where_it_was_interrupted(tiny: Paella, tmp_path: Path) -> None:
    whole, work, told = measure(tiny), tmp_path / "work.safetensors", []
    with ctrl_c(tiny, after=8), pytest.raises(KeyboardInterrupt):
        measure(tiny, work)
    with ctrl_c(tiny, after=99) as drawn, pytest.warns(match="output: going on with 8 of 10"):
        again = measure(tiny, work, progress=lambda done, total: told.append((done, total)))
    assert len(drawn) == 2 and told[-1] == (10, 10)
    assert again == whole and not work.exists()


def test_a_run_does_not_go_on_with_pictures_of_another(tiny: Paella, tmp_path: Path) -> None:
    work = tmp_path / "work.safetensors"
    with ctrl_c(tiny, after=4), pytest.raises(KeyboardInterrupt):
        measure(tiny, work)
    for other in ({"steps": 1}, {"prompts": ["a fox"]}):
        with pytest.raises(ValueError, match=r"output: .*with another (sampler|prompts);"):
            measure(tiny, work, **other)
    work.write_bytes(work.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"output: .* is not a whole safetensors file"):
        measure(tiny, work)


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="the processor has no 8-bit dot products")
def test_a_model_in_8_bits_is_measured_and_not_taken_for_the_other(
    tiny: Paella, tiny_model: Path, tmp_path: Path
) -> None:
    quantized, work = Paella.from_pretrained(tiny_model, "cpu", "float32", quantize="int8"), tmp_path / "work"
    with ctrl_c(tiny, after=4), pytest.raises(KeyboardInterrupt):
        measure(tiny, work)
    with pytest.raises(ValueError, match=r"output: .*with another model;"):
        measure(quantized, work)
    assert measure(quantized)["model"]["name"] == "tiny"  # type: ignore[index]


def test_several_processes_draw_what_one_draws(tiny: Paella, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, parts, work = measure(tiny), [], tmp_path / "work.safetensors"
    for number in (2, 1, 0):  # the first process last, as it waits for the others
        monkeypatch.setattr(quality, "place", lambda number=number: (number, 3))
        monkeypatch.setattr(quality, "gathered", lambda own: parts.insert(0, own) or parts)
        with ctrl_c(tiny, after=99) as drawn:
            result = measure(tiny, work)
        assert (result is None) == (number > 0) and len(drawn) in (3, 4)
    generated, expected = (report.pop("scores")["generated"] for report in (result, whole))
    assert result == whole | {"processes": 3}
    for row, value in expected.items():  # the network rounds otherwise in other batches
        assert generated[row] == pytest.approx(value, rel=1e-4), row
    assert files(tmp_path) == set()


def test_every_process_needs_a_picture(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, N):  # each of them stops, and so none waits for another
        monkeypatch.setattr(quality, "place", lambda number=number: (number, N + 1))
        with ctrl_c(tiny, after=0), pytest.raises(ValueError, match=r"^n: .* each of the 11 processes, not 10"):
            measure(tiny)


def test_a_perfect_model_scores_as_the_real_pictures_and_a_poor_one_worse() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, own = (torch.randn(100, 8, generator=generator) for _ in range(2))
    images = F.normalize(torch.randn(100, 8, generator=generator), dim=1)
    perfect = score(Seen(reference, images), Seen(own, images), images)
    shifted = score(Seen(reference, images), Seen(own + 2, images), images.roll(1, 0))
    for row, sign in {"frechet": 1, "kernel": 1, "precision": -1, "recall": -1, "clip": -1}.items():
        assert sign * shifted[row]["value"] > sign * perfect[row]["value"]
    assert shifted["clip"] == bootstrap((images * images.roll(1, 0)).sum(1))  # it is a mean
    assert perfect["clip"]["value"] == pytest.approx(1) and perfect["clip_chance"]["high"] < 0.2


def test_held_out_scenes_depend_on_seed_and_index_and_have_no_pair_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(quality, "render", lambda scene, *_, **__: drawn.append(scene))
    scenes = HeldOutScenes(32, 5)
    captions = [scenes[i][1] for i in range(200)]
    assert captions == [HeldOutScenes(32, 5)[i][1] for i in range(200)]
    assert captions != [HeldOutScenes(32, 6)[i][1] for i in range(200)]
    pairs = [scene for scene in drawn if len(scene.objects) == 2]
    assert 60 < len(pairs) / 3 < 120 and all(map(held_out, pairs))
    assert {scene.layout for scene in drawn} == {"single", "small", "horizontal", "vertical"}
    few = HeldOutScenes(32, names=list(objects())[1:3])
    assert not any_held_out(few.names)
    assert all(" above " not in few[i][1] and "left" not in few[i][1] for i in range(50))


def test_a_folder_and_a_clip_of_its_own(paella: Run, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    for number in range(10, 2 * N):
        Image.new("RGB", (40, 50), (number, 0, 9 * number)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture number {number}")
    for file in pictures.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ask = ("evaluate", "quality", "--data", tmp_path, "--model", tiny_model, "--features", tiny_model / "clip")
    assert paella(*ask, "-n", N, "-o", "out/it.json").code == 0
    assert json.loads((tmp_path / "out" / "it.json").read_text())["features"]["name"].startswith(
        "CLIP image encoder of"
    )
    (tmp_path / "broken.png").write_text("")
    (tmp_path / "broken.txt").write_text("a broken picture")
    assert "--data: 1 skipped, the first broken.png: broken picture" in paella(*ask, "-n", N + 1).err
    (tmp_path / "broken.png").unlink()
    result = paella(*ask, "-n", N + 1)
    assert (result.code, result.err) == (
        2,
        "paella: error: --number: 11 pictures are compared with 11 others, and "
        f"{tmp_path} has 20 that can be used; at most 10\n",
    )


def test_dinov2_features_are_the_class_token(tiny: Paella, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": {"height": 28, "width": 28}}')
    extractor = open_extractor(str(tmp_path), tiny)
    picture = Image.new("RGB", (28, 28), (255, 0, 0))
    features, images = extractor.look([picture])
    pixel = (torch.tensor([1.0, 0, 0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = model(pixel.view(1, 3, 1, 1).expand(1, 3, 28, 28)).last_hidden_state[:, 0]
    assert torch.allclose(features, expected, atol=1e-6) and images.norm() == pytest.approx(1)
    assert extractor.record["sha256"] == fingerprint(model.state_dict())


def test_inception_is_given_the_pixels_as_bytes(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bytes(nn.Module):
        def __init__(self, name: str, features_list: list[str], antialias: bool) -> None:
            super().__init__()
            assert (name, features_list, antialias) == ("inception-v3-compat", ["2048"], False)

        def forward(self, pixels: Tensor) -> Tensor:
            assert pixels.dtype == torch.uint8
            return pixels.flatten(1)

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Bytes)
    picture = Image.effect_noise((32, 32), 50).convert("RGB")
    assert (
        bytes(open_extractor("inception", tiny).look([picture])[0].byte()[0, : 32 * 32]) == picture.split()[0].tobytes()
    )


def test_a_hash_knows_every_value_and_name() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    changed = {"a": torch.arange(4.0) + 1e-6, "b": torch.tensor(1)}
    renamed = {"a": torch.arange(4.0), "c": torch.tensor(1)}
    hashes = {fingerprint(one) for one in (weights, changed, renamed, {"a": weights["a"].half(), "b": weights["b"]})}
    assert len(hashes) == 4 and fingerprint(dict(reversed(weights.items()))) in hashes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "report.md"], "--output: must end in .json, not report.md"),
        (["-n", 5], "--number: Input should be greater than or equal to 10"),
        (["--data", "none"], "--data: there is no folder none"),
        (["--features", "resnet"], "--features: must be clip, inception, or the folder"),
        (["--features", "."], "--features: cannot read config.json"),
        (["--features", "bert"], "--features: bert holds a model of the type bert; must be"),
        (["--features", "inception"], "--features: inception needs the package torch-fidelity"),
        (["--prompts", "none.txt"], "--prompts: cannot read none.txt"),
        (["--prompts", "empty.txt"], "--prompts: there is no prompt in empty.txt"),
        (["--steps", 0], "--steps: "),
    ],
)
def test_bad_input_is_one_line(
    paella: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[object], message: str
) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "empty.txt").write_text("\n")
    before = files(tmp_path)
    result = paella("evaluate", "quality", "-n", N, "--model", tiny_model, *args)
    assert (result.code, result.err.count("\n")) == (2, 1) and result.err.startswith(f"paella: error: {message}"), (
        result
    )
    assert files(tmp_path) == before


def test_without_torchmetrics_the_command_says_what_to_install(
    paella: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setattr(Paella, "from_pretrained", None)  # before it begins
    result = paella("evaluate", "quality", "-n", N, "--model", tiny_model)
    assert result.code == 1 and 'torchmetrics: pip install -e ".[evaluate]"' in result.err
