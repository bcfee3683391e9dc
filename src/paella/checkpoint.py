"""A model is a folder of safetensors and JSON configs; loading is strict, and every complaint names file and key."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paella.clip import Clip
from paella.labels import Labels
from paella.sampler import SamplerSettings
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN, VQGANConfig

if TYPE_CHECKING:
    from paella.pipeline import Paella

FORMAT = 1
C = TypeVar("C")


class CheckpointError(ValueError):
    """A model folder that cannot be loaded; the message names the file and what is wrong with it."""


def model_folder(name: str | Path) -> Path:
    """The folder of a model: "builtin" is the one that the package carries."""
    return Path(str(resources.files("paella") / "builtin")) if str(name) == "builtin" else Path(name)


def downloaded(name: str | Path, patterns: list[str] | None = None) -> Path:
    """The folder to which the files of a hub id were downloaded.

    Raises:
        CheckpointError: there is no such thing, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model: {name} is neither a folder nor a model that the hub gives ({error})") from error


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Writes atomically: the file is there whole, or as it was before."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"model: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"model: {path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"model: {path} must hold a JSON object")
    return value


def config_from(cls: type[C], values: Mapping[str, Any], path: Path) -> C:
    """The config record of those values; lists become tuples, as the records have them."""
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise CheckpointError(
            f"model: {path} has unknown keys: {', '.join(unknown)}; allowed: {', '.join(sorted(known))}"
        )
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"model: {path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no __iter__)
    except FileNotFoundError as error:
        raise CheckpointError(f"model: {path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model: {path} is not a whole safetensors file ({error})") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    partial = path.with_suffix(".partial")
    save_file(
        {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial, metadata=metadata
    )
    partial.chmod(0o644)
    os.replace(partial, path)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copies the tensors into the module, in its own dtype.

    Raises:
        CheckpointError: naming every missing, unexpected or wrong-shaped key.
    """
    wanted = module.state_dict()
    complaints = [f"missing {key}" for key in wanted if key not in tensors]
    complaints += [f"unexpected {key}" for key in tensors if key not in wanted]
    complaints += [
        f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if complaints:
        raise CheckpointError(f"model: {path} does not fit its config: {'; '.join(complaints)}")
    module.load_state_dict(tensors)


def save_module(module: nn.Module, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the module's weights atomically, floating-point ones as `dtype` where one is given."""
    tensors = {
        key: value.to(dtype) if dtype and value.is_floating_point() else value
        for key, value in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, path)


def save_vqgan(vqgan: VQGAN, folder: Path, dtype: torch.dtype | None = None) -> None:
    save_module(vqgan, folder / "vqgan.safetensors", dtype)
    write_json(asdict(vqgan.config), folder / "vqgan.json")


def load_vqgan(folder: str | Path) -> VQGAN:
    """The VQGAN of a model folder (or "builtin"), float32, in evaluation mode."""
    folder = model_folder(folder)
    vqgan = VQGAN(config_from(VQGANConfig, read_json(folder / "vqgan.json"), folder / "vqgan.json"))
    load_strictly(vqgan, read_tensors(folder / "vqgan.safetensors"), folder / "vqgan.safetensors")
    return vqgan.eval()


def load_predictor(folder: str | Path) -> TokenPredictor:
    """The token predictor of a model folder (or "builtin"), float32, in evaluation mode."""
    folder = model_folder(folder)
    predictor = TokenPredictor(config_from(UNetConfig, read_json(folder / "predictor.json"), folder / "predictor.json"))
    load_strictly(predictor, read_tensors(folder / "predictor.safetensors"), folder / "predictor.safetensors")
    return predictor.eval()


def load_clip(name: str | Path) -> Clip:
    """The CLIP of a model folder (or "builtin"), or else of a folder or hub id in transformers' format."""
    folder = model_folder(name)
    own_parts = (folder / "model.json").is_file() or (folder / "clip").is_dir()
    return Clip.load(folder / "clip" if own_parts else name)


def save_model(pipeline: Paella, folder: Path, dtype: torch.dtype | None = torch.float16) -> None:
    """Writes a complete model folder, in half precision by default; `load_model` reads it back."""
    folder.mkdir(parents=True, exist_ok=True)
    save_module(pipeline.predictor, folder / "predictor.safetensors", dtype)
    write_json(asdict(pipeline.predictor.config), folder / "predictor.json")
    save_vqgan(pipeline.vqgan, folder, dtype)
    pipeline.clip.save(folder if isinstance(pipeline.clip, Labels) else folder / "clip", dtype)
    # last: a folder without it is not a model, so a half-written one is refused
    write_json(
        {
            "format": FORMAT,
            "name": pipeline.name,
            "size": pipeline.size,
            "sampler": asdict(pipeline.settings),
            "objects": pipeline.objects,
            "recipe": pipeline.recipe,
        },
        folder / "model.json",
    )


def load_model(folder: Path) -> dict[str, Any]:
    """Everything of a model folder, as the keyword arguments of `Paella`.

    Raises:
        CheckpointError: a file is missing, truncated, or of another shape than its config says.
    """
    if not folder.is_dir():
        raise CheckpointError(f"model: {folder} is not a folder")
    about = read_json(folder / "model.json")
    if about.get("format") != FORMAT:
        raise CheckpointError(f"model: {folder / 'model.json'} has format {about.get('format')!r}; this reads {FORMAT}")
    if missing := {"size", "sampler"} - set(about):
        raise CheckpointError(f"model: {folder / 'model.json'} lacks {', '.join(sorted(missing))}")
    size, objects, recipe = about["size"], about.get("objects", []), about.get("recipe")
    if not isinstance(size, int) or size < 1:
        raise CheckpointError(f"model: {folder / 'model.json'}: size must be a number of pixels, not {size!r}")
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        raise CheckpointError(f"model: {folder / 'model.json'}: objects must be a list of names")
    if recipe is not None and not isinstance(recipe, dict):
        raise CheckpointError(f"model: {folder / 'model.json'}: recipe must be an object")
    vqgan, predictor = load_vqgan(folder), load_predictor(folder)
    clip = Labels.load(folder) if (folder / "labels.json").is_file() else load_clip(folder)
    if (predictor.config.num_labels, predictor.config.c_clip) != (vqgan.config.n_embed, clip.dim):
        raise CheckpointError(
            f"model: the parts of {folder} do not fit: the predictor is for {predictor.config.num_labels} codes and "
            f"embeddings of {predictor.config.c_clip}, the VQGAN has {vqgan.config.n_embed}, CLIP {clip.dim}"
        )
    return {
        "predictor": predictor,
        "vqgan": vqgan,
        "clip": clip,
        "settings": config_from(SamplerSettings, about["sampler"], folder / "model.json"),
        "size": size,
        "name": str(about.get("name", folder.name)),
        "objects": objects,
        "recipe": recipe,
    }
