"""Pictures and captions to tokens and embeddings, once and for all epochs: what `paella dataset encode` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from paella.checkpoint import about_argument, load_clip, load_vqgan, read_json, write_json
from paella.data import collate, length, open_data, own_process_group
from paella.data.encoded import FORMAT, MANIFEST, SHARD, described, fingerprints, shard_file, write_shard
from paella.data.folder import Folder
from paella.data.scenes import Scenes
from paella.fingerprint import fingerprint
from paella.placement import resolve_device
from paella.train.clip import warn_of_cut_captions
from paella.train.predictor import PredictorRecipe


class _Wordings:
    """Pictures with all their captions."""

    def __init__(self, data: Folder | Scenes) -> None:
        self.data = data

    def __getitem__(self, index: int) -> tuple[Image.Image, Sequence[str]]:
        picture, caption = self.data[index]
        return picture, self.data.captions[index] if isinstance(self.data, Folder) else [caption]


@torch.no_grad()
def encode(recipe: PredictorRecipe, folder: Path, number: int | None, progress: Callable[[int, int], None]) -> int:
    """Encodes the data of a predictor's recipe by its VQGAN and CLIP, in float32, for `data.encoded`.

    Each shard is written atomically. Of those that are there already, none is made again.

    Args:
        folder: where to; it is made.
        number: how many scenes; None for a folder of pictures, of which all are encoded.
        progress: called with the number of pictures that are done, and of all.

    Returns:
        The number of pictures.

    Raises:
        ValueError: a bad recipe or number, or `folder` holds pictures that were encoded otherwise.
    """
    data = open_data(recipe.data, recipe.seed)
    pictures = length(data) or number
    if pictures is None or pictures < 1:
        raise ValueError("number: must be given, at least 1: scenes have no end")
    if isinstance(data, Folder) and number is not None:
        raise ValueError("number: is for scenes; of a folder all pictures are encoded")
    device = resolve_device("auto")
    with about_argument("vqgan"):
        vqgan = load_vqgan(recipe.vqgan)
    with about_argument("clip"):
        clip = load_clip(recipe.clip)
    recipe.data.check_fits(vqgan.config.f)
    warn_of_cut_captions(clip, data)
    _claim(folder, recipe, data, {"format": FORMAT, "pictures": pictures, **fingerprints(vqgan, clip)})
    vqgan.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    clip.to(device)

    shards = {shard_file(folder, i // SHARD): range(i, min(i + SHARD, pictures)) for i in range(0, pictures, SHARD)}
    missing = {file: rows for file, rows in shards.items() if not file.is_file()}
    batches = {
        file: [rows[i : i + recipe.batch_size] for i in range(0, len(rows), recipe.batch_size)]
        for file, rows in missing.items()
    }
    loader: Any = DataLoader(
        _Wordings(data),  # type: ignore[arg-type]
        batch_sampler=list(chain.from_iterable(batches.values())),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=recipe.data.workers,
        worker_init_fn=own_process_group,
    )
    done = pictures - sum(map(len, missing.values()))
    progress(done, pictures)
    read = iter(loader)
    for file, of_shard in batches.items():
        tokens, image, text, captions = [], [], [], []
        for pixels, wordings in islice(read, len(of_shard)):
            pixels = pixels.to(device)
            tokens.append(vqgan.encode(pixels))
            image.append(clip.embed_images(pixels))
            text.append(clip.embed_text(list(chain.from_iterable(wordings))))
            captions += wordings
            done += len(pixels)
            progress(done, pictures)
        write_shard(file, torch.cat(tokens), torch.cat(image), torch.cat(text), captions, vqgan.config.n_embed)
    return pictures


def _claim(folder: Path, recipe: PredictorRecipe, data: Folder | Scenes, manifest: dict[str, Any]) -> None:
    """Writes into the folder what it is going to hold; what it holds already must be of the same kind.

    Raises:
        ValueError: it is not.
    """
    manifest |= {"data": described(recipe.data)}
    if isinstance(data, Folder):
        files = [(file.relative_to(data.path).as_posix(), sha256(file.read_bytes()).digest()) for file in data.files]
        manifest |= {"objects": [], "content": fingerprint(about=f"{files} {data.captions}")}
    else:
        manifest |= {"objects": data.names, "seed": recipe.seed}
    path = folder / MANIFEST
    if path.is_file():
        begun = read_json(path)
        for key, value in manifest.items():
            if begun.get(key) != value:
                raise ValueError(
                    f"output: {folder} was begun with another {key}: {begun.get(key)}, not {value}; use another folder"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(manifest, path)
