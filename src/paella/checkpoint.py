"""A model is a folder of safetensors and JSON configs; loading is strict, and every complaint names file and key.

A module is filled from a file without ever being in memory twice (`load_module`), and a pickle is read as data alone
(`read_pickle`).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.clip import Clip
from paella.labels import Labels
from paella.sampler import SamplerSettings, for_variations
from paella.speedups import is_quantized
from paella.unet import TokenPredictor, UNetConfig
from paella.vqgan import VQGAN, VQGANConfig

if TYPE_CHECKING:
    from paella.engine import Engine

FORMAT = 1
Predictor = TokenPredictor | TransformerPredictor
# by the name that predictor.json has; one without a name is a U-Net
ARCHITECTURES = {"unet": (UNetConfig, TokenPredictor), "transformer": (TransformerConfig, TransformerPredictor)}
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A model folder that cannot be loaded; the message names the file and what is wrong with it."""


@contextmanager
def about_argument(name: str) -> Iterator[None]:
    """Complaints about a model that was given as that argument begin with its name."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(re.sub(r"^model: ", f"{name}: ", str(error))) from error


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
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
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


def config_from(cls: type[C], values: Mapping[str, Any], path: str | Path) -> C:
    """The config record of those values; lists become tuples, as the records have them.

    Raises:
        CheckpointError: an unknown key or a value that does not fit; the message begins with `path`.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"model: {path} must hold keys with values, not {values!r}")
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
    """The tensors of a safetensors file. It is mapped: they are read from the disk when they are used."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no __iter__)
    except FileNotFoundError as error:
        raise CheckpointError(f"model: {path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model: {path} is not a whole safetensors file ({error})") from error


class _Unused:
    """Stands for classes that are named in a checkpoint and that nobody needs; it does nothing."""


# trainers of the time name this class beside the weights
_NAMED = [(_Unused, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, bare or as a training checkpoint's `state_dict`.

    The file is mapped: tensors are read from the disk when they are used. No code in it runs.

    Raises:
        CheckpointError: the file is missing or damaged, holds code or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"model: {path} is missing")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"model: {path} is not a whole checkpoint as torch.save writes it (since PyTorch 1.6)")
    try:
        with torch.serialization.safe_globals(_NAMED):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged files raise many kinds
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"model: {path} is refused: it asks for {named[1]}, and nothing is run that a file asks for"
            ) from error
        reason = " ".join(str(error).split())
        raise CheckpointError(f"model: {path} is not a whole checkpoint of tensors ({reason})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"model: {path} holds no state dict, but a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"model: {path} holds no state dict: {key} is a {type(value).__name__}, no tensor")
    return dict(content)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of a pickle, or of several such files that a transformers index (.json) names.

    Raises:
        CheckpointError: a file is missing or damaged, holds something else or code.
    """
    if path.suffix == ".json":
        index = read_json(path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise CheckpointError(f"model: {path} is no index of files of weights: it has no weight_map")
        shards = [read_weights(path.with_name(name)) for name in sorted(set(index.values()))]
        return {key: value for shard in shards for key, value in shard.items()}
    if path.suffix not in (".safetensors", *PICKLES):
        raise CheckpointError(f"model: {path} must be a file of weights: .safetensors, {', '.join(PICKLES)}")
    return read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def weights_of(folder: Path) -> Path:
    """The weights of a folder in transformers' format, for `read_weights`: safetensors before pickles."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file atomically.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_suffix(".partial")
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(stored, partial, metadata=metadata)
    except SafetensorError as error:  # of a full disk too
        partial.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from error
    partial.chmod(0o644)
    os.replace(partial, path)


@torch.inference_mode(False)  # whose tensors can never be changed or learn
def load_module(make: Callable[[], M], read: Callable[[], Mapping[str, Tensor]], path: str | Path) -> M:
    """The module that `make` makes, with a file's tensors as its weights, float32 and in evaluation mode.

    This takes little more memory than the module has in the end: it is made without any, and receives its weights in
    portions, each from a mapping of its own, as a mapping keeps in memory all that was ever read through it.

    Args:
        make: makes the module; its own first weights do not matter.
        read: maps the file anew and returns its tensors.
        path: the file, for the messages.

    Raises:
        CheckpointError: `make` cannot make anything; or naming every missing, unexpected or wrong-shaped key.
    """
    try:
        with torch.device("meta"):
            module = make()
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"model: {path} has a config that no network can be made of: {error}") from error
    mapped = read()
    _compare(module.state_dict(), mapped, path)
    portions = min(32, 1 + sum(value.nbytes for value in mapped.values()) // 2**23)
    names = list(mapped)
    weights: dict[str, Tensor] = {}
    for portion in range(portions):
        mapped = read()
        weights |= {name: _float32_copy(mapped[name]) for name in names[portion::portions]}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _float32_copy(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def _compare(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    complaints = [  # first, as a long message may be cut
        f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    complaints += [
        f"{key} holds {tensors[key].dtype}, not {value.dtype}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].is_floating_point() != value.is_floating_point()
    ]
    complaints += [f"missing {key}" for key in wanted if key not in tensors]
    complaints += [f"unexpected {key}" for key in tensors if key not in wanted]
    if complaints:
        problem = "does not fit its config" if wanted.keys() & tensors.keys() else "holds another model"
        raise CheckpointError(f"model: {path} {problem}: {'; '.join(complaints)}")


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
    config = config_from(VQGANConfig, read_json(folder / "vqgan.json"), folder / "vqgan.json")
    weights = folder / "vqgan.safetensors"
    return load_module(lambda: VQGAN(config), lambda: read_tensors(weights), weights)


def save_predictor(predictor: Predictor, folder: Path, dtype: torch.dtype | None = None) -> None:
    if is_quantized(predictor):
        raise ValueError("quantize: a predictor in 8 bits cannot be saved; save it before it is quantized")
    save_module(predictor, folder / "predictor.safetensors", dtype)
    name = next(name for name, (_, module) in ARCHITECTURES.items() if isinstance(predictor, module))
    write_json({"architecture": name} | asdict(predictor.config), folder / "predictor.json")


def load_predictor(folder: str | Path) -> Predictor:
    """The token predictor of a model folder (or "builtin"), float32, in evaluation mode."""
    folder = model_folder(folder)
    path = folder / "predictor.json"
    values = read_json(path)
    name = str(values.pop("architecture", "unet"))
    if name not in ARCHITECTURES:
        raise CheckpointError(f"model: {path}: architecture must be one of {', '.join(ARCHITECTURES)}, not {name!r}")
    record, module = ARCHITECTURES[name]
    config: Any = config_from(record, values, path)
    weights = folder / "predictor.safetensors"
    return load_module(lambda: module(config), lambda: read_tensors(weights), weights)


def load_clip(name: str | Path) -> Clip:
    """The CLIP of a model folder (or "builtin"), or else of a folder or hub id in transformers' format."""
    folder = model_folder(name)
    own_parts = (folder / "model.json").is_file() or (folder / "clip").is_dir()
    if own_parts and not (folder / "clip").is_dir():  # else its name would be looked up on the hub
        raise CheckpointError(f"model: {folder / 'clip'} is missing")
    return Clip.load(folder / "clip" if own_parts else name)


def save_model(pipeline: Engine, folder: Path, dtype: torch.dtype | None = torch.float16) -> None:
    """Writes a complete model folder, in half precision by default; `load_model` reads it back.

    All of it is written into a folder beside it first, or within it where it is there and may be a disk of its own, and
    then moved file by file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    labels = isinstance(pipeline.clip, Labels)
    about = {
        "format": FORMAT,
        "name": pipeline.name,
        "size": pipeline.size,
        "sampler": asdict(pipeline.settings),
        "variations": pipeline.variations,
        "text": "labels" if labels else "clip",
        "objects": pipeline.objects,
        "recipe": pipeline.recipe,
    }
    with tempfile.TemporaryDirectory(dir=folder if folder.is_dir() else folder.parent, prefix=".") as name:
        whole = Path(name)
        save_predictor(pipeline.predictor, whole, dtype)
        save_vqgan(pipeline.vqgan, whole, dtype)
        pipeline.clip.save(whole if labels else whole / "clip", dtype)
        write_json(about, whole / "model.json")
        folder.mkdir(exist_ok=True)
        for file in sorted(whole.rglob("*")):
            place = folder / file.relative_to(whole)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            else:
                os.replace(file, place)


def check_fit(predictor: Predictor, vqgan: VQGAN, clip: Clip | Labels, parts: str) -> None:
    """Makes sure that three parts are of one model.

    Raises:
        CheckpointError: they are not; the message begins with `parts`.
    """
    if (predictor.config.num_labels, predictor.config.c_clip) != (vqgan.config.n_embed, clip.dim):
        raise CheckpointError(
            f"model: {parts} do not fit: the predictor is for {predictor.config.num_labels} codes and "
            f"embeddings of {predictor.config.c_clip}, the VQGAN has {vqgan.config.n_embed}, CLIP {clip.dim}"
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
    settings = config_from(SamplerSettings, about["sampler"], folder / "model.json")
    variations = about.get("variations", {})
    if not isinstance(variations, dict):
        raise CheckpointError(f"model: {folder / 'model.json'}: variations must be an object")
    try:
        for_variations(settings, variations)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"model: {folder / 'model.json'}: {error}") from error
    vqgan, predictor = load_vqgan(folder), load_predictor(folder)
    clip = Labels.load(folder) if about.get("text") == "labels" else load_clip(folder)
    check_fit(predictor, vqgan, clip, f"the parts of {folder}")
    return {
        "predictor": predictor,
        "vqgan": vqgan,
        "clip": clip,
        "settings": settings,
        "variations": variations,
        "size": size,
        "name": str(about.get("name", folder.name)),
        "objects": objects,
        "recipe": recipe,
    }
