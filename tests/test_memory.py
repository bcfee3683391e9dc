"""What does not fit the memory is refused, in words, before anything is drawn."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run as Command
from fakes import box_mask, some_picture

from paella import memory
from paella.memory import Run, available, needed, pictures_at_once
from paella.pipeline import Paella

GIB = 2**30


def bytes_of(model: Paella, run: Run, at_once: int = 1) -> int:
    return needed(model.predictor, model.vqgan, run, at_once)


def test_the_estimate_grows_linearly_with_the_area(tiny: Paella) -> None:
    for run in (
        Run(100, 100),
        Run(100, 100, count=5),
        Run(100, 100, guided=False),
        Run(100, 100, regions=2),
        Run(100, 100, steps=8),
    ):
        sizes = [replace(run, height=100 * k) for k in (1, 2, 3)]
        once, twice, thrice = (bytes_of(tiny, size) for size in sizes)
        assert 0 < twice - once == thrice - twice
        assert bytes_of(tiny, replace(run, height=50, width=200)) == once


def test_it_grows_with_all_that_takes_memory(tiny: Paella) -> None:
    plain = bytes_of(tiny, Run(64, 64))
    assert bytes_of(tiny, Run(64, 64, count=2)) > plain
    assert bytes_of(tiny, Run(64, 64, regions=1)) > plain
    assert bytes_of(tiny, Run(64, 64), at_once=2) > plain
    assert bytes_of(tiny, Run(64, 64, count=9, steps=8)) - bytes_of(tiny, Run(64, 64, count=9)) > 72 * 4 * 256**2


def test_guidance_confidence_and_float32_take_more_where_the_predictor_is_what_counts() -> None:
    model = Paella.from_pretrained(device="cpu", dtype="float32")
    run = Run(256, 256)
    plain, guided, confident = (replace(run, guided=False), run, replace(run, unsure=True))
    assert bytes_of(model, plain) < (single := bytes_of(model, guided)) < bytes_of(model, confident)
    assert bytes_of(model.to(dtype=torch.bfloat16), guided) < single


def test_a_gpu_filters_all_places_at_once() -> None:
    model = Paella.from_pretrained(device="cpu", dtype="float32")
    on_cpu = bytes_of(model, Run(256, 256))
    elsewhere = bytes_of(model.to(torch.device("meta")), Run(256, 256))
    assert elsewhere - on_cpu > 256 * 256 * model.predictor.config.num_labels * 20


def test_a_large_picture_takes_no_more_of_the_decoder(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_decoder_bytes", lambda vqgan: 10**6)  # so that nothing else counts
    whole, twice = bytes_of(tiny, Run(256, 256)), bytes_of(tiny, Run(512, 256))
    assert twice < 1.01 * whole


ABILITIES: dict[str, tuple[str, Callable[[Paella, int], Any]]] = {
    "generate": ("size", lambda model, side: model.generate("a dog", size=side)),
    "vary": ("size", lambda model, side: model.vary(some_picture(), 1, size=side)),
    "interpolate": ("size", lambda model, side: model.interpolate("a dog", "a cat", 1, size=side)),
    "compose": ("size", lambda model, side: model.compose([("a dog", "left")], size=side)),
    "inpaint": (
        "image",
        lambda model, side: model.inpaint(some_picture(side, side), box_mask(some_picture(side, side), 0, 0, 8, 8)),
    ),
    "outpaint": ("image", lambda model, side: model.outpaint(some_picture(), right=side - 32, bottom=side - 32)),
    "restyle": ("image", lambda model, side: model.restyle(some_picture(side, side), "a dog")),
}


@pytest.mark.parametrize("ability", ABILITIES)
def test_every_ability_refuses_what_does_not_fit_before_it_starts(
    tiny: Paella, ability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, draw = ABILITIES[ability]
    monkeypatch.setattr(memory, "available", lambda device: bytes_of(tiny, Run(24, 24, regions=1)))
    draw(tiny, 64)  # this fits

    def never(*_: object, **__: object) -> None:
        pytest.fail("something was drawn or encoded")

    for name in ("_draw", "_encode", "_embed", "_embed_picture", "_repaint"):
        monkeypatch.setattr(Paella, name, never)
    with pytest.raises(
        ValueError, match=rf"^{argument}: a picture of 128 x 128 pixels .* GiB .* largest square"
    ) as why:
        draw(tiny, 128)
    monkeypatch.undo()
    largest = int(re.findall(r"fits is (\d+) x", str(why.value))[0])
    assert 64 < largest < 128 and largest % 4 == 0


@pytest.mark.parametrize("count", [1, 3])
def test_the_largest_size_it_names_is_accepted_and_the_next_is_not(
    tiny: Paella, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda device: bytes_of(tiny, Run(30, 20, count)))
    with pytest.raises(ValueError, match=r"^size: ") as why:
        tiny.generate("a dog", n=count, size=(20, 4000))
    assert ("3 pictures of 20 x 4000 pixels" in str(why.value)) == (count == 3)
    largest = int(re.findall(r"fits is (\d+) x", str(why.value))[0])
    assert largest == 4 * int((30 * 20) ** 0.5)
    tiny.generate("a dog", n=count, size=largest, steps=1)
    with pytest.raises(ValueError, match=r"^size: "):
        tiny.generate("a dog", n=count, size=largest + 4)


def test_the_steps_of_a_trajectory_count(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: bytes_of(tiny, Run(8, 8, 2, steps=3)))
    assert len(tiny.generate("a dog", n=2, steps=3, trajectory=True)) == 2
    with pytest.raises(ValueError, match=r"^size: 2 pictures "):
        tiny.generate("a dog", n=2, steps=4, trajectory=True)
    tiny.generate("a dog", n=2, steps=4)
    with pytest.raises(ValueError, match=r"^steps: "):
        tiny.generate("a dog", steps=0, trajectory=True)


def test_where_not_even_one_token_fits_it_suggests_nothing(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 0)
    with pytest.raises(ValueError, match=r"0\.0 GiB are available$"):
        tiny.generate("a dog")


def test_where_nothing_is_known_nothing_is_refused(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: None)
    memory.check(tiny.predictor, tiny.vqgan, Run(10**6, 10**6), "size")


def test_the_command_says_it_in_one_line(generate: Command) -> None:
    code, out, err = generate("a dog", "--size", "100000")
    assert code == 2 and not out
    assert re.fullmatch(r"paella: error: --size: a picture of 100000 x 100000 pixels .* GiB .*\n", err)


def test_as_many_pictures_at_once_as_fit(tiny: Paella, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(64, 64, count=16)
    for left, expected in ((None, 16), (GIB * 100, 16), (bytes_of(tiny, run, at_once=5), 5), (0, 1)):
        monkeypatch.setattr(memory, "available", lambda device, left=left: left)
        assert pictures_at_once(tiny.predictor, tiny.vqgan, run, most=16) == expected


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for what the system says of its memory; it says nothing yet."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "freed_memory", lambda: 0)
    return tmp_path


def test_the_machine_s_memory_and_the_container_s_limit_are_both_respected(system: Path) -> None:
    cpu = torch.device("cpu")
    assert available(cpu) is None
    (system / "meminfo").write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   5000 kB\nHugePages_Total: 0\n")
    assert available(cpu) == 5000 * 1024
    (system / "memory.current").write_text("1000000\n")
    (system / "memory.max").write_text("max\n")
    assert available(cpu) == 5000 * 1024
    (system / "memory.max").write_text("3000000\n")
    assert available(cpu) == 2000000
    (system / "memory.stat").write_text("anon 5\ninactive_file 400000\n")  # only cached
    assert available(cpu) == 2400000
    (system / "memory.max").write_text("9000000000\n")
    assert available(cpu) == 5000 * 1024
    assert available(torch.device("meta")) is None


def test_what_this_process_freed_and_did_not_give_back_is_left_too(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "freed_memory", lambda: 700)
    assert available(torch.device("cpu")) is None
    (system / "meminfo").write_text("MemAvailable:   5000 kB\n")
    assert available(torch.device("cpu")) == 5000 * 1024 + 700


def test_here_the_memory_is_known() -> None:
    if not memory.MEMINFO.exists():
        pytest.skip("no Linux")
    left = available(torch.device("cpu"))
    assert left is not None and left > 2**20
