"""Laws of one training step, with stages whose gradients are known."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from training import make_stage, train

from paella.checkpoint import load_predictor
from paella.data import open_loader
from paella.train.journal import in_a_line
from paella.train.loop import Loss, Stage, Trainer
from paella.train.recipe import OptimizerConfig, Recipe
from paella.train.throughput import counted, peak


class Shades:
    """An endless data set: picture i is of one shade, which says which it is."""

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        return Image.new("RGB", (2, 2), (index % 251,) * 3), str(index)


class Exact(nn.Linear):
    """A linear layer that autocast leaves in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(-1) + self.bias


class TwoStage(Stage):
    """Two modules, one after the other; each loss is the mean over the batch of what every picture says alone."""

    shipped = "first"
    data = Shades()

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.modules = {"first": Exact(3, 2), "second": Exact(3, 1)}
        self.seen: list[str] = []

    def losses(self, pixels: Tensor, captions: list[str], step: int) -> Iterator[Loss]:
        self.seen += captions
        for name, module in self.modules.items():
            loss = module(pixels.mean((2, 3))).square().sum(1).mean()
            yield name, loss, {name: loss}

    def preview(self, shipped: nn.Module) -> Image.Image:
        raise NotImplementedError

    def save(self, shipped: nn.Module, folder: Path) -> None:
        raise NotImplementedError


def trained(steps: int, batch_size: int, accumulate: int) -> tuple[TwoStage, list[float]]:
    """The stage after so many steps, and the gradient norms of each step."""
    stage, norms = TwoStage(), []
    optimizer = OptimizerConfig(learning_rate=0.01, clip=0.5)
    trainer = Trainer(stage, Recipe("unused", steps, batch_size, accumulate=accumulate, optimizer=optimizer))
    assert trainer.samples == batch_size * accumulate
    batches = iter(open_loader(stage.data, batch_size, seed=0))
    for step in range(steps):
        *others, last = trainer.step(batches, step)
        assert len(others) == accumulate - 1 and not any("first gradient" in metrics for metrics in others)
        norms += [float(last[f"{name} gradient"]) for name in stage.modules]
    return stage, norms


def test_accumulated_batches_make_the_step_of_one_large_batch() -> None:
    (whole, norms), (parts, same_norms) = trained(5, 12, accumulate=1), trained(5, 4, accumulate=3)
    assert parts.seen == whole.seen == [str(i) for i in range(60)]
    assert same_norms == pytest.approx(norms, rel=1e-4)
    untrained = TwoStage()
    for name, module in whole.modules.items():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(parts.modules[name].state_dict()[key], value, rtol=1e-3, atol=1e-4)
            assert (value - untrained.modules[name].state_dict()[key]).abs().max() > 0.01


def test_the_autoencoder_s_loss_leaves_no_gradient_in_the_discriminator(tiny_model: Path) -> None:
    """Where batches accumulate, it would be added to the discriminator's own."""
    stage: Any = make_stage("vqgan", tiny_model, "discriminator_from=0", "adversarial_from=0")
    pixels, captions = next(iter(open_loader(stage.data, 4, seed=0)))
    gradients = []
    for name, loss, _ in stage.losses(pixels, captions, 0):
        loss.backward()
        gradients.append((name, [p.grad is not None for p in stage.modules["discriminator"].parameters()]))
    assert [name for name, _ in gradients] == ["autoencoder", "discriminator"]
    assert not any(gradients[0][1]) and all(gradients[1][1])


def test_the_arithmetic_of_a_step_is_that_of_its_products_forward_and_backward() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    _, operations = counted(lambda: layer(x).sum().backward())
    assert operations == 2 * 2 * 4 * 8 * 16  # the output, and the gradient of the weights
    q = torch.randn(1, 2, 16, 8)
    out, operations = counted(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert out.shape == q.shape and operations == 2 * 2 * (2 * 16 * 16 * 8)


def test_the_peak_is_at_least_what_another_product_reaches() -> None:
    x = torch.randn(512, 512)
    before = time.perf_counter()
    x @ x
    assert peak(torch.device("cpu"), torch.float32) > 0.2 * 2 * 512**3 / (time.perf_counter() - before)


def test_a_narrow_terminal_shows_the_loss_and_the_speed_first() -> None:
    figures = {"loss": 3.21, "accuracy": 0.5, "copied": 0.25, "loss t 0": 1.0, "first gradient": 1.0}
    assert in_a_line({}) == ""
    figures |= {"samples per second": 61.4}
    assert in_a_line(figures) == "loss 3.21 · 61.4 samples/s · accuracy 0.5 · copied 0.25"
    figures |= {"share of peak": 0.368}
    assert in_a_line(figures) == "loss 3.21 · 61.4 samples/s · 37 % of peak · accuracy 0.5 · copied 0.25"


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_checkpointed_blocks_are_computed_twice_and_have_the_same_gradients(network: str, tiny_model: Path) -> None:
    transformer = ["transformer.width=32", "transformer.layers=2", "transformer.heads=2"]
    results = []
    for checkpointing in (False, True):
        more = [f"checkpointing={checkpointing}", *(transformer if network == "transformer" else [])]
        stage: Any = make_stage("predictor", tiny_model, *more)
        predictor = stage.modules["predictor"]
        blocks = [block for block in predictor.modules() if hasattr(block, "channelwise")]
        runs: list[nn.Module] = []
        for block in blocks:
            block.channelwise.register_forward_pre_hook(lambda module, _: runs.append(module))  # noqa: B023
        pixels, captions = next(iter(open_loader(stage.data, 4, seed=0)))
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            ((_, loss, _),) = stage.losses(pixels, captions, 0)
        loss.backward()
        assert len(runs) == (1 + checkpointing) * len(blocks) > 0
        results.append((loss.detach(), {key: p.grad for key, p in predictor.named_parameters()}))
    (loss, gradients), (same_loss, same_gradients) = results
    assert torch.equal(loss, same_loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[key], gradient, rtol=1e-5, atol=1e-7)


def test_a_checkpointed_predictor_draws_and_is_saved_as_usual(tiny_model: Path, tmp_path: Path) -> None:
    train("predictor", tiny_model, tmp_path, "steps=2", "preview_every=1", "checkpointing=true", "accumulate=2")
    assert len(list((tmp_path / "preview").glob("*.png"))) == 2
    assert load_predictor(tmp_path / "model").config.num_labels == 32


def test_the_vqgan_also_sees_pictures_of_one_colour(tiny_model: Path) -> None:
    stage: Any = make_stage("vqgan", tiny_model, "plain_share=0.5")
    seen: list[Tensor] = []

    def autoencoder(pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(pixels)
        return pixels, torch.zeros(())

    stage.modules["autoencoder"] = autoencoder
    pixels = torch.rand(64, 3, 8, 8)
    next(iter(stage.losses(pixels, [""] * 64, 0)))
    plain = (seen[0] == pixels[..., :1, :1]).flatten(1).all(1)
    assert 0.3 < plain.float().mean() < 0.7
    assert torch.equal(seen[0][~plain], pixels[~plain])


class ProductsStage(TwoStage):
    """Two layers that autocast computes in its dtype; it notes in which their outputs come."""

    def __init__(self) -> None:
        super().__init__()
        self.modules = {"first": nn.Linear(3, 2), "second": nn.Linear(3, 1)}
        self.dtypes: set[torch.dtype] = set()

    def losses(self, pixels: Tensor, captions: list[str], step: int) -> Iterator[Loss]:
        for name, module in self.modules.items():
            output = module(pixels.mean((2, 3)))
            self.dtypes.add(output.dtype)
            yield name, output.float().square().mean(), {}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["auto", "bf16", "float32"])
def test_auto_is_bfloat16_where_the_processor_has_it(
    precision: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    stage = ProductsStage()
    trainer = Trainer(stage, Recipe("unused", precision=precision))
    trainer.step(iter([(torch.rand(4, 3, 2, 2), [""] * 4)]), 0)
    mixed = precision == "bf16" or (precision == "auto" and native)
    assert trainer.dtype == (torch.bfloat16 if mixed else torch.float32)
    assert stage.dtypes == {trainer.dtype}  # as the loss gets it
