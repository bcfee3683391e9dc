"""Time and memory of one picture by the published first model, with random weights: prints one row of a table.

    python benchmarks/v1.py                                                    256 x 256 pixels, 8 steps, guidance 5
    python benchmarks/v1.py --config tests/parity/config.json --size 64        a tiny model: does the script work?

The text's embedding is given, so CLIP is not part of it. Random weights cost what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from table import millions, print_row, with_machine
from torch import Tensor

from paella import official
from paella.engine import resolve_device, resolve_dtype
from paella.pipeline import Paella
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN


class GivenEmbedding:
    """Stands in CLIP's place: every text has the same embedding, as long as a published CLIP's are."""

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim = dim
        self.embedding = torch.randn(dim, generator=torch.Generator().manual_seed(0)).to(device)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return self.embedding.expand(len(texts), -1)


def build(configs: dict[str, dict[str, Any]], device: torch.device, dtype: torch.dtype) -> Paella:
    """The predictor and the Gumbel VQGAN of these sizes, with random weights, where `from_pretrained` puts them."""
    sizes = official.unet_config(configs["unet"])
    with torch.device(device):
        predictor = TokenPredictor(sizes).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        vqgan = VQGAN(official.vqgan_config(configs["gumbel_vqgan_f8"], "gumbel"))
    clip: Any = GivenEmbedding(sizes.c_clip, device)
    size = configs["gumbel_vqgan_f8"]["ddconfig"]["resolution"]
    vqgan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Paella(predictor.eval(), vqgan.eval(), clip, official.V1_SETTINGS, size, name="v1 with random weights")


def peak(device: torch.device) -> float:
    """GiB: of the GPU's memory, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="sizes of both networks, as for paella import-checkpoint")
    parser.add_argument("--size", type=int, help="pixels, a side; default: what the model was trained on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the predictor; auto: bfloat16 where the processor has it")
    args = parser.parse_args()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    model = build(json.loads(args.config.read_text()) if args.config else official.V1, device, dtype)
    built = peak(device)
    model.generate("a given embedding", size=args.size, steps=1)  # what only the first time takes
    start = time.perf_counter()
    picture = model.generate("a given embedding", size=args.size)[0]  # ends on the CPU: nothing is left to wait for
    seconds = time.perf_counter() - start
    row = {
        "predictor": millions(model.predictor),
        "dtype": str(dtype).removeprefix("torch."),
        "picture": f"{picture.width} x {picture.height}",
        "steps": str(model.settings.steps),
        "guidance": f"{model.settings.guidance:g}",
        "seconds": f"{seconds:.2f}",
        "peak when built": f"{built:.2f} GiB",
        "peak": f"{peak(device):.2f} GiB",
    }
    print_row(with_machine(row, device))


if __name__ == "__main__":
    main()
