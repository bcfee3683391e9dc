"""Laws of the CLIP embeddings."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paella.checkpoint import CheckpointError
from paella.clip import Clip, Whitening
from paella.pipeline import Paella

PROMPTS = ["a dog", "a cat to the left of a very long and winding pear on a light blue background", "x", "a dog"]


@pytest.fixture(scope="session")
def clip(tiny: Paella) -> Clip:
    return tiny.clip


def pictures(*size: int) -> torch.Tensor:
    return torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))


def test_a_text_does_not_see_its_batch(clip: Clip) -> None:
    together = clip.embed_text(PROMPTS)
    alone = torch.cat([clip.embed_text([text]) for text in PROMPTS])
    assert together.shape == (4, clip.dim)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_tokens_begin_with_start_and_are_padded_with_end(clip: Clip) -> None:
    ids = clip.tokenize(["a dog", "a cat above a dog"])
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == clip.tokenizer.bos_token_id).all()
    assert (ids[:, -1] == clip.tokenizer.eos_token_id).all()
    short = clip.tokenize(["a dog"])
    assert torch.equal(ids[0, : short.shape[1]], short[0])
    assert (ids[0, short.shape[1] :] == clip.tokenizer.pad_token_id).all()


def test_any_text_has_tokens_and_case_does_not_matter(clip: Clip) -> None:
    assert clip.embed_text(["naïve 漢字 🦊 \n"]).isfinite().all()
    assert torch.equal(clip.embed_text(["A Dog "]), clip.embed_text(["a dog"]))


def test_a_text_too_long_is_cut(clip: Clip) -> None:
    words = "a dog on a red background " * 20
    assert clip.is_cut(words) and not clip.is_cut("a dog")
    ids = clip.tokenize([words])
    whole = clip.tokenizer(words)["input_ids"]
    assert ids[0].tolist() == [*whole[: clip.context - 1], clip.tokenizer.eos_token_id]
    embeddings = clip.embed_text([words, words + "and a cat"])
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=1e-4, atol=1e-4)


def test_a_text_that_just_fits_is_not_cut(clip: Clip, recwarn: pytest.WarningsRecorder) -> None:
    words = "x"
    while len(clip.tokenizer(words + " x")["input_ids"]) <= clip.context:
        words += " x"
    assert clip.tokenize([words]).shape == (1, clip.context)
    assert not [warning for warning in recwarn if "prompt" in str(warning.message)]


def test_whitened_embeddings_are_uncorrelated_and_of_variance_one() -> None:
    mixed = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -1, 6))
    embeddings = mixed @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0] + 3
    white = Whitening.fit(embeddings, floor=0)(embeddings)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), rtol=0, atol=1e-3)


def test_whitening_leaves_what_is_only_noise_small() -> None:
    embeddings = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1e-1, 1e-5])
    deviations = Whitening.fit(embeddings)(embeddings).std(0)
    torch.testing.assert_close(deviations[:2], torch.ones(2), rtol=0, atol=0.01)
    assert deviations[2] < 0.01


def test_embeddings_are_whitened_at_norm_one(clip: Clip) -> None:
    assert clip.whitening is not None
    plain = Clip(clip.model, clip.tokenizer)
    for embed in (lambda it: it.embed_text(PROMPTS), lambda it: it.embed_images(pictures(32, 32))):
        unit = torch.nn.functional.normalize(embed(plain))
        torch.testing.assert_close(embed(clip), clip.whitening(unit))
        assert not torch.allclose(embed(plain), embed(clip), atol=1e-2)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (20, 20), (48, 33), (31, 200)])
def test_pictures_of_any_size_are_accepted(clip: Clip, size: tuple[int, int]) -> None:
    assert clip.prepare(pictures(*size)).shape == (3, 3, 32, 32)
    embeddings = clip.embed_images(pictures(*size))
    assert embeddings.shape == (3, clip.dim)
    assert embeddings.isfinite().all()


def test_pictures_are_normalised_and_centre_cropped(clip: Clip) -> None:
    picture = pictures(32, 32)
    prepared = clip.prepare(picture)
    for channel in range(3):
        expected = (picture[:, channel] - clip.mean[channel]) / clip.std[channel]
        torch.testing.assert_close(prepared[:, channel], expected)
    wide = torch.nn.functional.pad(picture, (5, 5))
    torch.testing.assert_close(clip.prepare(wide), prepared, rtol=1e-4, atol=1e-5)


def test_a_saved_clip_comes_back_exactly(clip: Clip, tmp_path: Path) -> None:
    changed = Clip(clip.model, clip.tokenizer, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    for original in (clip, changed):
        original.save(tmp_path)
        loaded = Clip.load(tmp_path)
        assert (loaded.mean, loaded.std) == (original.mean, original.std)
        assert (loaded.whitening is None) == (original.whitening is None)
        own = original.model.state_dict()
        assert own.keys() == loaded.model.state_dict().keys()
        assert all(torch.equal(value, own[key]) for key, value in loaded.model.state_dict().items())
        assert torch.equal(loaded.embed_text(PROMPTS), original.embed_text(PROMPTS))
        assert torch.equal(loaded.embed_images(pictures(40, 32)), original.embed_images(pictures(40, 32)))
        assert not loaded.model.training


def test_a_saved_clip_is_one_for_transformers(clip: Clip, tmp_path: Path) -> None:
    from transformers import CLIPModel

    clip.save(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path)
    own = clip.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_half_precision_when_asked(clip: Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "half", torch.float16)
    clip.save(tmp_path / "whole")
    half, whole = (tmp_path / name / "model.safetensors" for name in ("half", "whole"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = Clip.load(tmp_path / "half")
    assert loaded.model.dtype == torch.float32
    torch.testing.assert_close(loaded.embed_text(PROMPTS), clip.embed_text(PROMPTS), rtol=0, atol=0.05)


FILES = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "whitening.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_model / "clip", tmp_path / "clip")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Clip.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_model / "clip", tmp_path / "clip")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        Clip.load(folder)


def test_a_whitening_of_another_size_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model / "clip", tmp_path / "clip")
    save_file({"mean": torch.zeros(3), "matrix": torch.eye(3)}, folder / "whitening.safetensors")
    with pytest.raises(CheckpointError, match=r"whitening\.safetensors"):
        Clip.load(folder)


def test_published_clips_take_what_openai_s_models_expect(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model / "clip", tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": True}))
    loaded = Clip.load(folder)
    assert loaded.whitening is None
    assert loaded.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert loaded.std == pytest.approx((0.269, 0.261, 0.276), abs=1e-3)
