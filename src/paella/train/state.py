"""The state of a run: averaged weights, and checkpoints from which it goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from paella.checkpoint import write_tensors


class Average:
    """Exponential moving average of a module's floating-point parameters and buffers."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps are not worth remembering
        averages, values = list[Tensor](), list[Tensor]()
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                averages.append(self.tensors[name])
                values.append(value)
            else:
                self.tensors[name].copy_(value)
        get_ema_multi_avg_fn(decay)(averages, values, 0)  # all at once: on a GPU each would be a launch

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[nn.Module]:
        """A context in which `module` has the averaged weights, in evaluation mode."""
        own = {name: value.clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.tensors)
        try:
            yield module.eval()
        finally:
            module.load_state_dict(own)
            module.train()


def save_checkpoint(
    path: Path,
    step: int,
    meanings: str,
    modules: dict[str, nn.Module],
    average: Average,
    optimizers: dict[str, Optimizer],
) -> None:
    """Everything that a resumed run needs, in one file, written atomically. `meanings`: as of `Stage`."""
    tensors: dict[str, Tensor] = {f"average/{name}": value for name, value in average.tensors.items()}
    for part, module in modules.items():
        tensors |= {f"module/{part}/{name}": value for name, value in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            state = optimizers[part].state.get(parameter, {})
            tensors |= {f"optimizer/{part}/{name}/{key}": value for key, value in state.items()}
    write_tensors(tensors, path, metadata={"step": str(step), "meanings": meanings})


def load_checkpoint(
    path: Path, meanings: str, modules: dict[str, nn.Module], average: Average, optimizers: dict[str, Optimizer]
) -> int:
    """Restores what `save_checkpoint` wrote; returns the number of steps done.

    Raises:
        ValueError: the checkpoint is damaged, or of another model, or of one with other labels, VQGAN, CLIP or BPE.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no __iter__)
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path} is damaged ({error}); use another output folder") from error
    if (metadata.get("meanings") or meanings) != meanings:
        raise ValueError(
            f"checkpoint: this recipe has another VQGAN or CLIP, or its data give other labels or another text "
            f"tokenizer (BPE), than the run of {path} began with; use another output folder, or what it had"
        )
    try:
        for part, module in modules.items():
            module.load_state_dict(_below(tensors, f"module/{part}/"))
            parameters = dict(module.named_parameters())
            for place, value in _below(tensors, f"optimizer/{part}/").items():
                name, key = place.split("/")
                parameter = parameters[name]
                if value.shape == parameter.shape:  # the fused update reads moments in the order of its memory
                    value = torch.empty_like(parameter).copy_(value)
                optimizers[part].state[parameter][key] = value.to(parameter.device)
        for name, value in _below(tensors, "average/").items():
            average.tensors[name].copy_(value)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"checkpoint: {path} does not fit this recipe; use another output folder. {error}") from error
    return int(metadata["step"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
