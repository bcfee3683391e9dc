"""Time and memory of one forward pass as the picture grows, the U-Net's against a Transformer's: prints a table.

    python benchmarks/against_transformer.py                                      a few minutes on two cores
    python benchmarks/against_transformer.py --parameters 578M                    the published size: on a GPU
    python benchmarks/against_transformer.py --config tests/parity/config.json --sizes 64 128
                                                                                  tiny networks: does the script work?

The convolutions of the U-Net do as much work for each token however large the grid is; every token of the Transformer
attends to all others. Both have random weights, the same inputs and outputs, and about equally many parameters: the
Transformer is as wide as the U-Net's lowest level, and as deep as makes up for the rest. By default the U-Net has the
published architecture at a quarter of its width (48 M parameters): at its full width the Transformer alone would take
more than ten minutes on two cores. A picture has a token for each 8 x 8 pixels, as with the published tokenizer. One
forward pass is what a sampling step asks for, without guidance; each row is measured in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from table import (
    Row,
    apart,
    arguments,
    millions,
    parameters,
    peak_memory,
    placed,
    random_network,
    report,
    seconds,
    short,
    turns,
)

from paella import official
from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.unet import TokenPredictor, UNetConfig

F = 8  # pixels, the side of a token
V1 = official.unet_config(official.V1["unet"])
UNETS = {"48M": replace(V1, c_hidden=V1.c_hidden // 4), "578M": V1}
RELATIVE = "time per pixel, of the smallest's"


def as_large_as(unet: UNetConfig) -> TransformerConfig:
    """A Transformer with about as many parameters, as wide as the U-Net's lowest level, with heads of 64 channels."""
    sizes = TransformerConfig(
        num_labels=unet.num_labels,
        width=unet.c_hidden,
        c_clip=unet.c_clip,
        c_r=unet.c_r,
        layers=1,
        heads=max(unet.c_hidden // 64, 1),
    )
    with torch.device("meta"):  # only to be counted
        asked = parameters(TokenPredictor(unet))
        one, two = (parameters(TransformerPredictor(replace(sizes, layers=layers))) for layers in (1, 2))
    return replace(sizes, layers=max(1 + round((asked - one) / (two - one)), 1))


def with_relative_times(rows: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows, each with its time per pixel over that of its network's smallest picture."""

    def per_pixel(row: dict[str, Any]) -> float:
        return row["seconds"] / row["size"] ** 2

    def smallest(network: str) -> dict[str, Any]:
        return min((row for row in rows if row["network"] == network), key=lambda row: row["size"])

    return [{**row, RELATIVE: per_pixel(row) / per_pixel(smallest(row["network"]))} for row in rows]


def main() -> None:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--networks", nargs="+", choices=["unet", "transformer"], default=["unet", "transformer"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024], help="pixels, a side")
    parser.add_argument("--parameters", choices=UNETS, default="48M", help="of each network (default: 48M)")
    parser.add_argument("--config", type=Path, help="another U-Net's sizes, as for paella import-checkpoint")
    args, device, dtype = placed(parser)
    unet = official.unet_config(json.loads(args.config.read_text())["unet"]) if args.config else UNETS[args.parameters]

    @torch.inference_mode()
    def measure(networks: str, sizes: int) -> Row:
        def network() -> TokenPredictor | TransformerPredictor:
            return TokenPredictor(unet) if networks == "unet" else TransformerPredictor(as_large_as(unet))

        predictor = random_network(network, device, dtype)
        built = peak_memory(device)
        tokens = torch.randint(unet.num_labels, (1, sizes // F, sizes // F), device=device)
        t = torch.ones(1, device=device)
        denoise = predictor.conditioned(torch.randn(1, unet.c_clip, device=device))
        denoise(tokens, t)  # what only the first time takes
        found = turns(lambda: seconds(lambda: denoise(tokens, t), device), args.runs)
        peak = peak_memory(device)
        return {
            "network": networks,
            "parameters": millions(predictor),
            "dtype": short(dtype),
            "size": sizes,
            "tokens": tokens.numel(),
            "turns": len(found),
            "seconds": median(found),
            "s/megapixel": median(found) / (sizes**2 / 1e6),
            "peak, GiB": peak,
            "above the built network, GiB": peak - built,
        }

    choices = [{"networks": network, "sizes": size} for network, size in product(args.networks, args.sizes)]
    report(with_relative_times(apart(choices, measure)), device, args.json)


if __name__ == "__main__":
    main()
