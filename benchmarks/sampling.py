"""Time and memory of generation, as pictures and batches grow: prints a table.

    python benchmarks/sampling.py                                              about ten minutes on two cores
    python benchmarks/sampling.py --models v1 --sizes 256 --batches 1          one picture by the published size
    python benchmarks/sampling.py --megapixels 70                              every batch of every size: on a GPU
    python benchmarks/sampling.py --models v1 --sizes 256 --batches 1 64 --megapixels 5 --compile
                                                                               compiled
    python benchmarks/sampling.py --models v1 --config tests/parity/config.json --sizes 64 --batches 1
                                                                               a tiny model: does the script work?

`builtin` is the built-in model. `v1` has the published first model's sizes and settings and random weights, which cost
what trained ones do; its embedding of the text is given, so CLIP is not part of it. Each row is measured in a process
of its own. Columns:

    filter and draw    their share of the sampling steps (`sampler.draw_typical`); the rest is nearly all the predictor
    peak               of the process, or of the GPU's memory; and how much of it came after the model was built
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from table import Row, apart, arguments, millions, now, peak_memory, placed, random_network, report, short, turns
from torch import Tensor

from paella import official
from paella.denoiser import Logits
from paella.pipeline import Paella
from paella.sampler import draw_typical
from paella.speedups import compile_steps
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN

PROMPT = "a red apple on a blue background"


class GivenEmbedding:
    """Stands in CLIP's place: every text has the same embedding, as long as a published CLIP's are."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim = dim
        self.embedding = torch.randn(dim, generator=torch.Generator().manual_seed(0)).to(device)

    def to(self, device: torch.device | None) -> None:
        self.embedding = self.embedding.to(device)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return self.embedding.expand(len(texts), -1)


def v1(configs: dict[str, dict[str, Any]], device: torch.device, dtype: torch.dtype) -> Paella:
    """The predictor and the Gumbel VQGAN of these sizes, with random weights, where `from_pretrained` puts them."""
    sizes = official.unet_config(configs["unet"])
    predictor = random_network(lambda: TokenPredictor(sizes), device, dtype)
    tokenizer = official.vqgan_config(configs["gumbel_vqgan_f8"], "gumbel")
    vqgan = random_network(lambda: VQGAN(tokenizer), device, torch.float32)
    clip: Any = GivenEmbedding(sizes.c_clip, device)
    size = configs["gumbel_vqgan_f8"]["ddconfig"]["resolution"]
    return Paella(predictor, vqgan, clip, official.V1_SETTINGS, size, name="v1 with random weights").to(device)


def drawing(model: Paella, size: int, batch: int) -> float:
    """The seconds of one generation."""
    start = now(model.device)
    model.generate(PROMPT, batch, size=size)
    return now(model.device) - start


def filtering(model: Paella, size: int, batch: int) -> float:
    """The share of the filter and the draw in all steps, which differ in how many tokens they draw and in nothing else;
    of a generation that waits for a GPU before and after each. When the first step began is not known."""
    ends: list[tuple[int, float, float]] = []  # of each step: its number, the time, and the seconds of all draws so far
    draws: list[float] = []

    def drawn(logits: Logits, *args: Any) -> Tensor:
        asked: list[float] = []  # seconds of the predictor's last layer, which is no part of the filter

        def last(features: Tensor) -> Tensor:
            start = now(model.device)
            own = logits.last(features)
            asked.append(now(model.device) - start)
            return own

        start = now(model.device)
        tokens = draw_typical(replace(logits, last=last), *args)
        draws.append(now(model.device) - start - sum(asked))
        return tokens

    def on_step(step: int, steps: int, tokens: Tensor) -> None:
        ends.append((step, now(model.device), sum(draws)))

    with patch("paella.sampler.draw_typical", drawn):
        model.generate(PROMPT, batch, size=size, on_step=on_step)
    rest = [(end - start) - (after - before) for (_, start, before), (step, end, after) in pairwise(ends) if step > 1]
    return sum(draws) / (sum(draws) + len(ends) * median(rest))


def main() -> None:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--models", nargs="+", choices=["builtin", "v1"], default=["builtin", "v1"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 512, 1024], help="pixels, a side")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64], help="pictures of one call")
    parser.add_argument(
        "--megapixels", type=float, default=0.3, help="batches (of more than one) that have more in all are left out"
    )
    parser.add_argument("--compile", action="store_true", help="as `from_pretrained(compile=True)` does")
    parser.add_argument("--config", type=Path, help="sizes in place of v1's, as for paella import-checkpoint")
    args, device, dtype = placed(parser)

    def measure(models: str, sizes: int, batches: int) -> Row:
        if models == "builtin":
            model = Paella.from_pretrained(device=args.device, dtype=dtype, compile=args.compile)
        else:
            configs = json.loads(args.config.read_text()) if args.config else official.V1
            model = v1(configs, device, dtype)
            if args.compile:
                compile_steps(model.predictor)
        built = peak_memory(device)
        for _ in range(2):  # what only the first times take: a GPU records at the second
            model.generate(PROMPT, batches, size=sizes, steps=1)
        found = turns(lambda: drawing(model, sizes, batches), args.runs)
        seconds = median(found)
        peak = peak_memory(device)
        return {
            "model": models,
            "predictor": millions(model.predictor),
            "dtype": f"{short(model.dtype)}{' compiled' if args.compile else ''}",
            "steps": model.settings.steps,
            "guidance": f"{model.settings.guidance:g}",
            "size": sizes,
            "batch": batches,
            "turns": len(found),
            "seconds": seconds,
            "pictures/s": batches / seconds,
            "s/megapixel": seconds / (batches * sizes**2 / 1e6),
            "filter and draw, %": 100 * filtering(model, sizes, batches),
            "peak, GiB": peak,
            "above the built model, GiB": peak - built,
        }

    choices = [
        {"models": model, "sizes": size, "batches": batch}
        for model, size, batch in product(args.models, args.sizes, args.batches)
        if batch == 1 or batch * size**2 <= args.megapixels * 1e6
    ]
    report(apart(choices, measure), device, args.json)


if __name__ == "__main__":
    main()
