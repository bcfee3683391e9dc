"""How good are a model's pictures as a whole? Sets of pictures compared by features, pictures with their captions.

Of 2n real pictures the first n are the reference. The captions of the other n are what the model is asked for, and
these n pictures themselves are judged as if it had made them: so every score stands beside what a perfect model would
get, at the same n.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Subset

from paella.checkpoint import CheckpointError, about_argument, read_tensors, write_tensors
from paella.data import PictureData
from paella.data.folder import Folder
from paella.data.render import BACKGROUND_JITTER, render
from paella.data.scene import LAYOUTS, any_held_out, draw_scene, unseen
from paella.data.vocabulary import objects
from paella.data.wordings import caption
from paella.evaluate.features import Extractor
from paella.evaluate.metrics import (
    Estimate,
    bootstrap,
    clip_chance,
    codebook_usage,
    estimate,
    frechet_distance,
    kernel_distance,
    precision,
    psnr,
    recall,
    ssim,
)
from paella.images import to_pictures, to_tensor
from paella.processes import gathered, place

if TYPE_CHECKING:
    from paella.pipeline import Paella

QUALITY = 1005  # last word of the random seeds
EVERY = 32  # pictures at a time; then what was seen of them is written. A multiple of what is drawn at once
FEWEST = 10  # pictures: manifolds of halves need four

ROWS = {
    "frechet": "Fréchet distance, less is better",
    "kernel": "kernel distance x 1000, less is better",
    "precision": "precision",
    "recall": "recall",
    "clip": "CLIP score",
    "clip_chance": "· with shuffled captions (chance)",
}


class HeldOutScenes:
    """`scenes[index]` is (RGB picture, caption): plainly worded, and mixed as scenes are by default. Pairs are those
    kept from training, where there are any; the rest is drawn from other seeds.

    Args:
        size: side of the pictures, in pixels.
        names: objects to draw from; by default those of the built-in model.
        snap, jitter: see `paella.data.render.render`: what the model was trained with.
    """

    def __init__(
        self,
        size: int,
        seed: int = 0,
        *,
        names: Sequence[str] | None = None,
        snap: int = 1,
        jitter: int = BACKGROUND_JITTER,
    ) -> None:
        self.size, self.seed, self.snap, self.jitter = size, seed, snap, jitter
        self.names = list(objects() if names is None else names)
        self.layouts = LAYOUTS if any_held_out(self.names) else LAYOUTS[:2]

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        rng = np.random.default_rng((self.seed, index, QUALITY))
        scene = draw_scene(rng, self.names, layouts=self.layouts, accept=unseen)
        words = caption(scene, rng)
        return render(scene, self.size, rng, snap=self.snap, jitter=self.jitter), words


def folder_pictures(path: Path, n: int, size: int, seed: int = 0) -> PictureData:
    """2n pictures of a folder with captions (`paella.data.folder`), in an order that depends on the seed.

    Raises:
        ValueError: there is no such folder, or it has fewer.
    """
    try:
        folder = Folder(path, size)
    except ValueError as error:
        raise ValueError(f"data: {error}") from error
    if folder.skipped:
        first = ": ".join(folder.skipped[0])
        warnings.warn(f"data: {len(folder.skipped)} skipped, the first {first}", stacklevel=2)
    if len(folder) < 2 * FEWEST:
        raise ValueError(f"data: needs at least {2 * FEWEST} pictures, and {path} has {len(folder)} that can be used")
    if len(folder) < 2 * n:
        raise ValueError(
            f"n: {n} pictures are compared with {n} others, and {path} has {len(folder)} that can be used;"
            f" at most {len(folder) // 2}"
        )
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(seed))
    return Subset(folder, order[: 2 * n].tolist())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Seen:
    """What is kept of a set of n pictures.

    Attributes:
        features: (n,d) float32.
        images: (n,e) float32, their CLIP embeddings of norm one.
    """

    features: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: slice) -> Seen:
        return Seen(self.features[part], self.images[part])

    def __add__(self, other: Seen) -> Seen:
        return Seen(torch.cat([self.features, other.features]), torch.cat([self.images, other.images]))


def look(extractor: Extractor, pictures: Sequence[Image.Image]) -> Seen:
    return Seen(*extractor.look(pictures))


def evaluate_quality(
    pipeline: Paella,
    real: PictureData,
    n: int,
    seed: int = 0,
    *,
    extractor: Extractor,
    prompts: Sequence[str] | None = None,
    work: Path | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> dict[str, Any] | None:
    """Scores `n` generated pictures, and beside them real and reconstructed ones.

    On several processes (`paella.processes`) each draws its share of the pictures, and the first does the rest.

    Args:
        real: pictures of the model's size with captions, at least 2n.
        seed: of the pictures (picture i has `seed + i`) and of the resamples.
        prompts: what is asked for in place of the real pictures' captions, from the start again where they are fewer
            than n.
        work: a file that keeps what was seen of generated pictures, every so many: a run that is interrupted goes on
            from there. It is gone in the end. Every process but the first has one of its own, its number in the name.
        cache: a folder for what was seen of the real pictures, in a file named after them and the extractor.
        progress: is told, as `progress(done, total)`, how many pictures this process has drawn.
        settings: of `pipeline.generate`.

    Returns:
        A report that JSON can hold: what was asked of which networks; under "scores" those of `ROWS` for the pictures
        "generated", "reconstructed" and "real"; under "tokenizer" how well it gives back the real ones. None for every
        process but the first.

    Raises:
        ValueError: fewer than `FEWEST` pictures, or than processes; or the work file is damaged, or of a run that asked
            for something else.
    """
    if n < FEWEST:
        raise ValueError(f"n: must be at least {FEWEST}, not {n}")
    number, processes = place()
    if n < processes:
        raise ValueError(f"n: must be at least one picture for each of the {processes} processes, not {n}")
    digest, captions = _contents(real, 2 * n)
    asked = captions[n:] if prompts is None else [prompts[i % len(prompts)] for i in range(n)]
    about = {
        "n": n,
        "processes": processes,
        "seed": seed,
        "prompts": hashlib.sha256("\n".join(asked).encode()).hexdigest(),
        "sampler": asdict(pipeline.settings) | settings,
        "model": {"name": pipeline.name, "sha256": pipeline.fingerprint()},
        "dtype": str(pipeline.dtype),
        "features": extractor.record,
    }
    own = range(n * number // processes, n * (number + 1) // processes)
    works = [] if work is None else [work.with_stem(f"{work.stem}-{i}") if i else work for i in range(processes)]
    its = works[number] if works else None
    parts = gathered(_generated(pipeline, asked, own, seed, extractor, its, about, progress, settings))
    if number > 0:
        return None
    generated = sum(parts[1:], parts[0])
    seen = _real(real, n, extractor, cache, digest)
    reconstructed, tokenizer = _reconstructed(pipeline, real, n, extractor)
    texts = extractor.read(captions[n:])
    scores = {
        "generated": score(seen[:n], generated, extractor.read(asked), seed),
        "reconstructed": score(seen[:n], reconstructed, texts, seed),
        "real": score(seen[:n], seen[n:], texts, seed),
    }
    for file in works:
        file.unlink(missing_ok=True)
    return {**about, "real pictures": digest, "scores": scores, "tokenizer": tokenizer}


def score(reference: Seen, seen: Seen, texts: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """Those of `ROWS`, each with its interval, of pictures with captions.

    Args:
        texts: (n,e), the captions' CLIP embeddings of norm one.
        seed: of the resamples.
    """
    two = (reference.features, seen.features)
    return {
        "frechet": estimate(frechet_distance, *two, seed=seed, bounds=(0, float("inf"))),
        "kernel": estimate(kernel_distance, *two, seed=seed),
        "precision": estimate(precision, *two, seed=seed, bounds=(0, 1)),
        "recall": estimate(recall, *two, seed=seed, bounds=(0, 1)),
        "clip": bootstrap((seen.images * texts).sum(1)),
        "clip_chance": estimate(clip_chance, torch.stack([seen.images, texts], 1), seed=seed),
    }


def format_quality(report: dict[str, Any]) -> str:
    """The report of `evaluate_quality` as Markdown."""
    n, features, columns = report["n"], report["features"], ("generated", "reconstructed", "real")
    settings = "".join(f", {name} {value}" for name, value in report["sampler"].items())
    lines = [
        f"{n} pictures of each kind against {n} other real ones, seed {report['seed']}{settings}. Features:"
        f" {features['name']}, weights {features['sha256'][:12]}; resize: {features['resize']}. In brackets 95 %"
        " intervals: the bootstrap's of CLIP score, PSNR and SSIM, else those of the delete-half jackknife. The column"
        " of the real pictures is what a perfect model would get.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row, meaning in ROWS.items():
        cells = [_cell(report["scores"][column][row], 1000 if row == "kernel" else 1) for column in columns]
        lines.append(f"| {meaning} | " + " | ".join(cells) + " |")
    tokenizer = report["tokenizer"]
    lines += [
        "",
        f"Tokenizer: PSNR {_cell(tokenizer['psnr'])} dB, SSIM {_cell(tokenizer['ssim'])}; codebook: perplexity"
        f" {tokenizer['perplexity']:.0f} of {tokenizer['codes']}, {100 * tokenizer['used']:.1f} % of the codes used.",
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Estimate, factor: float = 1) -> str:
    middle, low, high = (f"{factor * value[key]:.3f}" for key in ("value", "low", "high"))
    return f"{middle} ({low} to {high})"  # a dash would look like a sign


def _contents(real: PictureData, count: int) -> tuple[str, list[str]]:
    """A hash of the first pictures, and their captions."""
    digest, captions = hashlib.sha256(), []
    for index in range(count):
        picture, words = real[index]
        digest.update(f"{picture.size}".encode() + picture.tobytes())
        captions.append(words)
    return digest.hexdigest(), captions


def _chunks(stop: int, start: int = 0) -> list[range]:
    return [range(first, min(first + EVERY, stop)) for first in range(start, stop, EVERY)]


def _real(real: PictureData, n: int, extractor: Extractor, cache: Path | None, digest: str) -> Seen:
    """What the extractor sees of the 2n real pictures, from the cache where it is there."""
    key = hashlib.sha256(json.dumps([digest, extractor.record]).encode()).hexdigest()[:16]
    file = None if cache is None else cache / f"features-{key}.safetensors"
    if file is not None and file.is_file():
        with about_argument("output"):
            return _read(file)[0]
    parts = [look(extractor, [real[i][0] for i in chunk]) for chunk in _chunks(2 * n)]
    seen = sum(parts[1:], parts[0])
    if file is not None:
        _write(seen, file, {})
    return seen


def _generated(
    pipeline: Paella,
    asked: Sequence[str],
    own: range,
    seed: int,
    extractor: Extractor,
    work: Path | None,
    about: dict[str, Any],
    progress: Callable[[int, int], None],
    settings: dict[str, Any],
) -> Seen:
    """What the extractor sees of this process's own generated pictures, of which some may be in the work file."""
    seen = None if work is None else _begun(work, about)
    done = 0 if seen is None else len(seen)
    if done:
        warnings.warn(f"output: going on with {done} of {len(own)} pictures, which {work} kept", stacklevel=3)

    def on_step(step: int, steps: int, tokens: Tensor) -> None:
        nonlocal done
        done += len(tokens) if step == steps else 0
        progress(done, len(own))

    for chunk in _chunks(own.stop, own.start + done):
        prompts, seeds = [asked[i] for i in chunk], [seed + i for i in chunk]
        part = look(extractor, pipeline.generate(prompts, seed=seeds, on_step=on_step, **settings))
        seen = part if seen is None else seen + part
        if work is not None:
            _write(seen, work, about)
    assert seen is not None  # there are prompts
    return seen


def _begun(work: Path, about: dict[str, Any]) -> Seen | None:
    """What the work file keeps of an interrupted run; None where there is none.

    Raises:
        ValueError: it is damaged, or that run asked for something else.
    """
    if not work.is_file():
        return None
    with about_argument("output"):
        seen, its = _read(work)
    if differs := [key for key, value in about.items() if its.get(key) != json.loads(json.dumps(value))]:
        raise ValueError(
            f"output: {work} keeps an interrupted run with another {', '.join(differs)};"
            " give another output, or remove the file to start anew"
        )
    return seen


@torch.inference_mode()
def _reconstructed(pipeline: Paella, real: PictureData, n: int, extractor: Extractor) -> tuple[Seen, dict[str, Any]]:
    """What the extractor sees of the second n real pictures, reconstructed; and how near they are to these."""
    parts, tokens, likenesses = [], [], []
    for chunk in _chunks(2 * n, n):
        pixels = to_tensor([real[i][0] for i in chunk])
        u = pipeline.vqgan.encode(pixels.to(pipeline.device))
        output = pipeline.decode(u)
        tokens.append(u)
        likenesses.append(torch.stack([psnr(output, pixels), ssim(output, pixels)]))
        parts.append(look(extractor, to_pictures(output)))
    codes = pipeline.vqgan.config.n_embed
    figures = {name: bootstrap(values) for name, values in zip(("psnr", "ssim"), torch.cat(likenesses, 1), strict=True)}
    return sum(parts[1:], parts[0]), {**figures, **codebook_usage(torch.cat(tokens), codes), "codes": codes}


def _read(file: Path) -> tuple[Seen, dict[str, Any]]:
    tensors = read_tensors(file)
    if tensors.keys() != {"features", "images"}:
        raise CheckpointError(f"model: {file} does not hold what was seen of pictures, but {', '.join(tensors)}")
    with safe_open(file, "pt") as opened:
        about = json.loads((opened.metadata() or {}).get("about", "{}"))
    return Seen(tensors["features"].clone(), tensors["images"].clone()), about


def _write(seen: Seen, file: Path, about: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(asdict(seen), file, {"about": json.dumps(about)})
