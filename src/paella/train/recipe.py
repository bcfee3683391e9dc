"""Recipes: a YAML file and `key=value` overrides, checked against a dataclass, become one record of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from paella.data.render import BACKGROUND_JITTER
from paella.data.scene import LAYOUT_SHARES
from paella.data.vocabulary import all_objects

R = TypeVar("R", bound="Recipe")


@dataclass
class DataConfig:
    """Where pictures and captions come from."""

    folder: str | None = None  # a folder of the user's own pictures; None = emoji scenes
    encoded: str | None = None  # predictors: in place of both, a folder that `paella dataset encode` wrote
    size: int = 64  # pixels, a side
    snap: int = 1  # scenes: sizes and places in multiples of this many pixels
    jitter: int = BACKGROUND_JITTER  # scenes: how far each channel of a background strays from the named colour
    # scenes: how often there is one object in the middle, a small one, two side by side, one above another, one
    # repeated
    shares: tuple[float, ...] = LAYOUT_SHARES
    objects: list[str] | None = None  # scenes: names to draw from; [all] = every one; None = the built-in model's
    patterned: float = 0.0  # scenes: share of the backgrounds that have two colours
    # scenes: of the captions; "full" ones name the background, a "name" is the object's alone, "plain" ones name things
    # in the order of their places, "varied" ones say the same in other words and languages
    wording: str = "any"
    mirrored: float = 0.5  # scenes: share of pairs worded "B to the right of A" in place of "A to the left of B"
    lookalike_groups: bool = False  # scenes: each with its three hard negatives
    workers: int = 0  # data loader processes

    def __post_init__(self) -> None:
        _check(self, "data.", size=1, snap=1, jitter=0, workers=0)
        if self.objects == ["all"]:
            self.objects = list(all_objects())
        if self.encoded is not None and self.folder is not None:
            raise ValueError("data.encoded: stands in the place of data.folder; only one of them may be given")

    def check_fits(self, f: int) -> None:
        """Makes sure that the pictures are whole tokens, of f pixels a side.

        Raises:
            ValueError: they are not.
        """
        if self.size % f:
            raise ValueError(f"data.size: must be a multiple of {f}, the VQGAN's compression, not {self.size}")


@dataclass
class OptimizerConfig:
    """AdamW, a linear warm-up, and a cosine decay to `final_rate` times the learning rate (1 = held)."""

    learning_rate: float = 3e-4
    warmup: float = 0.05  # share of the steps
    final_rate: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    # A layer that sums over more inputs than this learns at a rate smaller in proportion, so that a step changes its
    # output about as much as a narrow layer's (maximal update parametrization, Yang et al. 2022). 0 = one rate for all.
    full_rate_inputs: int = 0

    def __post_init__(self) -> None:
        check_shares(self, "optimizer.", "warmup", "final_rate")
        _check(self, "optimizer.", learning_rate=0, weight_decay=0, full_rate_inputs=0)
        if not self.clip > 0:
            raise ValueError(f"optimizer.clip: must be above 0 (.inf = gradients as they are), not {self.clip}")


@dataclass
class Recipe:
    """What every training run has in common."""

    output: str = "???"  # the run's folder: checkpoint, metrics, pictures and the finished model
    steps: int = 1000
    batch_size: int = 32  # of each process, and of each of the batches that make a step
    accumulate: int = 1  # batches whose gradients make one step
    # Predictors on several processes: steps after which these take the mean of their weights, each having learned alone
    # till then; 1 = the mean of their gradients, at every step.
    average_every: int = 1
    seed: int = 0
    precision: str = "auto"  # "bf16", "float32", or "auto": bf16 where the processor multiplies it natively
    compile: bool = False
    ema: float = 0.999
    log_every: int = 50
    preview_every: int = 500
    checkpoint_minutes: float = 5.0
    init_from: str | None = None  # a model folder or "builtin": weights to start from
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        least_one = ("steps", "batch_size", "accumulate", "average_every", "log_every", "preview_every")
        _check(self, "", seed=0, checkpoint_minutes=0, **dict.fromkeys(least_one, 1))
        check_shares(self, "", "ema")
        if self.log_every % self.average_every:
            raise ValueError(
                f"log_every: must be a multiple of average_every ({self.average_every}), as processes stop where they "
                f"log, not {self.log_every}"
            )
        if self.precision not in ("auto", "bf16", "float32"):
            raise ValueError(f"precision: must be auto, bf16 or float32, not {self.precision!r}")

    def record(self) -> dict[str, Any]:
        """What a finished model says of its making: all but the folder that the run was written to."""
        return {key: value for key, value in asdict(self).items() if key != "output"}


def _check(record: Any, prefix: str, **least: int) -> None:
    for name, bound in least.items():
        if not getattr(record, name) >= bound:  # as no number that is none is
            raise ValueError(f"{prefix}{name}: must be at least {bound}, not {getattr(record, name)}")


def check_shares(record: Any, prefix: str, *names: str) -> None:
    """Makes sure that these entries are within 0 ... 1.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if not 0 <= getattr(record, name) <= 1:
            raise ValueError(f"{prefix}{name}: must be within 0 ... 1, not {getattr(record, name)}")


def _file(path: str | Path) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        return OmegaConf.load(path)
    except OSError as error:
        raise ValueError(f"recipe: cannot read {path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe: {path}: {' '.join(str(error).split())}") from error


def _override(schema: type, override: str) -> Any:
    """What `key=value` says: YAML, but where the key is for a text, which is taken as it is (output=2024_01_15)."""
    from omegaconf import OmegaConf

    key, text = (part.strip() for part in override.split("=", 1))
    wanted: Any = schema
    for name in key.split("."):
        wanted = get_type_hints(wanted).get(name) if is_dataclass(wanted) else None
    if wanted not in (str, str | None) or text in ("null", "~") or text[0] in "'\"" or "${" in text:
        return OmegaConf.from_dotlist([override])
    said = OmegaConf.create()
    OmegaConf.update(said, key, text)
    return said


def load_recipe(schema: type[R], path: str | Path | None, overrides: Sequence[str] = ()) -> R:
    """The recipe of that file with `key=value` overrides, as a record of type `schema`.

    Raises:
        ValueError: the file does not exist, or a key or a value does not fit; the message names it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        layers: list[Any] = [OmegaConf.structured(schema)]
        if path is not None:
            layers.append(_file(path))
        for override in overrides:
            if "=" not in override:
                raise ValueError(f"recipe: {override!r} is not of the form key=value")
            if not override.partition("=")[2].strip():  # null to YAML; an unset variable of a shell's, more likely
                raise ValueError(f"recipe: {override!r} has no value; null stands for none")
            layers.append(_override(schema, override))
        return OmegaConf.to_object(OmegaConf.merge(*layers))  # type: ignore[return-value]
    except (YAMLError, TypeError) as error:  # TypeError: the file's top level is no mapping
        raise ValueError(f"recipe: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        # of its several lines, the first says what is wrong
        key = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"recipe: {key}{str(error).splitlines()[0]}") from error
