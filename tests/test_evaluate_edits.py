"""The judge of edits: a perfect editor passes it, and one that does nothing does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paella.data.render import render
from paella.data.scene import LAYOUTS
from paella.data.vocabulary import objects
from paella.data.wordings import captions
from paella.evaluate.edits import Cases, evaluate_edits, format_edits, inpainting, seam
from paella.pipeline import Paella
from paella.unet import TokenPredictor

NAMES = list(objects())[:12]


class Painter:
    """Knows the answer: paints the scene that is asked for over the masked part, or leaves the picture alone."""

    size = 64

    def __init__(self, answers: dict[str, Image.Image], works: bool) -> None:
        self.answers, self.works = answers, works

    def inpaint(self, image: Image.Image, mask: Any, prompt: str = "", *, seed: int = 0) -> list[Image.Image]:
        painted = self.answers[prompt] if prompt else image
        return [Image.composite(painted, image, Image.fromarray(mask)) if self.works else image]


@pytest.mark.parametrize("works", [True, False])
def test_inpainting_is_judged_by_what_is_in_the_mask(works: bool) -> None:
    singles = Cases.draw(["single"], 6, 64, 0, NAMES, snap=4)
    pairs = Cases.draw(["horizontal"], 6, 64, 0, NAMES, snap=4)
    answers = {
        captions(other)[0]: render(other, 64, np.random.default_rng(index), snap=4)
        for index, other in enumerate(pairs.others)
    }
    figures = inpainting(Painter(answers, works), singles, pairs)  # type: ignore[arg-type]
    assert figures["pixels outside the mask identical"]["rate"] == 1
    assert figures["half an object masked, no prompt: the object found"]["rate"] == 1  # it was never erased
    assert figures["another object asked for: found in the mask"]["rate"] == (1 if works else 0)
    assert figures["· an unrelated picture pasted into the half"]["rate"] < 1


def test_cases_ask_for_another_object_in_the_last_place() -> None:
    for layouts in (["single"], ["horizontal"], LAYOUTS):
        cases = Cases.draw(layouts, 10, 64, 3, NAMES)  # type: ignore[arg-type]
        assert {scene.layout for scene in cases.scenes} <= set(layouts)
        for scene, other in zip(cases.scenes, cases.others, strict=True):
            assert scene.objects[:-1] == other.objects[:-1] and scene.objects[-1] != other.objects[-1]
            assert len(set(other.objects)) == len(other.objects)
        assert cases.hits(cases.pictures, [s.objects[0] for s in cases.scenes]).shape == (10,)


def test_every_ability_is_reported(tiny: Paella) -> None:
    with torch.random.fork_rng():
        report = evaluate_edits(tiny, 2, names=NAMES)
    assert set(report) == {"inpaint", "outpaint", "vary", "interpolate", "restyle", "compose"}
    for ability, figure in (
        ("inpaint", "pixels outside the mask identical"),
        ("outpaint", "known pixels identical"),
        ("interpolate", "first and last frame are the plain pictures"),
    ):
        assert report[ability][figure]["rate"] == 1
    assert format_edits(report).count("\n") == 2 + sum(map(len, report.values()))


def test_what_a_maskgit_model_cannot_do_is_left_out_with_a_note(tiny: Paella) -> None:
    config = replace(tiny.predictor.config, mask_token=True)
    with torch.random.fork_rng():
        hiding = Paella(TokenPredictor(config).eval(), tiny.vqgan, tiny.clip, tiny.settings, tiny.size)
        report = evaluate_edits(hiding, 2, names=NAMES)
    assert set(report) == {"inpaint", "outpaint", "vary", "interpolate", "restyle", "compose"}
    assert "| restyle | not measured | a MaskGIT model cannot start from noisy tokens |" in format_edits(report)


def test_a_seam_is_a_step_at_the_border_of_the_mask() -> None:
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (16, 16, 3))
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 8:] = True
    assert seam([Image.fromarray(ramp.copy())], [mask]) == pytest.approx(1)
    assert seam([Image.fromarray(ramp.swapaxes(0, 1).copy())], [mask.T]) == pytest.approx(1)
    stepped = ramp + np.where(mask.numpy()[..., None], 20, 0).astype(np.uint8)
    assert seam([Image.fromarray(stepped)] * 2, [mask, mask]) == pytest.approx(3)
    assert seam([Image.fromarray(stepped), Image.fromarray(ramp.copy())], [mask, mask]) == pytest.approx(2)
