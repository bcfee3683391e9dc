"""How good is each part of a model by itself? Measured on scenes that training never draws."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paella.data.render import BACKGROUND_JITTER
from paella.data.scene import BACKGROUNDS, COUNTS, LAYOUT_SHARES, LAYOUTS, Scene, held_out
from paella.data.scenes import Scenes
from paella.data.vocabulary import objects
from paella.data.wordings import captions
from paella.evaluate.clip_score import unit_embeddings
from paella.evaluate.metrics import by_noise_level, mean_where
from paella.evaluate.scenes import KINDS, held_out_prompts, real_pictures
from paella.images import to_tensor
from paella.labels import Labels
from paella.method import method_of

if TYPE_CHECKING:
    from paella.clip import Clip
    from paella.pipeline import Paella

SCENES = 512  # for VQGAN and predictor
PAIRS = 400  # for CLIP's order
COUNTED_ON = 3  # backgrounds, for CLIP's counts


def evaluate_parts(
    pipeline: Paella,
    seed: int = 0,
    names: Sequence[str] | None = None,
    *,
    snap: int = 1,
    jitter: int = BACKGROUND_JITTER,
) -> dict[str, Any]:
    """Figures of the VQGAN, CLIP and the predictor.

    Args:
        seed: of scenes and noise; 0 has the gallery that CLIP's own recipe reports on.
        names: objects to draw from; by default those of the built-in model.
        snap, jitter: those of the pictures for VQGAN and predictor: what the model was trained with.

    Returns:
        "vqgan": PSNR in dB and the share of codes used; "clip": R@1 and what chance gives, over 1,000 hard captions,
        `pair_order` and `counts_found`; "predictor": for each range of t its loss (nats), accuracy, and the share of
        tokens that are right unworked.
    """
    from paella.train.clip import hard_gallery, retrieval
    from paella.train.vqgan import reconstruction_figures

    shares = dict(zip(LAYOUTS, LAYOUT_SHARES, strict=True))
    prompts = [
        prompt
        for kind, layouts in KINDS.items()
        for prompt in held_out_prompts(round(SCENES * sum(shares[it] for it in layouts)), kind, seed, names)
    ]
    pictures = real_pictures([scene for scene, _ in prompts], pipeline.size, seed, snap=snap, jitter=jitter)
    pixels = to_tensor(pictures).to(pipeline.device)
    gallery = hard_gallery(Scenes(pipeline.size, names=names), seed + 1)
    return {
        "vqgan": reconstruction_figures(pipeline.vqgan, pixels),
        "clip": {
            "R@1": retrieval(clip_of(pipeline), *gallery),
            "chance": 1 / len(gallery[1]),
            "order": pair_order(clip_of(pipeline), pipeline.size, seed, names),
            "counts": counts_found(clip_of(pipeline), pipeline.size, seed, names),
        },
        "predictor": predictor_figures(pipeline, pixels, [words for _, words in prompts], seed),
    }


def clip_of(pipeline: Paella) -> Clip:
    """The model's CLIP.

    Raises:
        ValueError: it has none.
    """
    if isinstance(pipeline.clip, Labels):
        raise ValueError("model: knows labels alone, and this asks in sentences; use paella evaluate labels")
    return pipeline.clip


def pair_order(clip: Clip, size: int, seed: int = 0, names: Sequence[str] | None = None) -> float:
    """The share of held-out pairs whose picture is nearer to its caption than to that of the pair swapped.

    A half is chance. Retrieval hardly shows this: a model that knows no order still finds most captions.
    """
    prompts = held_out_prompts(PAIRS, "pair", seed, names)
    pictures = real_pictures([scene for scene, _ in prompts], size, seed)
    swapped = [
        captions(replace(scene, objects=scene.objects[::-1]))[captions(scene).index(words)] for scene, words in prompts
    ]
    image, text = unit_embeddings(clip, pictures, [words for _, words in prompts] + swapped)
    own, other = text.chunk(2)
    return ((image * own).sum(1) > (image * other).sum(1)).float().mean().item()


def counts_found(clip: Clip, size: int, seed: int = 0, names: Sequence[str] | None = None) -> float | None:
    """The share of pictures of several of one object, in numbers of it that training never saw, that are nearest to
    their own caption among those of all objects, numbers and a few backgrounds. None: of these names all numbers are
    trained on.

    A predictor can hardly draw what its CLIP does not tell from other things.
    """
    from paella.train.clip import nearest_captions

    scenes = [
        Scene((name,) * count, background, "count")
        for background in list(BACKGROUNDS)[:COUNTED_ON]
        for name in (objects() if names is None else names)
        for count in COUNTS
    ]
    judged = [index for index, scene in enumerate(scenes) if held_out(scene)]
    if not judged:
        return None
    pictures = real_pictures([scenes[index] for index in judged], size, seed)
    found = nearest_captions(clip, pictures, [captions(scene)[0] for scene in scenes])
    return sum(map(operator.eq, found, judged)) / len(judged)


def predictor_figures(
    pipeline: Paella, pixels: Tensor, captions: Sequence[str], seed: int
) -> dict[str, dict[str, float]]:
    """For each range of t: mean loss, accuracy and copy baseline, on pixels (B,3,H,W) in [0, 1]."""
    t, figures = figures_of_each(pipeline, pixels, captions, seed)
    return {
        level: {name: float(mean) for name, mean in means.items()}
        for level, means in by_noise_level(t, figures).items()
    }


@torch.inference_mode()
def figures_of_each(
    pipeline: Paella, pixels: Tensor, captions: Sequence[str], seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A time t (B,) for each of the pixels (B,3,H,W) in [0, 1], evenly spread over [0, 1], and what the predictor makes
    of the picture noised to it: "loss" (nats), "accuracy" and "copied" (the share right unworked), (B,) each."""
    count, codes, device = len(captions), pipeline.vqgan.config.n_embed, pixels.device
    method = method_of(pipeline.predictor)
    random = torch.Generator().manual_seed(seed)
    t = (torch.randperm(count, generator=random) + 0.5) / count  # in an order that knows no layout
    rows = []  # of each picture: loss, accuracy, copied
    for part in torch.arange(count).split(32):
        u = pipeline.vqgan.encode(pixels[part])
        noise = torch.randint(codes, u.shape, generator=random).to(device)
        noisy = method.corrupt(u, t[part].to(device), noise, torch.rand(u.shape, generator=random).to(device))
        condition = torch.cat([pipeline.clip.embed_text([captions[i]]) for i in part.tolist()])
        logits = pipeline.predictor(noisy, condition, t[part].to(device)).float()
        each = (F.cross_entropy(logits, u, reduction="none"), logits.argmax(1) == u, noisy == u)
        rows.append(torch.stack([mean_where(values, method.counted(noisy)) for values in each], 1).cpu())
    return t, dict(zip(("loss", "accuracy", "copied"), torch.cat(rows).unbind(1), strict=True))


def format_parts(figures: dict[str, Any]) -> str:
    """The figures of `evaluate_parts` as Markdown."""
    vqgan, clip = figures["vqgan"], figures["clip"]
    counts = (
        "" if clip["counts"] is None else f", pictures of counts that find their caption {100 * clip['counts']:.1f} %"
    )
    lines = [
        f"VQGAN: PSNR {vqgan['PSNR']:.2f} dB, {100 * vqgan['codes used']:.1f} % of the codes used. "
        f"CLIP: R@1 {100 * clip['R@1']:.1f} % (chance {100 * clip['chance']:.1f} %), "
        f"order of a pair {100 * clip['order']:.1f} % (chance 50 %){counts}.",
        "",
        "| predictor, at t | loss (nats) | accuracy, % | right unworked, % |",
        "|---|---|---|---|",
    ]
    for level, row in figures["predictor"].items():
        lines.append(f"| {level} | {row['loss']:.3f} | {100 * row['accuracy']:.1f} | {100 * row['copied']:.1f} |")
    return "\n".join(lines) + "\n"
