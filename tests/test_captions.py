"""Laws of the plain captions."""

import numpy as np
import pytest
from scenery import box, generator, object_masks, some_scenes

from paella.data.scene import Layout, Scene, draw_scene
from paella.data.scenes import Scenes
from paella.data.vocabulary import all_objects, article
from paella.data.wordings import caption, captions


def test_wordings() -> None:
    assert captions(Scene(("apple",), "orange", "single")) == [
        "an apple on an orange background",
        "an apple",
        "apple",
    ]
    assert captions(Scene(("apple",), "light blue", "small")) == ["a small apple on a light blue background"]
    assert captions(Scene(("fox", "owl"), "teal", "horizontal")) == [
        "a fox to the left of an owl on a teal background",
        "an owl to the right of a fox on a teal background",
    ]
    assert captions(Scene(("fox", "owl"), "teal", "vertical")) == [
        "a fox above an owl on a teal background",
        "an owl below a fox on a teal background",
    ]


@pytest.mark.parametrize("layout", ["horizontal", "vertical"])
def test_the_first_named_object_is_where_the_caption_says(layout: Layout) -> None:
    """Both wordings of a pair, read against the picture."""
    axis = 0 if layout == "horizontal" else 1
    for seed, scene in enumerate(some_scenes(layout, 6, seed=2)):
        middle = {
            name: box(mask)[axis] for name, mask in zip(scene.objects, object_masks(scene, 64, seed), strict=True)
        }
        for words in captions(scene):
            before = " to the left of " in words or " above " in words
            (first, second) = sorted(scene.objects, key=lambda name: words.index(article(name)))
            assert (middle[first] < middle[second]) == before


def test_no_wording_describes_two_scenes() -> None:
    """Names such as "small airplane" or a colour would make captions ambiguous."""
    names = list(all_objects())
    singles = [Scene((name,), "white", layout) for name in names for layout in ("single", "small")]
    rng = generator(6)
    pairs = {draw_scene(rng, names, layouts=["horizontal", "vertical"]) for _ in range(500)}
    wordings = [words for scene in [*singles, *pairs] for words in captions(scene)]
    assert len(set(wordings)) == len(wordings)


def test_full_captions_name_the_background_and_others_nearly_always() -> None:
    rng = generator(7)
    for scene in some_scenes("single", 50):
        assert scene.background in caption(scene, rng, full=True)
    scene = Scene(("fox",), "teal", "single")
    named = np.mean(["teal" in caption(scene, rng) for _ in range(500)])
    assert named == pytest.approx(0.8, abs=0.07)
    assert {caption(scene, rng) for _ in range(100)} == set(captions(scene))
    assert all("background" in Scenes(8, wording="full")[i][1] for i in range(60))


def test_pairs_are_worded_from_either_object_as_often_as_asked() -> None:
    for share in (0, 0.25, 1):
        words = [Scenes(16, 0, mirrored=share).caption(i) for i in range(2000)]
        mirrored = [" to the right of " in it or " below " in it for it in words]
        pairs = [it for it in words if any(w in it for w in (" left of ", " right of ", " above ", " below "))]
        assert sum(mirrored) / len(pairs) == pytest.approx(share, abs=0.05)
