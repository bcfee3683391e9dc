"""Does each ability do what it is for? Judged on emoji scenes by matching, as `evaluate.scenes` judges generation.

One function for each ability: from a pipeline and cases to figures. Cases are real scenes, from seeds that training
never uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from paella.baselines.maskgit import MaskGIT
from paella.data.render import BACKGROUND_JITTER, OBJECT_SIZES
from paella.data.scene import LAYOUTS, Layout, Scene, draw_scene, unseen
from paella.data.vocabulary import objects
from paella.data.wordings import captions
from paella.evaluate.clip_score import unit_embeddings
from paella.evaluate.matching import Matcher, ranks, rooms
from paella.evaluate.parts import clip_of
from paella.evaluate.scenes import object_ranks, real_pictures, share, wilson
from paella.images import Box, to_tensor
from paella.method import method_of
from paella.pipeline import Paella

CASES = 1003  # last word of the random seeds
GAP = 2  # pixels between the middle and a mask's border: just at the middle, many an object begins
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
Figures = dict[str, Any]


@dataclass
class Cases:
    """Real scenes to edit, and the other object that each is to show.

    Attributes:
        scenes, pictures: what there is.
        others: for each, the scene with its last object exchanged.
        matcher: names any object of the vocabulary at hand.
        seed: picture i is made with seed `seed + i`.
    """

    scenes: list[Scene]
    pictures: list[Image.Image]
    others: list[Scene]
    matcher: Matcher
    seed: int

    @classmethod
    def draw(
        cls,
        layouts: Sequence[Layout],
        n: int,
        size: int,
        seed: int,
        names: Sequence[str] | None = None,
        snap: int = 1,
        jitter: int = BACKGROUND_JITTER,
    ) -> Cases:
        """`n` scenes of those layouts; pairs are held-out ones before the exchange and, if there are any, after it."""
        names = list(objects() if names is None else names)
        scenes, others = [], []

        for index in range(n):
            rng = np.random.default_rng((seed, index, sum(map(len, layouts)), CASES))
            scene = draw_scene(rng, names, layouts=layouts, accept=unseen)
            others_of_it = [replace(scene, objects=(*scene.objects[:-1], name)) for name in names]
            fitting = [one for one in others_of_it if len({*scene.objects, *one.objects}) > len(scene.objects)]
            fitting = [one for one in fitting if unseen(one)] or fitting
            if not fitting:
                raise ValueError(f"objects: an edit asks for another than {' and '.join(scene.objects)}: there is none")
            scenes.append(scene)
            others.append(fitting[rng.integers(len(fitting))])
        pictures = real_pictures(scenes, size, seed, snap=snap, jitter=jitter)
        return cls(scenes, pictures, others, Matcher(names, size), seed)

    def __len__(self) -> int:
        return len(self.scenes)

    def hits(
        self, pictures: Sequence[Image.Image], asked: Sequence[str], room: Box | None = None, layout: Layout = "single"
    ) -> Tensor:
        """(B,) bool: whether the object asked for matches best of all, in that room of the pictures."""
        scores = self.matcher.scores(to_tensor(pictures), room, OBJECT_SIZES[layout])
        right = torch.tensor([self.matcher.names.index(name) for name in asked])
        return ranks(scores, right) == 0

    def each(self, edit: Callable[[int], list[Image.Image]]) -> list[Image.Image]:
        return [picture for index in range(len(self)) for picture in edit(index)]


def inpainting(pipeline: Paella, singles: Cases, pairs: Cases) -> Figures:
    """Half of an object masked, no prompt; and one object of a pair masked, another one asked for."""
    size = pipeline.size
    halves = [_half(size, index) for index in range(len(singles))]
    completed = singles.each(lambda i: pipeline.inpaint(singles.pictures[i], halves[i].numpy(), seed=singles.seed + i))
    own = [scene.objects[0] for scene in singles.scenes]
    strangers = singles.pictures[1:] + singles.pictures[:1]
    pasted = [
        Image.composite(other, picture, Image.fromarray(half.numpy()))
        for other, picture, half in zip(strangers, singles.pictures, halves, strict=True)
    ]
    right = torch.zeros(size, size, dtype=torch.bool)
    right[:, size // 2 - GAP :] = True
    masks = [*halves, *[right] * len(pairs)]
    exchanged = pairs.each(
        lambda i: pipeline.inpaint(pairs.pictures[i], right.numpy(), captions(pairs.others[i])[0], seed=pairs.seed + i)
    )
    same = [
        _unchanged(before, after, mask)
        for befores, afters, masks in (
            (singles.pictures, completed, halves),
            (pairs.pictures, exchanged, [right] * len(pairs)),
        )
        for before, after, mask in zip(befores, afters, masks, strict=True)
    ]
    asked = [scene.objects[1] for scene in pairs.others]
    return {
        "pixels outside the mask identical": share(same),
        "half an object masked, no prompt: the object found": share(singles.hits(completed, own)),
        "· an unrelated picture pasted into the half": share(singles.hits(pasted, own)),
        "another object asked for: found in the mask": share(
            pairs.hits(exchanged, asked, rooms("horizontal", size)[1], "horizontal")
        ),
        "gradient across the mask's border, of that beside it": seam(completed + exchanged, masks),
        "· in the pictures before": seam(singles.pictures + pairs.pictures, masks),
        "· with an unrelated picture in the mask": seam(pasted, halves),
    }


def outpainting(pipeline: Paella, singles: Cases) -> Figures:
    """The picture continued by as much again on one side, or round a corner, where another object is asked for."""
    size = pipeline.size
    ways: list[tuple[str, ...]] = [("left",), ("right",), ("top",), ("bottom",), ("right", "bottom")]
    same, new = [], []
    for index, picture in enumerate(singles.pictures):
        sides = ways[index % len(ways)]
        x, y = size * ("left" in sides), size * ("top" in sides)
        far = (size * ("right" in sides), size * ("bottom" in sides))
        corner = (far[0], far[1]) if x == y == 0 else (0, 0)
        box = (*corner, corner[0] + size, corner[1] + size)
        (wide,) = pipeline.outpaint(
            picture,
            captions(singles.scenes[index])[0],
            **dict.fromkeys(sides, size),  # type: ignore[arg-type]
            regions=[(captions(singles.others[index])[0], box)],
            seed=singles.seed + index,
        )
        same.append(wide.crop((x, y, x + size, y + size)).tobytes() == picture.tobytes())
        new.append(wide.crop(box))
    return {
        "known pixels identical": share(same),
        "the object asked for found in the new part": share(
            singles.hits(new, [one.objects[0] for one in singles.others])
        ),
    }


def variations(pipeline: Paella, singles: Cases) -> Figures:
    """Two variations of each picture."""
    pictures = singles.each(lambda i: pipeline.vary(singles.pictures[i], 2, seed=singles.seed + 2 * i))
    one, two = (to_tensor(pictures[start::2]) for start in (0, 1))
    found = singles.hits(pictures, [scene.objects[0] for scene in singles.scenes for _ in "ab"])
    again = (to_tensor(pipeline.reconstruct(singles.pictures)) - to_tensor(singles.pictures)).abs().mean()
    return {
        "the source's object found": wilson(found.float().mean().item(), len(singles)),  # two are of one source
        "distance between two, of that of re-encoding": ((one - two).abs().mean() / again).item(),
    }


def interpolation(pipeline: Paella, singles: Cases, frames: int = 8) -> Figures:
    """From each scene's prompt to that of another object."""
    exact, ordered = [], []
    for index, (scene, other) in enumerate(zip(singles.scenes, singles.others, strict=True)):
        ends, seed = [captions(scene)[0], captions(other)[0]], singles.seed + index
        row = pipeline.interpolate(ends[0], ends[1], frames, seed=seed)
        plain = [pipeline.generate(text, seed=seed)[0].tobytes() for text in ends]
        exact.append([row[0].tobytes(), row[-1].tobytes()] == plain)
        image, text = unit_embeddings(clip_of(pipeline), row, ends)
        nearer = (image @ text.T).diff(dim=1)[:, 0]  # above 0: nearer to the end
        ordered.append(bool(nearer[: frames // 2].mean() < 0 < nearer[-(frames // 2) :].mean()))
    return {
        "first and last frame are the plain pictures": share(exact),
        "each half nearer to its end in CLIP space": share(ordered),
    }


def structural_editing(pipeline: Paella, scenes: Cases) -> Figures:
    """Each picture under the prompt of another object, of one of the two in a pair, over strengths."""
    if isinstance(method_of(pipeline.predictor), MaskGIT):
        return {"not measured": "a MaskGIT model cannot start from noisy tokens"}
    texts = [captions(other)[0] for other in scenes.others]
    unrelated = pipeline.generate([*texts[1:], texts[0]], seed=scenes.seed + 10_000)
    figures: Figures = {"correlation with an unrelated picture, 8 x 8": _alike(scenes.pictures, unrelated)}
    for strength in STRENGTHS:
        edited = scenes.each(
            lambda i, strength=strength: pipeline.restyle(  # type: ignore[misc]
                scenes.pictures[i], texts[i], strength=strength, seed=scenes.seed + i
            )
        )
        pixels = to_tensor(edited)
        hits = torch.cat(
            [object_ranks(scenes.matcher, pixels, scenes.others, layout)[0][:, -1] == 0 for layout in LAYOUTS]
        )
        figures[f"strength {strength}: the object asked for found"] = share(hits)
        figures[f"strength {strength}: correlation with the source, 8 x 8"] = _alike(scenes.pictures, edited)
    return figures


def multi_conditioning(pipeline: Paella, pairs: Cases) -> Figures:
    """Two prompts, two halves, each of the size that the model knows."""
    size = pipeline.size
    pictures = []
    for index, scene in enumerate(pairs.scenes):
        texts = [captions(replace(scene, objects=(name,), layout="single"))[0] for name in scene.objects]
        regions = list(zip(texts, ("left", "right"), strict=True))
        pictures += pipeline.compose(regions, size=(size, 2 * size), seed=pairs.seed + index)
    found = [
        pairs.hits(
            [picture.crop((x, 0, x + size, size)) for picture in pictures], [one.objects[side] for one in pairs.scenes]
        )
        for side, x in enumerate((0, size))
    ]
    return {
        "both objects, each in its half": share(found[0] & found[1]),
        "· each object alone": wilson(torch.cat(found).float().mean().item(), len(pictures)),  # two are of one picture
    }


def evaluate_edits(
    pipeline: Paella,
    n: int = 100,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    snap: int = 1,
    jitter: int = BACKGROUND_JITTER,
) -> dict[str, Figures]:
    """Every ability on `n` cases: {ability: {figure: a rate with its interval, a number, or why there is none}}."""
    singles, pairs, scenes = (
        Cases.draw(layouts, n, pipeline.size, seed, names, snap, jitter)
        for layouts in (("single",), ("horizontal",), LAYOUTS)
    )
    return {
        "inpaint": inpainting(pipeline, singles, pairs),
        "outpaint": outpainting(pipeline, singles),
        "vary": variations(pipeline, singles),
        "interpolate": interpolation(pipeline, singles),
        "restyle": structural_editing(pipeline, scenes),
        "compose": multi_conditioning(pipeline, pairs),
    }


def format_edits(report: dict[str, Figures]) -> str:
    """The report as a Markdown table."""
    lines = ["| ability | figure | value |", "|---|---|---|"]
    for ability, figures in report.items():
        for name, value in figures.items():
            if isinstance(value, dict):
                low, high, rate = (f"{100 * value[key]:.1f}" for key in ("low", "high", "rate"))
                shown = f"{rate} % ({low}–{high}), n = {value['n']:.0f}"
            else:
                shown = value if isinstance(value, str) else f"{value:.2f}"
            lines.append(f"| {ability} | {name} | {shown} |")
    return "\n".join(lines) + "\n"


def _half(size: int, index: int) -> Tensor:
    """A mask of the left, right, upper or lower half, in turn."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    near, far = slice(0, size // 2), slice(size // 2, size)
    rows, columns = [(slice(None), near), (slice(None), far), (near, slice(None)), (far, slice(None))][index % 4]
    mask[rows, columns] = True
    return mask


def _unchanged(before: Image.Image, after: Image.Image, mask: Tensor) -> bool:
    return bool((np.asarray(before)[~mask.numpy()] == np.asarray(after)[~mask.numpy()]).all())


def seam(pictures: Sequence[Image.Image], masks: Sequence[Tensor]) -> float:
    """Mean gradient across the border of each picture's mask (H,W) bool, divided by that just inside and outside."""
    across, beside = [], []
    for pixels, mask in zip(to_tensor(pictures), masks, strict=True):
        for steps, inside in (  # of neighbours in a row, then in a column
            (pixels.diff(dim=2).abs().mean(0), mask),
            (pixels.diff(dim=1).abs().mean(0).T, mask.T),
        ):
            border = inside[:, 1:] != inside[:, :-1]
            near = torch.zeros_like(border)
            near[:, 1:] |= border[:, :-1]
            near[:, :-1] |= border[:, 1:]
            across.append(steps[border])
            beside.append(steps[near & ~border])
    return (torch.cat(across).mean() / torch.cat(beside).mean()).item()


def _alike(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Mean correlation of the pictures with the others, both averaged to 8 x 8 places."""
    one, two = (F.adaptive_avg_pool2d(to_tensor(p), 8).flatten(1) for p in (pictures, others))
    one, two = (F.normalize(x - x.mean(1, keepdim=True), dim=1) for x in (one, two))
    return (one * two).sum(1).mean().item()
