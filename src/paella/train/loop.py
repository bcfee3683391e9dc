"""The training loop, the same for every stage. What a stage trains, and on which loss, it says itself (`Stage`).

A run is resumed exactly: the data stream is a function of the step, the random numbers of a step are seeded by its
number, and the checkpoint holds weights, averaged weights and optimizer states.
"""

from __future__ import annotations

import math
import signal
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from paella.checkpoint import model_folder, read_json
from paella.data import open_loader
from paella.placement import resolve_dtype
from paella.processes import average, mean_of_all
from paella.train.journal import Journal
from paella.train.recipe import OptimizerConfig, Recipe
from paella.train.state import Average, load_checkpoint, save_checkpoint
from paella.train.throughput import counted, peak

CHECKPOINT = "checkpoint.safetensors"

Metrics = Mapping[str, Tensor | float]
Loss = tuple[str, Tensor, Metrics]  # module name, its loss, metrics to log


class Stage(ABC):
    """One kind of model to train.

    Attributes:
        modules: what is trained, by name; each has its optimizer. The loop wraps them for its device.
        shipped: the name of the module whose averaged weights are the result.
        learns_apart: whether its losses are of one process's samples alone and all it learns is parameters, so that
            `average_every` may be more than 1.
        data: the training data; `paella.data.collate` makes its batches.
    """

    modules: dict[str, nn.Module]
    shipped: str
    learns_apart: bool = False
    data: Any
    device: torch.device = torch.device("cpu")  # the loop's, set before the first step

    @abstractmethod
    def losses(self, pixels: Any, annotations: Any, step: int) -> Iterator[Loss]:
        """Yields one loss for each module in turn; the loop updates the module before it asks for the next.

        A loss must leave no gradient in the other modules.

        Args:
            pixels: (B,3,H,W) in [0, 1]; of encoded data, the tokens (B,h,w); where none are needed, captions.
            annotations: what the data says of each picture: its caption, or a label map; of encoded data, embeddings.
        """

    @abstractmethod
    def preview(self, shipped: nn.Module) -> Image.Image:
        """A picture that shows, from fixed seeds, what the model can do."""

    @abstractmethod
    def save(self, shipped: nn.Module, folder: Path) -> None:
        """Writes the finished model."""

    def evaluate(self, shipped: nn.Module) -> dict[str, float]:
        """Figures on held-out data, logged beside each preview."""
        return {}

    def meanings(self) -> str:
        """A digest of what gives a module's inputs and outputs their meaning and is not trained with it: the BPE that
        captions are read by, labels, a predictor's VQGAN and CLIP. No run is resumed with another."""
        return ""


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from the learning rate to `final_rate` times it."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    share = config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * min(progress, 1))) / 2
    return config.learning_rate * share


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Trained parameters by weight decay and by the share ("scale") of the learning rate that they get.

    Only matrices and kernels decay: scales, biases and embeddings do not.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    placed: set[nn.Parameter] = set()  # two layers may share one
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            if not parameter.requires_grad or parameter in placed:
                continue
            placed.add(parameter)
            matrix = parameter.squeeze().ndim > 1 and not isinstance(owner, nn.Embedding)
            decay = config.weight_decay if matrix else 0.0
            scale = min(1.0, config.full_rate_inputs / inputs(owner)) if matrix and config.full_rate_inputs else 1.0
            groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": list(g), "weight_decay": decay, "scale": scale} for (decay, scale), g in groups.items()]


def inputs(layer: nn.Module) -> float:
    """How many numbers each output of a layer is a sum over, or 1 where the layer is not a linear one."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight[:, 0].numel() / math.prod(layer.stride)
    return layer.weight[0].numel() if isinstance(layer, nn.Linear | nn.Conv2d) else 1


class Trainer:
    """What a stage trains, on its device, with an optimizer for each module and the average of the shipped one.

    Attributes:
        dtype: of the matrix products and convolutions.
        accelerator: Accelerate's; it knows the device and the other processes.
        plain: the stage's modules as they were before Accelerate and the compiler wrapped them.
    """

    def __init__(self, stage: Stage, recipe: Recipe) -> None:
        from accelerate import Accelerator, PartialState
        from accelerate.utils import DataLoaderConfiguration, parse_flag_from_env

        if recipe.average_every > 1 and not stage.learns_apart:
            raise ValueError(f"average_every: must be 1 but for predictors, not {recipe.average_every}")
        self.stage, self.recipe = stage, recipe
        wanted = "bfloat16" if recipe.precision == "bf16" else recipe.precision
        device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
        self.dtype = resolve_dtype(wanted, device)
        self.accelerator = Accelerator(
            mixed_precision="no",  # autocast is our own: Accelerate's brings all outputs, such as logits, into float32
            gradient_accumulation_steps=recipe.accumulate,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
        torch.manual_seed(recipe.seed)
        stage.device = self.accelerator.device
        self.plain = {name: module.to(memory_format=torch.channels_last) for name, module in stage.modules.items()}  # type: ignore[call-overload]
        self.optimizers: dict[str, Optimizer] = {
            name: AdamW(
                parameter_groups(module, recipe.optimizer),
                recipe.optimizer.learning_rate,
                recipe.optimizer.betas,
                fused=True,
            )
            for name, module in self.plain.items()
        }
        for name, module in self.plain.items():
            stage.modules[name] = self.accelerator.prepare_model(
                torch.compile(module) if recipe.compile else module,
                evaluation_mode=recipe.average_every > 1,  # or each step would average the gradients
            )
            self.optimizers[name] = self.accelerator.prepare_optimizer(self.optimizers[name])
        self.average = Average(self.plain[stage.shipped], recipe.ema)
        self.unchecked: list[tuple[str, int, Tensor]] = []  # module, step, whether its loss and gradient were finite

    @property
    def samples(self) -> int:
        """How many the processes together take in one step."""
        return self.recipe.batch_size * self.recipe.accumulate * self.accelerator.num_processes

    def averaged(self) -> AbstractContextManager[nn.Module]:
        """A context in which the shipped module has its averaged weights, in evaluation mode."""
        return self.average.applied_to(self.plain[self.stage.shipped])

    def leave(self) -> None:
        """Ends what ties the processes together. Wrapped modules go first: one that is the last to hold the process
        group waits for its threads, and keeps Python from them, which they may wait for (DDP's Reducer, torch 2.13)."""
        self.stage.modules.update(self.plain)
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def step(self, batches: Iterator[Any], step: int) -> list[Metrics]:
        """Changes each module once, by the losses of the next `accumulate` batches; returns what each batch logs.

        Nothing here waits for a GPU, which works off one step while the next is prepared.
        """
        recipe, accelerator = self.recipe, self.accelerator
        rate = learning_rate(recipe.optimizer, step, recipe.steps)
        logged: list[Metrics] = []
        for part in range(recipe.accumulate):
            pictures, annotations = next(batches)
            number = step * recipe.accumulate + part
            torch.manual_seed(hash((recipe.seed, number, accelerator.process_index)) % 2**63)
            metrics: dict[str, Tensor | float] = {}
            with accelerator.accumulate(*self.stage.modules.values()):
                for name, loss, values in _autocast(
                    accelerator.device, self.dtype, self.stage.losses(pictures, annotations, step)
                ):
                    accelerator.backward(loss)
                    metrics |= values
                    finite = torch.isfinite(loss)
                    if accelerator.sync_gradients:  # those of all parts are there
                        norm = accelerator.clip_grad_norm_(self.plain[name].parameters(), recipe.optimizer.clip)
                        metrics[f"{name} gradient"] = norm
                        finite &= torch.isfinite(norm)
                    self.unchecked.append((name, step + 1, finite))
                    for group in self.optimizers[name].param_groups:
                        group["lr"] = rate * group["scale"]
                    self.optimizers[name].step()  # until then, Accelerate makes these two do nothing
                    self.optimizers[name].zero_grad()
            logged.append({**metrics, "rate": rate})
        if accelerator.num_processes > 1 and recipe.average_every > 1 and self.agree(step + 1):
            self._meet(step + 1)
        self.average.update(self.plain[self.stage.shipped], step + 1)
        return logged

    def agree(self, step: int) -> bool:
        """Whether all processes have the same weights and moments after that many steps."""
        return step % self.recipe.average_every == 0 or step == self.recipe.steps

    def _meet(self, step: int) -> None:
        """Gives all processes the mean of what they learned apart: weights, and the moments of their optimizers."""
        for name, optimizer in self.optimizers.items():
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            average(trained)
            for moment in ("exp_avg", "exp_avg_sq"):
                average([state[moment] for state in optimizer.state.values()])
            # another's may not have been finite, and no gradient of this one's shows it
            self.unchecked.append((name, step, torch.isfinite(nn.utils.get_total_norm(trained))))

    def stops(self, told: bool, step: int) -> bool:
        """Whether to end after this step, as this process was told to or another.

        Several must end after the same one. They ask each other where they log, as that waits for a GPU.
        """
        if self.accelerator.num_processes == 1:
            return told
        asks = step % self.recipe.log_every == 0
        return asks and mean_of_all(torch.tensor(float(told), device=self.accelerator.device)).item() > 0

    def check_finite(self) -> None:
        """Looks at the steps since it last did; to be called before anything of them is written.

        Raises:
            RuntimeError: a loss or a gradient was not finite.
        """
        finite = torch.stack([finite for _, _, finite in self.unchecked]).tolist()
        for (name, step, _), well in zip(self.unchecked, finite, strict=True):
            if not well:
                raise RuntimeError(
                    f"{name}: its loss or gradient is no longer finite in step {step}; try a smaller "
                    f"optimizer.learning_rate. {Path(self.recipe.output) / CHECKPOINT} is as it was last written"
                )
        self.unchecked.clear()


def train(stage: Stage, recipe: Recipe) -> Path:
    """Runs, or resumes, a training run to its end and writes the model; returns the run's folder.

    An interrupt (Ctrl-C or SIGTERM) lets the step end, writes a checkpoint and raises KeyboardInterrupt; the same
    command goes on from there.
    """
    if recipe.init_from is not None:
        warn_of_unseen_objects(recipe.init_from, stage.data)
    trainer = Trainer(stage, recipe)
    output = Path(recipe.output)
    output.mkdir(parents=True, exist_ok=True)
    state = (stage.meanings(), trainer.plain, trainer.average, trainer.optimizers)
    checkpoint, model = output / CHECKPOINT, output / "model"
    if model.exists() and not checkpoint.exists():
        raise ValueError(
            f"output: {model} is there, and no {CHECKPOINT} of its run to go on from; use another folder, or remove it"
        )
    done = load_checkpoint(checkpoint, *state) if checkpoint.exists() else 0
    start = done * trainer.samples
    loader = open_loader(stage.data, recipe.batch_size, recipe.seed, start=start, workers=recipe.data.workers)
    loader = trainer.accelerator.prepare(loader)
    writes = trainer.accelerator.is_main_process
    if writes and done >= recipe.steps and not model.exists():
        with trainer.averaged() as shipped:
            stage.save(shipped, model)

    with Journal(output, recipe, writes, done) as journal, _Interrupts() as interrupts:
        step = done
        saved = time.monotonic()
        batches = iter(loader) if done < recipe.steps else iter(())
        with journal.progress(done, recipe.steps) as advance:
            while step < recipe.steps:
                if step == done and not recipe.compile:  # compiled code cannot be counted
                    logged, operations = counted(partial(trainer.step, batches, step))
                    journal.seconds_at_peak = operations / peak(stage.device, trainer.dtype)
                else:
                    logged = trainer.step(batches, step)
                journal.add(logged)
                step += 1
                advance()
                last = step == recipe.steps
                logs, shows = (last or step % every == 0 for every in (recipe.log_every, recipe.preview_every))
                stops = trainer.stops(interrupts.received, step)  # once: what comes from here on ends the next step
                due = trainer.agree(step) and time.monotonic() - saved > 60 * recipe.checkpoint_minutes
                saves = last or stops or due
                if logs or shows or saves:
                    trainer.check_finite()
                if logs:
                    journal.write(step, trainer.samples)
                if writes and shows:
                    with journal.uncounted(), trainer.averaged() as shipped, torch.no_grad():
                        journal.show(step, stage.preview(shipped), stage.evaluate(shipped))
                if saves:
                    if writes:
                        if not last:  # first: a run that breaks off between the two can go on
                            save_checkpoint(checkpoint, step, *state)
                        with trainer.averaged() as shipped:
                            stage.save(shipped, model)  # so that a run can be tried at any time
                        if last:  # then it says that the model is there too
                            save_checkpoint(checkpoint, step, *state)
                    saved = time.monotonic()
                if stops:
                    trainer.accelerator.wait_for_everyone()  # who starts them may end all when the first has ended
                    trainer.leave()  # a process that listens still may abort on its way out
                    raise KeyboardInterrupt
    trainer.leave()
    return output


def warn_of_unseen_objects(folder: str, data: Any) -> None:
    """Warns where scenes lack objects that the model of that folder knows: it would forget them."""
    names, about = set(getattr(data, "names", [])), model_folder(folder) / "model.json"
    known = read_json(about).get("objects", []) if names and about.is_file() else []
    if unseen := [name for name in known if name not in names]:
        warnings.warn(
            f"init_from: {folder} knows {len(unseen)} objects that are not in the data, such as {unseen[0]}, and will "
            "forget them; see data.objects",
            stacklevel=2,
        )


def _autocast(device: torch.device, dtype: torch.dtype, losses: Iterator[Loss]) -> Iterator[Loss]:
    """Computes each loss under autocast, and lets the update between two of them run outside it."""
    while True:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            item = next(losses, None)
        if item is None:
            return
        yield item


class _Interrupts:
    """Notes Ctrl-C and SIGTERM instead of dying of them; a second one kills as usual."""

    received = False

    def __enter__(self) -> _Interrupts:
        self.before = {name: signal.signal(name, self._note) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = True
        signal.signal(number, self.before[signal.Signals(number)])

    def __exit__(self, *_: object) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
