"""Laws of teaching CLIP other words."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from training import make_stage, rows, train

from paella.clip import Clip, Whitening
from paella.train.wordings import retokenized

pytestmark = pytest.mark.usefixtures("small_gallery")


def test_other_wordings_come_to_mean_what_the_plain_one_means(tiny_model: Path, tmp_path: Path) -> None:
    more = ("steps=80", "batch_size=16", "preview_every=80", "optimizer.learning_rate=2e-3")
    train("wordings", tiny_model, tmp_path, *more, "data.objects=[fox,pear]", "scale=50")
    distances = [row["distance"] for row in rows(tmp_path) if "distance" in row]
    assert np.mean(distances[-10:]) < 0.6 * np.mean(distances[:3])
    before, after = (Clip.load(folder / "clip") for folder in (tiny_model, tmp_path / "model"))
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.embed_images(pixels), after.embed_images(pixels))
    words = ["A fox, it is"]
    assert not torch.equal(before.embed_text(words), after.embed_text(words))


def test_plain_captions_are_held_where_an_earlier_tower_had_them(tiny_model: Path, tmp_path: Path) -> None:
    entries = ("steps=1", "preview_every=1", "optimizer.learning_rate=1e-2")
    moved = train("wordings", tiny_model, tmp_path, *entries) / "model"
    alone, held = (make_stage("wordings", moved, *more) for more in ((), (f"teacher={tiny_model}", "rehearse=0.3")))
    plain = ["a fox on a red background"]
    first, second = (
        torch.nn.functional.normalize(Clip.load(m / "clip").unwhitened().embed_text(plain)) for m in (tiny_model, moved)
    )
    assert not torch.allclose(first, second)
    torch.testing.assert_close(held.targets(plain), first)
    torch.testing.assert_close(alone.targets(plain), second)
    rehearsed = [index for index in range(100) if (index + 1) * 3 // 10 > index * 3 // 10]
    assert len(rehearsed) == 30
    for index in range(100):
        varied, meant = alone.data[index]
        assert held.data[index] == (meant if index in rehearsed else varied, meant)


def test_what_predictors_read_is_the_teachers_space(tiny_model: Path, tmp_path: Path) -> None:
    teacher = Clip.load(tiny_model / "clip")
    teacher.whitening = Whitening(torch.full((teacher.dim,), 0.1), torch.eye(teacher.dim) * 3)
    copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    teacher.save(tmp_path / "clip")
    stage = make_stage("wordings", tiny_model, f"teacher={tmp_path}")
    ones = torch.ones(1, teacher.dim)
    assert torch.equal(stage.clip.whitened(ones), teacher.whitened(ones))
    assert not torch.equal(make_stage("wordings", tiny_model).clip.whitened(ones), teacher.whitened(ones))


def test_another_tokenizer_begins_with_the_meanings_that_the_given_one_knew(tiny_model: Path, tmp_path: Path) -> None:
    given = Clip.load(tiny_model / "clip")
    same = retokenized(given, given.tokenizer, given.context + 5)
    words = ["a fox on a red background", "a pear"]
    assert torch.equal(given.embed_text(words), same.embed_text(words))
    assert same.context == given.context + 5

    run = train("wordings", tiny_model, tmp_path, "steps=1", "preview_every=1", "vocabulary=500", "context=77")
    after = Clip.load(run / "model" / "clip")
    assert after.context == 77 and len(after.tokenizer) == 500 != len(given.tokenizer)
    assert len(after.tokenizer("여우")["input_ids"]) < len(given.tokenizer("여우")["input_ids"])
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(given.embed_images(pixels), after.embed_images(pixels))


def test_a_run_is_not_resumed_with_another_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    entries = ("steps=1", "preview_every=1", "vocabulary=400")
    train("wordings", tiny_model, tmp_path, *entries)
    with pytest.raises(ValueError, match="another text tokenizer"):
        train("wordings", tiny_model, tmp_path, *entries, "data.shares=[0,0,0,0,1]")


def test_a_run_is_not_resumed_with_another_teacher(tiny_model: Path, tmp_path: Path) -> None:
    entries = ("steps=1", "preview_every=1", "optimizer.learning_rate=1e-2")
    moved = train("wordings", tiny_model, tmp_path / "first", *entries) / "model"
    train("wordings", moved, tmp_path / "second", *entries, f"teacher={tiny_model}")
    with pytest.raises(ValueError, match="this recipe has another VQGAN or CLIP"):
        train("wordings", moved, tmp_path / "second", *entries)


def test_wordings_need_a_clip_and_scenes(tiny_model: Path, pictures: Path) -> None:
    with pytest.raises(ValueError, match="init_from: must be a model"):
        make_stage("wordings", tiny_model, "init_from=null")
    with pytest.raises(ValueError, match=r"rehearse: must be within 0 ... 1, not 2"):
        make_stage("wordings", tiny_model, "rehearse=2")
    with pytest.raises(ValueError, match="teacher: must have embeddings of 16 numbers, not 256"):
        make_stage("wordings", tiny_model, "teacher=builtin")
    for key, least in (("vocabulary", 258), ("context", 3), ("tokenizer_captions", 1)):
        with pytest.raises(ValueError, match=f"{key}: must be at least {least}, not 0"):
            make_stage("wordings", tiny_model, f"{key}=0")
    with pytest.raises(ValueError, match=r"data\.folder: other words"):
        make_stage("wordings", tiny_model, f"data.folder={pictures}")
