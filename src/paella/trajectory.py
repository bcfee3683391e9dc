"""How a picture came about: what each step left, how sure the predictor was, and how much still changed.

They are there to see a known failure by: tokens that collapse to one colour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from paella.canvas import Canvas
from paella.denoiser import Denoise, Denoiser
from paella.images import contact_sheet
from paella.logits import entropy


@dataclass(frozen=True)
class Step:
    """One step of one picture. Its figures are of the tokens that are not frozen; NaN where there are none.

    Attributes:
        picture: the tokens after the step, decoded; but for the last step a share of them is noise again.
        t: the time in (0, 1] at which the predictor was asked.
        entropy: of the predictor's distribution after guidance and before the filter, in nats: the mean over tokens.
        changed: the share of tokens in [0, 1] that are not what they were before the step.
    """

    picture: Image.Image
    t: float
    entropy: float
    changed: float

    def figures(self) -> dict[str, float]:
        """What there is beside the picture, for JSON."""
        return {"t": self.t, "entropy": self.entropy, "changed": self.changed}


class Recorder:
    """Watches one run of the sampling loop, which knows nothing of it."""

    def __init__(self, canvas: Canvas) -> None:
        self._free = ~canvas.frozen
        self._grids = [canvas.tokens]
        self._asked: list[tuple[float, list[float]]] = []  # t, and the entropy of each picture

    def watched(self, denoise: Denoise) -> Denoise:
        """The same callable, whose answers are noted."""

        asked = Denoiser.of(denoise)

        def watching(tokens: Tensor, t: Tensor) -> Tensor:
            logits = asked.ask(tokens, t)
            self._asked.append((t[0].item(), self._mean(entropy(logits.everywhere()))))
            return logits.features

        return Denoiser(watching, asked.last)

    def add(self, tokens: Tensor) -> None:
        """Notes the tokens (B,h,w) after a step."""
        self._grids.append(tokens)

    def trajectories(self, pictures: Callable[[Tensor], Iterable[Image.Image]]) -> list[list[Step]]:
        """The steps of each picture; `pictures` decodes tokens (B,h,w)."""
        steps: list[list[Step]] = [[] for _ in self._free]
        for (t, entropies), (before, after) in zip(self._asked, pairwise(self._grids), strict=True):
            figures = zip(pictures(after), entropies, self._mean(before != after), strict=True)
            for own, (picture, unsure, changed) in zip(steps, figures, strict=True):
                own.append(Step(picture, t, unsure, changed))
        return steps

    def _mean(self, values: Tensor) -> list[float]:
        """Over each picture's free tokens, of values (B,h,w)."""
        return torch.where(self._free, values.float(), torch.nan).flatten(1).nanmean(1).tolist()


def film_strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """The trajectories of pictures that were drawn with one: a row for each picture, its steps from left to right.

    Its `info` has the figures as JSON under "trajectory": for each picture its prompt, its seed and its steps.

    Raises:
        ValueError: they have no steps, as pictures restyled with strength 0.
    """
    frames, captions, record = [], [], []
    for picture in pictures:
        steps: list[Step] = picture.info["trajectory"]
        frames += [step.picture for step in steps]
        captions += [f"t {step.t:.2f}, entropy {step.entropy:.2f}, changed {step.changed:.0%}" for step in steps]
        about = {name: picture.info[name] for name in ("prompt", "seed")}
        record.append({**about, "steps": [step.figures() for step in steps]})
    if not frames:
        raise ValueError("trajectory: these pictures have no steps")
    strip = contact_sheet(frames, captions, columns=len(frames) // len(pictures))
    strip.info["trajectory"] = json.dumps(record)
    return strip
