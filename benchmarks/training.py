"""Time of one training step of the predictor: prints a table of one row.

    python benchmarks/training.py --official paella-v1                         beside the authors' own step
    python benchmarks/training.py                                              ours alone
    python benchmarks/training.py --config tests/parity/config.json --grid 8   a tiny model: does the script work?

The predictor is the published first model, every level a quarter as wide (c_hidden 320 in place of 1280): 48 M
parameters, 8192 codes. Tokens and embeddings are given, so neither tokenizer nor CLIP is part of it.

Ours is the step of `paella train predictor`: bfloat16 autocast where the processor has it, channels-last, fused
AdamW, averaged weights, and all that is logged. The authors' is as in their script: float32, their model and noise,
torch's cross-entropy and AdamW, and what they log. `--official` names a checkout of their repository at a commit of
the first model (such as 946939c), whose `modules.py` is run. Both take turns; the ratio is the median over the turns,
beside the lowest and the highest. Freed memory is kept, as the command `paella` has it, for both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NoReturn

import authors
import torch
from against_transformer import UNETS
from PIL import Image
from table import Row, arguments, millions, report, seconds, turns
from torch import Tensor, nn
from torch.optim import AdamW

from paella import official
from paella.allocator import keep_freed_memory
from paella.method import method_of
from paella.train.loop import Trainer
from paella.train.predictor import TokenRecipe, TokenStage
from paella.train.throughput import counted, peak
from paella.unet import TokenPredictor, UNetConfig


class GivenStage(TokenStage):
    """A predictor's stage whose batches are tokens (B,h,w) and embeddings (B,d)."""

    def __init__(self, recipe: TokenRecipe) -> None:
        self.recipe = recipe
        self.vqgan: Any = SimpleNamespace(config=SimpleNamespace(n_embed=recipe.model.num_labels))
        predictor = TokenPredictor(recipe.model)
        self.modules, self.method = {"predictor": predictor}, method_of(predictor)

    def tokens(self, tokens: Tensor) -> Tensor:
        return tokens

    def asked(
        self, u: Tensor, tokens: Tensor, embeddings: Tensor, null: Tensor, regions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return embeddings * ~null[:, None].to(embeddings.device), u

    def pipeline(self, shipped: nn.Module) -> NoReturn:
        raise NotImplementedError

    def preview(self, shipped: nn.Module) -> Image.Image:
        raise NotImplementedError


def our_step(trainer: Trainer, tokens: Tensor, embeddings: Tensor) -> None:
    batches: Iterator[Any] = repeat((tokens, embeddings))
    for value in trainer.step(batches, 0)[0].values():
        float(value.detach() if isinstance(value, Tensor) else value)  # as the journal reads it


def authors_step(
    network: Callable[..., Any], config: UNetConfig, tokens: Tensor, embeddings: Tensor
) -> Callable[[], None]:
    """A function that takes one step as the authors' script does."""
    model = network(**authors.sizes(config)).to(tokens.device).train()
    optimizer = AdamW(model.parameters(), lr=3e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def step() -> None:
        r = torch.rand(len(tokens), device=tokens.device)
        noisy, _ = model.add_noise(tokens, r)
        logits = model(noisy, embeddings, r)
        loss = criterion(logits, tokens)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        optimizer.zero_grad()
        for value in (norm, loss, (logits.argmax(1) == tokens).float().mean()):
            value.item()

    return step


def main() -> None:
    parser = arguments(__doc__, runs=5)
    authors.option(parser, required=False)
    parser.add_argument("--config", type=Path, help="sizes of the predictor, as for paella import-checkpoint")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--grid", type=int, default=32, help="tokens, a side")
    args = parser.parse_args()
    keep_freed_memory()
    config = official.unet_config(json.loads(args.config.read_text())["unet"]) if args.config else UNETS["48M"]
    network = None if args.official is None else authors.network(parser, args.official)

    stage = GivenStage(TokenRecipe("", batch_size=args.batch, model=config))
    trainer = Trainer(stage, stage.recipe)
    device = stage.device
    tokens = torch.randint(config.num_labels, (args.batch, args.grid, args.grid), device=device)
    embeddings = torch.randn(args.batch, config.c_clip, device=device)
    steps = {"ours": lambda: our_step(trainer, tokens, embeddings)}
    if network is not None:
        steps["theirs"] = authors_step(network, config, tokens, embeddings)
    _, operations = counted(steps["ours"])
    for step in steps.values():
        step()  # what only the first time takes
    found = turns(lambda: {name: seconds(step, device) for name, step in steps.items()}, args.runs)
    ours = median(turn["ours"] for turn in found)
    row: Row = {
        "predictor": millions(trainer.plain["predictor"]),
        "c_hidden": config.c_hidden,
        "grid": f"{args.grid} x {args.grid}",
        "batch": args.batch,
        "turns": len(found),
        "ours, s": ours,
        "samples/s": args.batch / ours,
        "of peak, %": 100 * operations / ours / peak(device, trainer.dtype),
    }
    if network is not None:
        ratios = [turn["theirs"] / turn["ours"] for turn in found]
        row["authors', s"] = median(turn["theirs"] for turn in found)
        row["authors' / ours"] = median(ratios)
        row["lowest"], row["highest"] = min(ratios), max(ratios)
    report([row], device, args.json)


if __name__ == "__main__":
    main()
