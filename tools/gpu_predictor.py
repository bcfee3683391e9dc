"""Trains a predictor on emoji scenes as fast as one GPU can.

    python tools/gpu_predictor.py recipes/predictor-gpu.yaml MODEL OUTPUT 425 [KEY=VALUE ...]

A step computes what one of `paella.train.predictor` does, on tokens and embeddings that lie in the GPU's memory, as
one CUDA graph, while other processes draw new scenes all the time. So that the sizes in the graph stay the same, the
samples of a batch that see the embedding of what is clean are its first ones; their share is the recipe's. The
learning rate falls with the time that has passed, and not with the steps. MODEL is a model folder to start from,
OUTPUT becomes one, 425 are the seconds that all may take, and KEY=VALUE are as of `paella train`. Of the recipe
`steps`, `ema`, `rehearse` and `checkpointing` do not count. Without a GPU it runs too, to be tried.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from paella import Paella
from paella.checkpoint import load_clip, load_predictor, load_vqgan, save_model
from paella.clip import Clip
from paella.data import open_data
from paella.data.scenes import objects
from paella.images import blanked, moved
from paella.noise import add_noise
from paella.train.loop import learning_rate, parameter_groups
from paella.train.loss import SmoothedCrossEntropy
from paella.train.predictor import MOVING, PredictorRecipe
from paella.train.recipe import load_recipe
from paella.unet import TokenPredictor
from paella.vqgan import VQGAN

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# processes that draw; they fill so many slots, of so many scenes each
WORKERS, SLOTS, CHUNK = (14, 48, 512) if GPU else (1, 4, 16)
# scenes that are kept, the newest in place of the oldest; and how many there are at the start
POOL, FIRST = (1_500_000, 60_000) if GPU else (256, 64)
EVERY = 3  # steps between two looks at what was drawn
AVERAGED = 0.9995
LOGGED = 1000 if GPU else 20  # steps


class Slots:
    """Memory that processes share: those that draw fill slots, the one that trains empties them."""

    def __init__(self, size: int, context: int) -> None:
        self.pixels = torch.zeros(SLOTS, CHUNK, size, size, 3, dtype=torch.uint8).share_memory_()
        self.ids = torch.zeros(SLOTS, CHUNK, context, dtype=torch.int32).share_memory_()
        self.free: Any = mp.Queue()
        self.filled: Any = mp.Queue()


def draw(worker: int, recipe: PredictorRecipe, clip: Clip, slots: Slots) -> None:
    """Fills slots for ever, with scenes that no other worker draws."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    data: Any = open_data(recipe.data, recipe.seed)
    index = worker * 10**8
    while True:
        slot = slots.free.get()
        captions = []
        for row in range(CHUNK):
            picture, caption = data[index]
            slots.pixels[slot, row] = torch.from_numpy(np.array(picture))
            captions.append(caption)
            index += 1
        ids = clip.tokenize(captions)
        slots.ids[slot] = F.pad(ids, (0, clip.context - ids.shape[1]), value=clip.tokenizer.pad_token_id)
        slots.filled.put(slot)


class Pool:
    """Tokens and embeddings of the scenes that were drawn last, in the GPU's memory."""

    def __init__(self, slots: Slots, vqgan: VQGAN, clip: Clip, side: int) -> None:
        self.slots, self.vqgan, self.clip = slots, vqgan, clip
        self.tokens = torch.zeros(POOL, side, side, dtype=torch.int16, device=DEVICE)
        self.text, self.image = (torch.zeros(POOL, clip.dim, dtype=torch.half, device=DEVICE) for _ in range(2))
        # copies that a GPU does not wait for start from pinned memory
        self.staged = [(torch.zeros_like(slots.pixels[0]), torch.zeros_like(slots.ids[0])) for _ in range(6)]
        if GPU:
            self.staged = [(pixels.pin_memory(), ids.pin_memory()) for pixels, ids in self.staged]
        self.sent = [torch.cuda.Event() for _ in self.staged] if GPU else []
        self.taken = self.drawn = 0

    def _sent(self, slot: int) -> tuple[Tensor, Tensor]:
        number = self.taken % len(self.staged)
        if GPU:
            self.sent[number].synchronize()
        pixels, ids = self.staged[number]
        pixels.copy_(self.slots.pixels[slot])
        ids.copy_(self.slots.ids[slot])
        self.slots.free.put(slot)
        there = pixels.to(DEVICE, non_blocking=True), ids.to(DEVICE, non_blocking=True)
        if GPU:
            self.sent[number].record()
        self.taken += 1
        return there

    @torch.no_grad()
    def add(self, filled: list[int]) -> None:
        """Encodes what is in these slots."""
        pixels, ids = (torch.cat(parts) for parts in zip(*map(self._sent, filled), strict=True))
        pixels = (pixels.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
        rows = torch.arange(self.drawn, self.drawn + len(pixels), device=DEVICE) % POOL
        self.tokens[rows] = self.vqgan.encode(pixels).to(torch.int16)
        self.image[rows] = self.clip.embed_images(pixels).half()
        pooled = self.clip.model.text_model(input_ids=ids.long()).pooler_output
        self.text[rows] = self.clip.whitened(self.clip.model.text_projection(pooled)).half()
        self.drawn += len(pixels)

    def add_what_is_there(self) -> None:
        filled = []
        try:
            while len(filled) < 2:
                filled.append(self.slots.filled.get_nowait())
        except queue.Empty:
            pass
        if filled:
            self.add(filled)


def clean_regions(batch: int, side: int) -> Tensor:
    """`paella.train.predictor.clean_regions` with a share of 1, on the GPU."""
    edges, line = torch.tensor([0, side - 1], device=DEVICE), torch.arange(side, device=DEVICE)
    corners = (torch.rand(batch, 2, 2, device=DEVICE).sort(dim=-1).values * side).floor().long()
    low, high = torch.where(torch.rand(batch, 2, 2, device=DEVICE) < 0.5, edges, corners).unbind(-1)
    rows = (line >= low[:, :1]) & (line <= high[:, :1])
    columns = (line >= low[:, 1:]) & (line <= high[:, 1:])
    return (rows[:, :, None] & columns[:, None]) ^ (torch.rand(batch, device=DEVICE) < 0.5)[:, None, None]


class Batch:
    """What a step reads, always in the same places, as a graph must find it: tokens, conditions and clean regions."""

    def __init__(self, recipe: PredictorRecipe, pool: Pool) -> None:
        self.recipe, self.pool = recipe, pool
        size, self.side, f = recipe.batch_size, pool.tokens.shape[1], pool.vqgan.config.f
        self.u = torch.zeros(size, self.side, self.side, dtype=torch.int64, device=DEVICE)
        self.condition = torch.zeros(size, pool.clip.dim, device=DEVICE)
        self.regions = torch.zeros_like(self.u, dtype=torch.bool)
        share, null = recipe.region_share, recipe.region_null_share
        self.in_context = round(share * null * recipe.context_share * size)
        seen = self.in_context / size
        self.region_share = (share - seen) / (1 - seen)  # of the others
        self.region_null_share = share * null * (1 - recipe.context_share) / max(share - seen, 1e-9)
        self.stride = math.lcm(recipe.data.snap, f) // f
        self.furthest = int(recipe.image_shift * recipe.data.size / (f * self.stride))

    @torch.no_grad()
    def fill(self) -> None:
        recipe, pool, size, first = self.recipe, self.pool, len(self.u), self.in_context

        def chosen(share: float | Tensor) -> Tensor:
            return torch.rand(size, device=DEVICE) < share

        index = torch.randint(min(pool.drawn, POOL), (size,), device=DEVICE)
        u, some, regions = pool.tokens[index].long(), chosen(self.region_share), clean_regions(size, self.side)
        some[:first] = True
        regions &= some[:, None, None]
        known = regions.flatten(1).any(1)
        null = chosen(torch.where(known, self.region_null_share, recipe.null_share))
        null[:first] = True
        of_picture = chosen(recipe.image_share)
        condition = torch.where(of_picture[:, None], pool.image[index], pool.text[index]).float() * ~null[:, None]
        if self.furthest:
            moving = of_picture & ~null & chosen(MOVING)
            offsets = torch.randint(-self.furthest, self.furthest + 1, (size, 2), device=DEVICE) * self.stride
            u = moved(u, offsets * moving[:, None])
        if first:
            visible = blanked(pool.vqgan.decode(u[:first]), regions[:first])
            condition[:first] = pool.clip.embed_images(visible).float() * known[:first, None]
        self.u.copy_(u)
        self.condition.copy_(condition)
        self.regions.copy_(regions)


class Lookup(torch.autograd.Function):
    """torch's embedding, whose backward pass may look at numbers on the CPU; this one does not."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape = weight.shape
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).float()
        return None, torch.zeros(ctx.shape, device=rows.device).index_add_(0, tokens.flatten(), rows)


class Learner:
    """The predictor, its optimizer and the average of its weights."""

    def __init__(self, recipe: PredictorRecipe, predictor: TokenPredictor, batch: Batch) -> None:
        self.recipe, self.predictor, self.batch = recipe, predictor, batch
        if recipe.compile:  # fewer kernels, for a minute or two
            predictor.step = torch.compile(predictor.step, dynamic=False)  # type: ignore[method-assign]
        embedding = predictor.embedding
        embedding.forward = lambda tokens: Lookup.apply(tokens, embedding.weight)  # type: ignore[method-assign]
        self.parameters = list(predictor.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        groups = parameter_groups(predictor, recipe.optimizer)
        self.scales = [group.pop("scale") for group in groups]
        self.rates = [torch.zeros((), device=DEVICE) for _ in groups]  # a graph reads them at each step
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate if GPU else 0.0
        self.optimizer = torch.optim.AdamW(groups, betas=recipe.optimizer.betas, fused=True, capturable=GPU)
        self.loss = torch.zeros((), device=DEVICE)

    def step(self) -> None:
        recipe, batch = self.recipe, self.batch
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
            t = torch.rand(len(batch.u), device=DEVICE).pow(recipe.t_power)
            noise = torch.randint(self.predictor.config.num_labels, batch.u.shape, device=DEVICE)
            noisy = add_noise(batch.u, t, noise, torch.rand(batch.u.shape, device=DEVICE))
            logits = self.predictor(torch.where(batch.regions, batch.u, noisy), batch.condition, t)
            rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
            losses, _ = SmoothedCrossEntropy.apply(rows, batch.u.flatten(), recipe.label_smoothing)
            loss = losses.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, recipe.optimizer.clip)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - AVERAGED)
        self.loss += loss.detach()

    def set_rate(self, progress: float) -> None:
        """`progress`: of the whole run, from 0 to 1."""
        value = learning_rate(self.recipe.optimizer, round(progress * 10**6), 10**6)
        for group, rate, scale in zip(self.optimizer.param_groups, self.rates, self.scales, strict=True):
            if GPU:
                rate.fill_(value * scale)
            else:
                group["lr"] = value * scale

    def captured(self) -> Any:
        """One call that takes a step: on a GPU, the replay of a graph."""
        if not GPU:
            return self.step
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # no weight changes here, as the rates are 0
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def main(recipe_file: str, model: str, output: str, seconds: str, *overrides: str) -> None:
    start = time.time()
    recipe = load_recipe(PredictorRecipe, recipe_file, [*overrides, f"output={output}", f"init_from={model}"])
    if recipe.data.folder or recipe.data.encoded:
        raise ValueError("data: only emoji scenes are drawn here")
    clip, f = load_clip(model), load_vqgan(model).config.f
    mp.set_start_method("fork")  # before anything is on the GPU
    slots = Slots(recipe.data.size, clip.context)
    for worker in range(WORKERS):
        mp.Process(target=draw, args=(worker, recipe, clip, slots), daemon=True).start()
    for slot in range(SLOTS):
        slots.free.put(slot)

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(recipe.seed)
    vqgan, predictor = (
        part.to(DEVICE, memory_format=torch.channels_last) for part in (load_vqgan(model), load_predictor(model))
    )
    clip.to(DEVICE)
    pool = Pool(slots, vqgan, clip, recipe.data.size // f)
    while pool.drawn < FIRST:
        pool.add([slots.filled.get(timeout=120), slots.filled.get(timeout=120)])  # or those that draw have died
    batch = Batch(recipe, pool)
    batch.fill()
    learner = Learner(recipe, predictor.train(), batch)
    step = learner.captured()
    learner.loss.zero_()

    began, steps = time.time(), 0
    until = start + float(seconds)
    while time.time() < until:
        learner.set_rate((time.time() - began) / (until - began))
        batch.fill()
        step()
        steps += 1
        if steps % EVERY == 0:
            pool.add_what_is_there()
        if steps % LOGGED == 0:
            loss = learner.loss.item() / LOGGED
            if not math.isfinite(loss):
                raise RuntimeError(f"the loss is no longer finite in step {steps}; try a smaller learning rate")
            learner.loss.zero_()
            rate = steps * recipe.batch_size / (time.time() - began)
            print(json.dumps({"step": steps, "loss": round(loss, 4), "samples/s": round(rate)}), flush=True)
    with torch.no_grad():
        for parameter, average in zip(learner.parameters, learner.average, strict=True):
            parameter.copy_(average)
    whole = Paella(
        predictor,
        vqgan,
        load_clip(model),
        recipe.sampler,
        recipe.data.size,
        name=recipe.name,
        objects=recipe.data.objects or list(objects()),
        recipe=replace(recipe, steps=steps, model=predictor.config).record(),
        variations=recipe.variations,
    )
    save_model(whole, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
