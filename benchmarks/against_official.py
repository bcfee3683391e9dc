"""Time of one picture by the authors' own code and by ours, with the same weights: prints a table of one row.

    python benchmarks/against_official.py --official paella-v1                    256 x 256 pixels, 8 steps, guidance 5
    python benchmarks/against_official.py --official paella-v1 --quantize int8    ours in 8 bits
    python benchmarks/against_official.py --official paella-v1 --config tests/parity/config.json
                                                                                  a tiny model: does the script work?

From a given embedding to pixels, by the published first model's sizes with random weights, which cost what trained ones
do. The authors' side is their model and their sampler, in float32 as published, then our VQGAN, the same one on both
sides. Ours is what `Paella.generate` does. `--official` names a checkout of their repository at a commit of the first
model, such as 946939c, whose `modules.py` and `utils.py` are run. Both take turns in one process, all turns that are
asked for; the ratio is the median over them, beside the lowest and the highest. Columns:

    logits off by    ‖ours - theirs‖ / ‖theirs‖ (L2) over the logits of a random grid under the condition, at t = 0.5
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import median

import authors
import torch
from sampling import v1
from table import Row, arguments, millions, placed, report, seconds, short, turns

from paella import official
from paella.images import to_pictures
from paella.speedups import compile_steps, quantize_int8
from paella.unet import UNetConfig


def main() -> None:
    parser = arguments(__doc__, runs=3)
    authors.option(parser, required=True)
    parser.add_argument("--config", type=Path, help="sizes of both networks, as for paella import-checkpoint")
    parser.add_argument("--size", type=int, help="pixels, a side; default: what the model was trained on")
    faster = parser.add_mutually_exclusive_group()
    faster.add_argument("--quantize", choices=["int8"], help="as of Paella.from_pretrained")
    faster.add_argument("--compile", action="store_true", help="as of Paella.from_pretrained")
    args, device, dtype = placed(parser)
    network, sample = authors.network(parser, args.official), authors.sampler(parser, args.official)
    ours = v1(json.loads(args.config.read_text()) if args.config else official.V1, device, torch.float32)
    assert isinstance(ours.predictor.config, UNetConfig)
    theirs = network(**authors.sizes(ours.predictor.config)).to(device).eval()
    theirs.load_state_dict(ours.predictor.state_dict())
    ours.to(dtype=dtype)
    if args.quantize is not None:
        quantize_int8(ours.predictor)
    if args.compile:
        compile_steps(ours.predictor)

    settings, size = ours.settings, args.size or ours.size
    grid = (size // ours.vqgan.config.f,) * 2
    condition = ours.clip.embed_text([""])

    def their_picture() -> None:
        tokens = sample(
            theirs,
            condition,
            T=settings.steps,
            size=grid,
            typical_mass=settings.typical_mass,
            classifier_free_scale=settings.guidance,
            renoise_steps=settings.steps - 1,
        )
        to_pictures(ours.decode(tokens))

    def our_picture() -> None:
        ours.generate("a given embedding", size=size)

    with torch.inference_mode():
        tokens = torch.randint(ours.vqgan.config.n_embed, (1, *grid), device=device)
        half = torch.full((1,), 0.5, device=device)
        expected = theirs(tokens, condition, 1 - half)
        error = (ours.predictor(tokens, condition, half).float() - expected).norm() / expected.norm()
    works = {"ours": our_picture, "theirs": their_picture}
    for work in works.values():
        work()  # what only the first time takes
    found = turns(lambda: {name: seconds(work, device) for name, work in works.items()}, args.runs, patience=math.inf)
    ratios = [turn["theirs"] / turn["ours"] for turn in found]
    row: Row = {
        "predictor": millions(theirs),
        "size": size,
        "steps": settings.steps,
        "guidance": f"{settings.guidance:g}",
        "ours": " ".join([short(ours.dtype), *filter(None, [args.quantize, "compiled" if args.compile else None])]),
        "turns": len(found),
        "ours, s": median(turn["ours"] for turn in found),
        "authors', s": median(turn["theirs"] for turn in found),
        "authors' / ours": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "logits off by, %": 100 * error.item(),
    }
    report([row], device, args.json)


if __name__ == "__main__":
    main()
