"""Laws of the data sets of scenes."""

import numpy as np
import pytest
from scenery import NAMES

from paella.data.scene import Scene, held_out
from paella.data.scenes import Scenes, hard_scenes


@pytest.mark.parametrize("lookalike_groups", [False, True])
def test_a_sample_is_a_function_of_seed_and_index_alone(lookalike_groups: bool) -> None:
    first, second = (Scenes(32, 7, lookalike_groups=lookalike_groups) for _ in range(2))
    forwards = [first[i] for i in range(24)]
    backwards = [second[i] for i in reversed(range(24))][::-1]
    for (picture, words), (same_picture, same_words) in zip(forwards, backwards, strict=True):
        assert picture.tobytes() == same_picture.tobytes()
        assert words == same_words


def test_seeds_and_indices_differ() -> None:
    drawn = [Scenes(32, seed)[index][0].tobytes() for seed in range(4) for index in range(25)]
    assert len(set(drawn)) == len(drawn)


def test_samples_are_rgb_of_the_asked_size() -> None:
    for size in (17, 32, 64):
        assert all((p.mode, p.size) == ("RGB", (size, size)) for p, _ in (Scenes(size)[i] for i in range(8)))


def test_hard_scenes_end_where_there_are_no_more_captions() -> None:
    some = list(hard_scenes(1000, 16, 0, NAMES[:3]))
    words = [caption for _, caption in some]
    assert 3 * 12 * 2 <= len(words) < 1000
    assert len(set(words)) == len(words)


def test_groups_of_four_are_a_scene_and_its_lookalikes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    monkeypatch.setattr("paella.data.scenes.render", lambda scene, *_, **__: drawn.append(scene))
    data = Scenes(32, 5, lookalike_groups=True)
    for index in range(400):
        data[index]
    assert not any(held_out(scene) for scene in drawn)
    groups = [drawn[i : i + 4] for i in range(0, len(drawn), 4)]
    assert all((group[3].background, group[3].layout) != (group[0].background, group[0].layout) for group in groups)
    assert all(group[3].objects == group[0].objects for group in groups)
    assert np.mean([len(set(group)) == 4 for group in groups]) > 0.98


def test_layouts_come_as_often_as_asked() -> None:
    words = [Scenes(16, shares=(0, 0, 3, 1, 0)).caption(i) for i in range(400)]
    beside, above = (
        [any(w in it for w in two) for it in words] for two in ((" left ", " right "), (" above ", " below "))
    )
    assert sum(beside) + sum(above) == 400 and sum(above) == pytest.approx(100, abs=30)


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (0, 0, 0, 0, 0), (1, 1, 1, 1, -1), (1, 1, 1, 1, float("nan"))])
def test_wrong_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares: must be one for each of single, small"):
        Scenes(16, shares=shares)
