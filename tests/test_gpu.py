"""What is recorded and replayed on a GPU is what the function itself gives; without a GPU nothing is recorded."""

import copy
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from paella import Paella, gpu
from paella.gpu import FEW_PLACES, Replayed

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Counted(nn.Module):
    """Scales by its weight, and counts how often it runs in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight + y


def replayed(device: str) -> tuple[Counted, Callable[..., Tensor]]:
    counted = Counted().to(device)
    return counted, Replayed(counted.forward, counted.weight)


def test_elsewhere_the_function_itself_is_called() -> None:
    counted, function = replayed("cpu")
    with torch.inference_mode():
        assert [function(torch.full((1, 2, 2), float(i)), torch.ones(1))[0, 0, 0].item() for i in range(3)] == [1, 3, 5]
    assert counted.calls == 3


def test_a_copy_is_of_the_copied_function() -> None:
    counted = Counted()
    counted.run = Replayed(counted.forward, counted.weight)
    copied = copy.deepcopy(counted)
    assert copied.run.method() == copied.forward and copied.run.weight is copied.weight is not counted.weight


def test_its_object_is_not_kept_alive() -> None:
    counted = Counted()
    counted.run = Replayed(counted.forward, counted.weight)
    there = weakref.ref(counted)
    del counted
    assert there() is None


@pytest.mark.parametrize("there", [False, True])
def test_triton_that_is_missing_or_broken_is_not_used(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no C compiler")

    kernels = SimpleNamespace(drawn_typical=broken, convolved_and_normalized=broken)
    monkeypatch.setattr(gpu, "find_spec", lambda name: object() if there else None)
    monkeypatch.setitem(sys.modules, "paella.kernels", kernels)
    works = gpu.triton_works.__wrapped__  # what it remembers is of this process's GPUs
    with pytest.warns(UserWarning, match="^device: Triton .* no C compiler") if there else nullcontext():
        assert not works(torch.device("cpu"))


@GPU
def test_a_size_is_recorded_once_and_replayed_with_new_numbers() -> None:
    counted, function = replayed("cuda")
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            for i in range(4):
                x, y = torch.full((1, 2, 3), float(i), device="cuda"), torch.ones(1, device="cuda")
                first, second = function(x, y), function(x + 1, y)
                assert first.eq(2 * i + 1).all() and second.eq(2 * i + 3).all()  # each its own memory
    assert counted.calls == 2
    with torch.no_grad():
        counted.weight.fill_(5.0)
        assert function(x, y).eq(16).all() and counted.calls == 2  # weights are read where they lie
        assert function(x[..., :1], y).eq(16).all() and counted.calls == 3  # another size
        counted.weight.data = counted.weight.data.clone()
        assert function(x, y).eq(16).all() and counted.calls == 4  # they lie elsewhere


@GPU
def test_what_learns_or_is_large_is_not_recorded() -> None:
    counted, function = replayed("cuda")
    y = torch.ones(1, device="cuda")
    for _ in range(3):
        assert function(torch.ones(1, 2, 2, device="cuda"), y).requires_grad
        with torch.no_grad():
            function(torch.ones(FEW_PLACES + 1, 1, 1, device="cuda"), y)
    assert counted.calls == 6


@GPU
def test_weights_that_autocast_casts_are_cast_again() -> None:
    layer = nn.Conv2d(3, 3, 1, device="cuda")
    function, x = Replayed(layer.forward, layer.weight), torch.randn(1, 3, 4, 4, device="cuda")
    with torch.inference_mode():
        with torch.autocast("cuda", torch.bfloat16):
            expected = function(x)
            assert torch.equal(function(x), expected)
        torch.empty(2**20, device="cuda").fill_(9)
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.equal(function(x), expected)
            assert torch.equal(layer(x), expected)


@GPU
def test_what_cannot_be_recorded_is_called() -> None:
    counted = Counted().to("cuda")
    counted.told = lambda x: x * (2 if x.sum().item() > 0 else 3)  # waits for the GPU
    counted.run = MethodType(lambda self, x: self.told(x), counted)
    function, x = Replayed(counted.run, counted.weight), torch.ones(1, 2, 2, device="cuda")
    with torch.inference_mode():
        assert function(x).eq(2).all()
        with pytest.warns(UserWarning, match="^device: cuda.* could not record"):
            assert function(x).eq(2).all()
        assert function(x).eq(2).all()


@GPU
@pytest.mark.parametrize("size", [64, (64, 76)])  # of multiples of the lowest level's cells, and not
def test_replayed_pictures_are_those_that_are_not(size: int | tuple[int, int]) -> None:
    replaying, plain = Paella.from_pretrained(device="cuda"), Paella.from_pretrained(device="cuda")
    del plain.predictor.step, plain.vqgan.decode_latent  # on the instance: what replays
    regions = [("a red apple", "left"), ("a fox", "right")]
    for _ in range(3):
        for draw in (
            lambda model: model.generate("a red apple", 2, size=size, seed=1),
            lambda model: model.compose(regions, size=size, guidance=1),
        ):
            ours, theirs = ([picture.tobytes() for picture in draw(model)] for model in (replaying, plain))
            assert ours == theirs
    for one in (replaying.predictor.step, replaying.vqgan.decode_latent):
        assert len(one._graphs) == 2 and all(one._graphs.values())
