"""Do generated emoji scenes show what their prompts ask for? Judged by matching, without a learned model.

The same is asked of real pictures of the scenes, which tells how good the judge is, and of their reconstructions by the
tokenizer, which generated pictures can hardly be expected to beat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from paella.data.render import BACKGROUND_JITTER, OBJECT_SIZES, render
from paella.data.scene import LAYOUT_SHARES, LAYOUTS, Layout, Scene, any_held_out, draw_scene, held_out
from paella.data.vocabulary import objects
from paella.data.wordings import caption
from paella.evaluate.matching import Matcher, background_colour, ranks, rooms

if TYPE_CHECKING:
    from paella.pipeline import Paella

Kind = Literal["single", "small", "pair"]
KINDS: dict[Kind, tuple[Layout, ...]] = {
    "single": ("single",),
    "small": ("small",),
    "pair": ("horizontal", "vertical"),
}

# Last words of the random seeds, so that no stream is one that training draws from (not 0, which to numpy is no word).
PROMPTS, PICTURES = 1001, 1002

Rate = dict[str, float]  # rate; low, high: its 95 % Wilson interval; n: what it is a share of

ROWS = {
    "object_top1": "one object, named right",
    "object_top5": "one object, among the best five",
    "single_top1": "· in the middle, named right",
    "single_top5": "· in the middle, among the best five",
    "small_top1": "· small, named right",
    "small_top5": "· small, among the best five",
    "pair_both_top1": "a pair, both named right, each in its half",
    "pair_both_top5": "a pair, both among the best five",
    "pair_each_top1": "· each object alone, named right",
    "pair_each_top5": "· each object alone, among the best five",
    "pair_swapped": "· both named right, in each other's half",
    "relation": "· each in its own half, where both are named right in these or in each other's",
    "background": "background, where the prompt names it",
    "background_single": "· one object in the middle",
    "background_small": "· one small object",
    "background_pair": "· a pair",
}


class Pipeline(Protocol):
    """What `evaluate_scenes` needs of `paella.Paella`."""

    def generate(self, prompt: list[str], *, seed: int, **settings: Any) -> list[Image.Image]: ...

    def reconstruct(self, pictures: list[Image.Image], /) -> list[Image.Image]: ...


def held_out_prompts(n: int, kind: Kind, seed: int, names: Sequence[str] | None = None) -> list[tuple[Scene, str]]:
    """`n` scenes with plain captions, drawn from other seeds than training's; pairs are those kept from training.

    Args:
        names: objects to draw from; by default those of the built-in model.

    Raises:
        ValueError: no pair of `names` is kept from training.
    """
    names = list(objects() if names is None else names)
    if kind == "pair" and not any_held_out(names):
        raise ValueError(f"of these {len(names)} objects no pair is kept from training: there is none to evaluate")
    prompts = []
    for index in range(n):
        rng = np.random.default_rng((seed, index, list(KINDS).index(kind), PROMPTS))
        accept = held_out if kind == "pair" else lambda scene: True
        scene = draw_scene(rng, names, layouts=KINDS[kind], accept=accept)
        prompts.append((scene, caption(scene, rng)))
    return prompts


def real_pictures(
    scenes: Sequence[Scene], size: int, seed: int, *, snap: int = 1, jitter: int = BACKGROUND_JITTER
) -> list[Image.Image]:
    """One true picture of each scene; for `snap` and `jitter` see `paella.data.render.render`."""
    return [
        render(scene, size, np.random.default_rng((seed, index, PICTURES)), snap=snap, jitter=jitter)
        for index, scene in enumerate(scenes)
    ]


def trained_on(pipeline: Paella) -> dict[str, int]:
    """`snap` and `jitter` of the scenes that the model learned from, as its recipe has them; without one, those of
    scenes in general."""
    data = (pipeline.recipe or {}).get("data", {})
    return {"snap": data.get("snap", 1), "jitter": data.get("jitter", BACKGROUND_JITTER)}


def evaluate_scenes(
    pipeline: Pipeline,
    n: int = 500,
    seed: int = 0,
    *,
    names: Sequence[str] | None = None,
    snap: int = 1,
    jitter: int = BACKGROUND_JITTER,
    on_pictures: Callable[[list[Image.Image], list[str]], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Scores `n` generated pictures of each of the `KINDS`, and real and reconstructed pictures of the same scenes.

    Args:
        pipeline: picture i of its answer is generated with seed `seed + i`; its pictures are square, of one size.
        names: objects to draw from, all of which compete in every decision; by default those of the built-in model.
        snap, jitter: those of the real pictures; `trained_on` knows the model's.
        on_pictures: is given the generated pictures and their captions, say for a contact sheet.
        settings: of `pipeline.generate`.

    Returns:
        A report that JSON can hold: what was asked, the seconds that each step took, and under "scores" the answers of
        `score_scenes` for the pictures "generated", "reconstructed" and "real".

    Raises:
        ValueError: the pipeline's pictures are not square, of one size and one to a prompt.
    """
    prompts = [prompt for kind in KINDS for prompt in held_out_prompts(n, kind, seed, names)]
    scenes, captions = [scene for scene, _ in prompts], [words for _, words in prompts]
    clock = [time.perf_counter()]
    generated = pipeline.generate(captions, seed=seed, **settings)
    clock.append(time.perf_counter())
    if on_pictures is not None:
        on_pictures(generated, captions)
    pictures = beside_real(pipeline, generated, scenes, seed, snap=snap, jitter=jitter)
    clock.append(time.perf_counter())
    scores = {name: score_scenes(those, scenes, captions, names) for name, those in pictures.items()}
    clock.append(time.perf_counter())
    return {
        "n": n,
        "seed": seed,
        "snap": snap,
        "jitter": jitter,
        "settings": settings,
        "objects": len(objects() if names is None else names),
        "seconds": dict(zip(("generating", "reconstructing", "judging"), np.diff(clock).tolist(), strict=True)),
        "scores": scores,
    }


def beside_real(
    pipeline: Pipeline, generated: list[Image.Image], scenes: Sequence[Scene], seed: int, *, snap: int, jitter: int
) -> dict[str, list[Image.Image]]:
    """The generated pictures of the scenes, and what they are to be compared with."""
    real = real_pictures(scenes, generated[0].height, seed, snap=snap, jitter=jitter)
    return {"generated": generated, "reconstructed": pipeline.reconstruct(real), "real": real}


def score_scenes(
    pictures: Sequence[Image.Image],
    scenes: Sequence[Scene],
    captions: Sequence[str],
    names: Sequence[str] | None = None,
) -> dict[str, Rate]:
    """How often the pictures show the scenes.

    Args:
        pictures: square, of one size; one to a scene.
        captions: the prompts; a background counts only where the prompt names it.
        names: all the objects that compete in every decision; by default those of the built-in model.

    Returns:
        Those of `ROWS` that the scenes at hand allow. "One object" is both kinds, weighted as `LAYOUT_SHARES` are.

    Raises:
        ValueError: the pictures are not square and of one size, or not one to a scene and a caption, or none, or an
            object of a scene is not in `names`.
    """
    if not len(pictures) == len(scenes) == len(captions) > 0:
        raise ValueError(f"{len(pictures)} pictures, {len(scenes)} scenes, {len(captions)} captions: not one to one")
    size = pictures[0].width
    if any(picture.size != (size, size) for picture in pictures):
        raise ValueError(f"expected square pictures of one size, not {sorted({picture.size for picture in pictures})}")
    pixels = torch.from_numpy(np.stack([np.array(picture.convert("RGB")) for picture in pictures])).permute(0, 3, 1, 2)
    matcher = Matcher(list(objects() if names is None else names), size)
    backgrounds = background_colour(pixels)

    rates: dict[str, Rate] = {}
    all_told: list[bool] = []
    for kind, layouts in KINDS.items():
        own, swapped = (
            torch.cat(parts)
            for parts in zip(*(object_ranks(matcher, pixels, scenes, layout) for layout in layouts), strict=True)
        )
        if not len(own):
            continue
        for k in (1, 5):
            hits = own < k  # (scenes, objects in a scene)
            if kind == "pair":
                rates[f"pair_both_top{k}"] = share(hits.all(1))
                rates[f"pair_each_top{k}"] = wilson(hits.float().mean().item(), len(hits))  # both are of one picture
            else:
                rates[f"{kind}_top{k}"] = share(hits[:, 0])
        if kind == "pair":
            rates["pair_swapped"] = share((swapped < 1).all(1))
            both = (own < 1).all(1) | (swapped < 1).all(1)
            rates["relation"] = share((own < 1).all(1)[both])
        told = [
            told == scene.background
            for told, scene, words in zip(backgrounds, scenes, captions, strict=True)
            if scene.layout in layouts and "background" in words
        ]
        rates[f"background_{kind}"] = share(told)
        all_told += told
    rates["background"] = share(all_told)
    for k in (1, 5):
        rates[f"object_top{k}"] = _mixed({kind: rates.get(f"{kind}_top{k}", share([])) for kind in ("single", "small")})
    return {row: rates[row] for row in ROWS if row in rates and rates[row]["n"] > 0}


def object_ranks(matcher: Matcher, pixels: Tensor, scenes: Sequence[Scene], layout: Layout) -> tuple[Tensor, Tensor]:
    """For each object of the scenes of that layout, how many other candidates match no worse: (scenes, objects).

    Twice: where the scene has the object, and where it has the other one of the pair.
    """
    members = [index for index, scene in enumerate(scenes) if scene.layout == layout]
    places = rooms(layout, matcher.size)
    scores = torch.stack([matcher.scores(pixels[members], place, OBJECT_SIZES[layout]) for place in places], 1)
    asked = [[matcher.names.index(name) for name in scenes[index].objects] for index in members]
    right = torch.tensor(asked, dtype=torch.long).reshape(len(members), len(places))
    return ranks(scores, right), ranks(scores, right.flip(1))


def share(hits: Sequence[bool] | Tensor) -> Rate:
    """How many are True, as a rate with its interval."""
    return wilson(float(sum(hits)) / max(len(hits), 1), len(hits))


def _mixed(rates: dict[Layout, Rate]) -> Rate:
    """The rate over several layouts, weighted as `LAYOUT_SHARES` are, where there are numbers for all of them."""
    shares = np.array([LAYOUT_SHARES[LAYOUTS.index(layout)] for layout in rates])
    shares /= shares.sum()
    counts = np.array([rate["n"] for rate in rates.values()])
    if not counts.all():
        return share([])
    # unequal weights make some prompts count less: the interval is that of so many equal ones
    effective = 1 / (shares**2 / counts).sum()
    return wilson(float(shares @ [rate["rate"] for rate in rates.values()]), float(effective))


def wilson(rate: float, n: float) -> Rate:
    """A rate over `n` cases with its 95 % Wilson score interval."""
    if n == 0:
        return {"rate": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    z = 1.96
    centre, spread = rate + z**2 / (2 * n), z * sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    low, high = (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)
    return {"rate": rate, "low": max(low, 0.0), "high": min(high, 1.0), "n": n}


def format_table(report: dict[str, Any]) -> str:
    """The report of `evaluate_scenes` as Markdown: percentages with their 95 % intervals."""
    settings = "".join(f", {name} {value}" for name, value in report["settings"].items() if value is not None)
    lines = [
        f"{report['n']} held-out prompts of each kind, seed {report['seed']}{settings}. In every decision all"
        f" {report['objects']} objects compete. Per cent, with 95 % Wilson intervals. The first two rows weight"
        " objects in the middle and small ones 8 to 3, as scenes are mixed by default; their n is that of as many equal"
        " prompts.",
        "",
    ]
    return "\n".join(lines) + "\n" + format_rates(report["scores"], ROWS)


def format_rates(scores: Mapping[str, Mapping[str, Rate]], rows: Mapping[str, str]) -> str:
    """Rates as a Markdown table.

    Args:
        scores: column -> row -> its rate.
        rows: row -> what it is called, in their order.
    """
    lines = ["| asked | n | " + " | ".join(scores) + " |", "|---|---|" + "---|" * len(scores)]
    for row, meaning in rows.items():
        rates = [found.get(row) for found in scores.values()]
        if told := [rate for rate in rates if rate is not None]:
            n, cells = told[0]["n"], [_cell(rate, told[0]["n"]) for rate in rates]
            lines.append(f"| {meaning} | {n:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rate: Rate | None, n: float) -> str:
    """A rate in per cent, with its own n where that is not the row's."""
    if rate is None:
        return ""
    if rate["n"] == 0:
        return "–"
    own = "" if rate["n"] == n else f", n = {rate['n']:.0f}"
    return f"{100 * rate['rate']:.1f} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f}{own})"
