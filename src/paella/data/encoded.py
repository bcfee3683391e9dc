"""A data set of tokens and embeddings, which `paella dataset encode` makes of pictures and captions.

A folder with `encoded.json`, which says what made it and of what, and with shards of `SHARD` pictures each: safetensors
of their tokens and embeddings, with the captions in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from paella.checkpoint import CheckpointError, read_json, read_tensors, write_tensors
from paella.clip import Clip
from paella.fingerprint import fingerprint
from paella.vqgan import VQGAN

if TYPE_CHECKING:
    from paella.train.recipe import DataConfig

MANIFEST = "encoded.json"
FORMAT = 1
SHARD = 512  # pictures; what an interruption costs at most, and one mapping of memory


class Embeddings(NamedTuple):
    """CLIP's of a caption and of its picture, (d,) each; of a batch (B,d)."""

    text: Tensor
    image: Tensor


class Encoded:
    """The data set: `encoded.draw(index, turn)` is (tokens (h,w) int64, float32 `Embeddings`), index in 0 ... len - 1.

    The embeddings of all captions are kept. Turn 0 has a picture's first, turn 1 the second, and so on, as in a folder
    of pictures. Shards are mapped: they are read from the disk when they are used.

    Args:
        path: the folder.

    Attributes:
        manifest: what `encoded.json` says.
        names: the objects of the scenes; empty for pictures of a folder.

    Raises:
        ValueError: it is not such a folder, or not whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.manifest = read_json(self.path / MANIFEST)
            if (found := self.manifest.get("format")) != FORMAT:
                raise ValueError(f"{self.path / MANIFEST} has format {found!r}; this reads {FORMAT}")
            self.names: list[str] = self.manifest["objects"]
            files = [shard_file(self.path, number) for number in range(-(-len(self) // SHARD))]
            if missing := sum(not file.is_file() for file in files):
                raise ValueError(
                    f"{self.path} is not whole, {missing} of {len(files)} shards are missing: repeat the command that "
                    "encodes it, which goes on where it was"
                )
            self.shards = [read_tensors(file) for file in files]
        except CheckpointError as error:
            raise ValueError(str(error).removeprefix("model: ")) from error
        except KeyError as error:
            raise ValueError(f"{self.path / MANIFEST} lacks {error}") from error

    def __len__(self) -> int:
        return self.manifest["pictures"]

    def __getitem__(self, index: int) -> tuple[Tensor, Embeddings]:
        return self.draw(index)

    def draw(self, index: int, turn: int = 0) -> tuple[Tensor, Embeddings]:
        """The picture, with one of its captions.

        Raises:
            IndexError: `index` is not in 0 ... len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0 ... {len(self) - 1}")
        number, row = divmod(index, SHARD)
        shard = self.shards[number]
        first, end = shard["bounds"][row : row + 2].tolist()
        text = shard["text"][first + turn % (end - first)]
        return shard["tokens"][row].long(), Embeddings(text.float(), shard["image"][row].float())

    def caption(self, index: int) -> str:
        """The picture's first caption."""
        number, row = divmod(index, SHARD)
        with safe_open(shard_file(self.path, number), "pt") as file:
            return json.loads(file.metadata()["captions"])[self.shards[number]["bounds"][row]]

    def check_fits(self, vqgan: VQGAN, clip: Clip, config: DataConfig) -> None:
        """Makes sure that it was made by these two, of pictures as the recipe describes them.

        Raises:
            ValueError: it was not; the message begins with the recipe's key.
        """
        for part, given in fingerprints(vqgan, clip).items():
            if self.manifest[part] != given:
                raise ValueError(f"{part}: is not the one that encoded {self.path}; encode the data with this one")
        ours = described(config)
        for key, value in self.manifest["data"].items():
            if ours.get(key, value) != value:
                raise ValueError(f"data.{key}: must be {value!r}, as when {self.path} was encoded, not {ours[key]!r}")


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def write_shard(
    path: Path, tokens: Tensor, image: Tensor, text: Tensor, captions: Sequence[Sequence[str]], codes: int
) -> None:
    """Writes atomically what `Encoded` reads.

    Args:
        tokens: (n,h,w) int64 in {0 … codes-1}.
        image: (n,d), the pictures' embeddings.
        text: (m,d), those of all captions, picture by picture.
        captions: of each of the n pictures.
    """
    counts = torch.tensor([0, *map(len, captions)])
    tensors = {
        "tokens": tokens.to(torch.int16 if codes <= 2**15 else torch.int32),
        "image": image.half(),
        "text": text.half(),
        "bounds": counts.cumsum(0),  # picture i has the captions from bounds[i] to bounds[i + 1]
    }
    write_tensors(tensors, path, metadata={"captions": json.dumps(list(chain.from_iterable(captions)))})


def fingerprints(vqgan: VQGAN, clip: Clip) -> dict[str, str]:
    """By part, of all that decides tokens and embeddings."""
    about = f"{clip.tokenizer.backend_tokenizer.to_str()} {clip.mean} {clip.std}"
    return {"vqgan": fingerprint(vqgan.tokenizing_weights()), "clip": fingerprint(clip.weights(), about=about)}


def described(config: DataConfig) -> dict[str, Any]:
    """The entries of a recipe that decide what pictures and captions are, as JSON has them."""
    if config.folder is not None:
        return {"size": config.size}
    entries = {key: value for key, value in asdict(config).items() if key not in ("folder", "encoded", "workers")}
    return json.loads(json.dumps(entries))
