"""Laws of the training data: what comes when, and what is kept for evaluation."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from paella.data import Stream, open_data, open_loader
from paella.data.folder import Folder
from paella.data.rehearsed import Rehearsed
from paella.data.scene import Scene, held_out
from paella.data.scenes import Scenes
from paella.train import clip as clip_training
from paella.train.recipe import DataConfig

pytestmark = pytest.mark.usefixtures("small_gallery")


def test_a_stream_is_decided_by_position_alone() -> None:
    for length in (None, 10, 1):
        whole = list(islice(Stream(length, seed=3), 45))
        for start in (0, 1, 9, 10, 23):
            assert list(islice(Stream(length, 3, start), 45 - start)) == whole[start:]


def test_every_epoch_of_a_finite_stream_is_another_permutation() -> None:
    whole = list(islice(Stream(10, seed=3), 50))
    epochs = [tuple(whole[i : i + 10]) for i in range(0, 50, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(i, i + 10)) for i in range(0, 50, 10)]
    assert len({tuple(number % 10 for number in epoch) for epoch in epochs}) == 5
    assert whole != list(islice(Stream(10, seed=4), 50))


def test_an_endless_stream_counts() -> None:
    assert list(islice(Stream(None, 0, 7), 3)) == [7, 8, 9]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.7])
def test_rehearsed_scenes_have_their_share_and_the_folder_comes_in_whole_epochs(pictures: Path, share: float) -> None:
    folder, scenes = Folder(pictures, size=16), Scenes(16)
    data = Rehearsed(folder, scenes, share, seed=2)
    drawn = [data[number][1] for number in range(200)]
    own = [words for words in drawn if words in folder.all_captions]
    assert len(own) == pytest.approx(200 * (1 - share), abs=1)
    for start in range(0, len(own) - 9, 10):
        assert sorted(own[start : start + 10]) == sorted(folder.all_captions)
    assert len(own) < 20 or own[:10] != own[10:20]
    assert all(words == scenes[n][1] for n, words in enumerate(drawn) if words not in folder.all_captions)
    assert data[150][1] == drawn[150]


def test_a_share_that_leaves_no_own_picture_is_refused(pictures: Path) -> None:
    with pytest.raises(ValueError, match=r"rehearse: must be at least 0 and below 1, not 1\.0"):
        Rehearsed(Folder(pictures, size=16), Scenes(16), 1.0)


def test_a_loader_goes_on_where_it_was_and_workers_change_nothing(pictures: Path) -> None:
    data = Folder(pictures, size=16)
    whole = list(islice(open_loader(data, 4, seed=1), 6))
    later = list(islice(open_loader(data, 4, seed=1, start=12, workers=1), 3))
    for (pixels, captions), (same_pixels, same_captions) in zip(whole[3:], later, strict=True):
        assert pixels.shape == (4, 3, 16, 16)
        assert torch.equal(pixels, same_pixels)
        assert captions == same_captions


PAIR = re.compile(r"^an? (.+) (to the left of|to the right of|above|below) an? (.+) on an? .+ background$")


def pair_of(caption: str) -> tuple[str, ...]:
    """The ordered pair that a caption names, from left to right or from above; empty where it names no pair."""
    match = PAIR.match(caption)
    if match is None:
        return ()
    return match.group(1, 3) if match[2] in ("to the left of", "above") else match.group(3, 1)


@pytest.mark.parametrize("lookalike_groups", [False, True])
def test_held_out_pairs_are_never_in_the_data(lookalike_groups: bool) -> None:
    data: Any = open_data(DataConfig(size=16, lookalike_groups=lookalike_groups), seed=0)
    pairs = [pair for pair in (pair_of(data.caption(i)) for i in range(2000)) if pair]
    assert len(pairs) > 500
    assert not any(held_out(Scene(pair, "white", "horizontal")) for pair in pairs)


def test_clip_is_judged_on_held_out_pairs() -> None:
    _, captions = clip_training.hard_gallery(Scenes(16), seed=0)
    assert len(set(captions)) == len(captions) == 24
    assert any(held_out(Scene(pair, "white", "horizontal")) for pair in map(pair_of, captions) if pair)
