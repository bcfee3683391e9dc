"""The face of the library: prompts in, pictures out."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paella.images import to_pictures
from paella.pipeline import Cancelled, Interrupted, Paella
from paella.placement import resolve_device, resolve_dtype
from paella.sampler import SamplerSettings


def content(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_picture_does_not_depend_on_its_batch(tiny: Paella) -> None:
    together = tiny.generate("a dog", n=4, seed=5)
    alone = [tiny.generate("a dog", seed=5 + i)[0] for i in range(4)]
    assert content(together) == content(alone)
    assert len(set(content(together))) == 4


def test_prompts_do_not_depend_on_each_other(tiny: Paella) -> None:
    both = tiny.generate(["a dog", "a much longer prompt with a cat in it"], n=2, seed=3)
    assert content(both[2:]) == content(tiny.generate("a much longer prompt with a cat in it", n=2, seed=5))


def test_one_model_serves_several_threads(tiny: Paella) -> None:
    def asked(seed: int) -> list[bytes]:
        return content(tiny.generate("a dog", n=1 + seed % 5, seed=seed))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(asked, range(16))) == [asked(seed) for seed in range(16)]


def test_each_picture_may_have_a_seed_of_its_own(tiny: Paella) -> None:
    pictures = tiny.generate(["a dog", "a cat"], seed=[9, 4])
    assert content(pictures) == content([*tiny.generate("a dog", seed=9), *tiny.generate("a cat", seed=4)])
    assert [picture.info["seed"] for picture in pictures] == ["9", "4"]
    restyled = tiny.restyle(pictures[0], "a cat", n=2, seed=[9, 4])
    assert content(restyled[1:]) == content(tiny.restyle(pictures[0], "a cat", seed=4))


def test_pictures_are_rgb_and_say_how_they_were_made(tiny: Paella) -> None:
    pictures = tiny.generate(["a dog", "a cat"], n=2, seed=7, steps=3, guidance=2.0, negative_prompt="a bus")
    assert [picture.info["prompt"] for picture in pictures] == ["a dog", "a dog", "a cat", "a cat"]  # prompt-major
    assert [picture.info["seed"] for picture in pictures] == ["7", "8", "9", "10"]
    for picture in pictures:
        assert (picture.mode, picture.size) == ("RGB", (32, 32))
        assert picture.info["model"] == "tiny"
        assert picture.info["negative_prompt"] == "a bus"
        assert json.loads(picture.info["settings"]) == asdict(replace(tiny.settings, steps=3, guidance=2.0))


def test_what_a_picture_says_is_enough_to_make_it_again(tiny: Paella) -> None:
    picture = tiny.generate(["a dog", "a cat"], seed=1, steps=3, typical_mass=0.9, temperature=1.5)[1]
    settings = SamplerSettings(**json.loads(picture.info["settings"]))
    again = Paella(tiny.predictor, tiny.vqgan, tiny.clip, settings, tiny.size)
    assert content(again.generate(picture.info["prompt"], seed=int(picture.info["seed"]))) == content([picture])


def test_none_is_the_model_s_own_default(tiny: Paella) -> None:
    own = tiny.settings
    plain = tiny.generate("a dog")
    told = tiny.generate(
        "a dog",
        size=tiny.size,
        steps=own.steps,
        guidance=own.guidance,
        typical_mass=own.typical_mass,
        temperature=own.temperature,
    )
    assert content(plain) == content(told)


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"guidance": 1.0}, {"typical_mass": 1.0}, {"temperature": 3.0}, {"seed": 1}],
)
def test_every_setting_has_its_effect(tiny: Paella, change: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"steps": 2, "guidance": 6.0, "typical_mass": 0.5, "temperature": 1.0, "seed": 0}
    assert content(tiny.generate("a dog", **plain)) != content(tiny.generate("a dog", **{**plain, **change}))


def test_a_negative_prompt_matters_where_there_is_guidance(tiny: Paella) -> None:
    guided = [tiny.generate("a dog", guidance=8.0, negative_prompt=text) for text in (None, "", "a cat", "a dog")]
    none, empty, other, same = map(content, guided)
    assert none == empty != other
    free = [tiny.generate("a dog", guidance=1.0, negative_prompt=text) for text in (None, "a cat")]
    assert content(free[0]) == content(free[1])
    # steering from a prompt towards the same prompt: l + w·(l - l) = l, whatever the weight
    assert same == content(free[0])


def test_any_size_that_the_tokenizer_divides(tiny: Paella) -> None:
    for size, expected in ((4, (4, 4)), ((20, 44), (44, 20)), (36, (36, 36))):
        assert tiny.generate("a dog", size=size, steps=1)[0].size == expected  # PIL says (width, height)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "prompt: "),
        ({"prompt": "  \n"}, "prompt: "),
        ({"prompt": []}, "prompt: "),
        ({"prompt": 3}, "prompt: must be a string, or a list of at least one, not 3"),
        ({"prompt": ["a dog", ""]}, "prompt: "),
        ({"prompt": "a d\udcf6g"}, "prompt: must be whole characters"),
        ({"n": 0}, "n: must be at least 1"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"seed": [0, -1], "n": 2}, "seed: must be in 0"),
        ({"seed": [0], "n": 2}, "seed: must be one, or one for each of the 2 pictures, not 1"),
        ({"size": (30, 33)}, "size: must be multiples of 4, not 30 x 33; the nearest is 32 x 32"),
        ({"size": 0}, "size: must be at least 4 x 4"),
        ({"steps": 0}, "steps: "),
        ({"typical_mass": 1.5}, "typical_mass: "),
        ({"temperature": 0.0}, "temperature: "),
        ({"guidance": float("nan")}, "guidance: "),
        ({"n": 2.0}, "n: must be a whole number, not 2.0"),
        ({"seed": "7"}, "seed: must be a whole number, not '7'"),
        ({"seed": 1.5}, "seed: must be a whole number, not 1.5"),
        ({"size": 64.0}, "size: must be a whole number, not 64.0"),
        ({"size": (32, 32, 3)}, "size: must be one number, or height and width"),
        ({"steps": 8.0}, "steps: must be a whole number, not 8.0"),
        ({"guidance": "3"}, "guidance: must be a number, not '3'"),
        ({"negative_prompt": ["a cat"]}, "negative_prompt: must be a string"),
    ],
)
def test_a_wrong_argument_is_named(tiny: Paella, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        tiny.generate(**{"prompt": "a dog", **arguments})


def test_numbers_may_be_numpy_s_and_no_seed_is_seed_0(tiny: Paella) -> None:
    plain = {"n": 2, "seed": 5, "size": 32, "steps": 2, "guidance": 3, "temperature": 0.5}
    types = {"guidance": np.float32, "temperature": np.float32}
    given = {name: types.get(name, np.int64)(value) for name, value in plain.items()}
    ours, theirs = (tiny.generate("a dog", **numbers) for numbers in (plain, given))  # type: ignore[arg-type]
    assert content(ours) == content(theirs)
    assert json.loads(theirs[0].info["settings"]) == json.loads(ours[0].info["settings"])
    assert content(tiny.generate("a dog", seed=None)) == content(tiny.generate("a dog", seed=0))
    dog = ours[0]
    assert content(tiny.restyle(dog, "a fox", seed=np.int64(5))) == content(tiny.restyle(dog, "a fox", seed=5))
    half = tiny.restyle(dog, "a fox", strength=Fraction(1, 2))
    assert content(half) == content(tiny.restyle(dog, "a fox", strength=0.5))


@pytest.mark.parametrize("regions", [{"a fox": "left"}, ["ab"], [("a fox",)], [(None, "left")], 3])
def test_what_are_no_prompts_with_places_is_named(tiny: Paella, regions: Any) -> None:
    words = r"^regions: must be (pairs of a prompt and its place|a string), not "
    with pytest.raises(ValueError, match=words):
        tiny.compose(regions)
    with pytest.raises(ValueError, match=words):
        tiny.outpaint(Image.new("RGB", (32, 32)), left=4, regions=regions)


@pytest.mark.parametrize("usual", [torch.bfloat16, torch.float64])
def test_the_seed_alone_decides_whatever_torch_s_usual_dtype_is(tiny: Paella, usual: torch.dtype) -> None:
    def drawn() -> list[bytes]:
        (fox,) = tiny.generate("a fox", steps=3)
        return content([fox, *tiny.vary(fox, 1, steps=3), *tiny.restyle(fox, "a dog", steps=3, strength=0.7)])

    expected = drawn()
    torch.set_default_dtype(usual)
    try:
        assert drawn() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_loaded_in_inference_mode_is_like_any_other(tiny_model: Any) -> None:
    with torch.inference_mode():
        model = Paella.from_pretrained(tiny_model, device="cpu", dtype="float32")
    model.to(dtype=torch.bfloat16)
    assert model.generate("a dog", steps=1)
    parts = (model.predictor, model.vqgan, model.clip.model)
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    assert not any(tensor.is_inference() for tensor in (*tensors, *model.clip.weights().values()))


def test_pictures_to_reconstruct_have_one_size_that_the_tokenizer_divides(tiny: Paella) -> None:
    for sizes in ([(32, 32), (32, 16)], [(30, 32)], []):
        with pytest.raises(ValueError, match=r"^pictures: must be of one size, its sides multiples of 4"):
            tiny.reconstruct([Image.new("RGB", size) for size in sizes])


def test_on_step_sees_every_step_and_may_cancel(tiny: Paella) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    plain = tiny.generate("a dog", n=2, steps=3)
    watched = tiny.generate("a dog", n=2, steps=3, on_step=lambda *a: seen.append((a[0], a[1], tuple(a[2].shape))))
    assert content(watched) == content(plain)
    assert seen == [(step, 3, (1, 8, 8)) for _ in range(2) for step in (1, 2, 3)]
    calls: list[int] = []

    def stop(step: int, steps: int, tokens: torch.Tensor) -> bool:
        calls.append(step)
        return step < 2

    with pytest.raises(Cancelled):
        tiny.generate("a dog", steps=5, on_step=stop)
    assert calls == [1, 2]


@pytest.mark.parametrize("kind", [Cancelled, Interrupted])
def test_whoever_stops_gets_the_pictures_that_are_finished(tiny: Paella, kind: type[Cancelled | Interrupted]) -> None:
    calls: list[int] = []

    def stop(step: int, steps: int, tokens: torch.Tensor) -> bool:
        calls.append(step)
        if len(calls) == 6 and kind is Interrupted:
            raise KeyboardInterrupt
        return len(calls) < 6

    picture = Image.new("RGB", (30, 30), "red")  # of no whole tokens: what is kept is cropped as well
    whole = tiny.restyle(picture, "a dog", n=3, steps=2)
    with pytest.raises(kind) as stopped:
        tiny.restyle(picture, "a dog", n=3, steps=2, on_step=stop)
    kept = list(stopped.value.pictures)
    assert content(kept) == content(whole[:2]) and [one.info for one in kept] == [one.info for one in whole[:2]]


def test_the_last_tokens_are_the_picture(tiny: Paella) -> None:
    seen: list[torch.Tensor] = []
    (picture,) = tiny.generate("a dog", on_step=lambda step, steps, tokens: seen.append(tokens))  # type: ignore[func-returns-value]
    pixels = (tiny.vqgan.decode(seen[-1])[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(picture), pixels)


def test_generating_leaves_the_global_random_numbers_alone(tiny: Paella) -> None:
    before = torch.get_rng_state()
    tiny.generate("a dog")
    assert torch.equal(torch.get_rng_state(), before)


def test_reconstruct_is_decode_of_encode(tiny: Paella) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]
    back = tiny.reconstruct(pictures)
    assert [picture.size for picture in back] == [(24, 16)] * 3
    assert content(tiny.reconstruct(pictures[1:2])) == content(back[1:2])


def test_devices_and_dtypes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert resolve_dtype(torch.float16, torch.device("cpu")) == torch.float16
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"^device: 'nonsense'"):
        resolve_device("nonsense")
    for generation, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, own=generation: own)
        assert resolve_dtype("auto", torch.device("cuda")) == expected
    for wrong in ("int8", torch.int8):
        with pytest.raises(ValueError, match=r"^dtype: "):
            resolve_dtype(wrong, torch.device("cpu"))


def test_a_model_moves_as_a_whole_and_its_predictor_alone_changes_its_dtype(tiny_model: Any) -> None:
    model = Paella.from_pretrained(tiny_model, device="cpu", dtype="float32")
    plain = content(model.generate("a dog"))
    assert model.to(dtype=torch.bfloat16) is model
    assert (model.device.type, model.dtype, model.clip.model.dtype) == ("cpu", torch.bfloat16, torch.float32)
    assert content(model.to().generate("a dog")) != plain
    parts = [model.predictor, model.vqgan, model.clip.model]
    model.to(torch.device("meta"))
    assert {p.device.type for part in parts for p in part.parameters()} == {"meta"}


HALVES = ["bfloat16", "float16"]


@pytest.mark.parametrize("dtype", HALVES)
def test_only_the_predictor_takes_the_dtype(tiny_model: Any, dtype: str) -> None:
    half = Paella.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    moved = Paella.from_pretrained(tiny_model, device="cpu", dtype="float32").to(dtype=getattr(torch, dtype))
    for model in (half, moved):
        assert model.predictor.clf.weight.dtype == getattr(torch, dtype)
        assert {p.dtype for part in (model.vqgan, model.clip.model) for p in part.parameters()} == {torch.float32}
    assert content(half.generate("a dog", n=2)) == [
        picture.tobytes() for seed in (0, 1) for picture in half.generate("a dog", seed=seed)
    ]


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_what_is_decoded_is_what_is_drawn(tiny_model: Any, dtype: str) -> None:
    model = Paella.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    seen: list[torch.Tensor] = []
    (picture,) = model.generate("a dog", on_step=lambda step, steps, tokens: seen.append(tokens))  # type: ignore[func-returns-value]
    pixels = model.decode(seen[-1])
    assert pixels.dtype == torch.float32 and content(to_pictures(pixels)) == content([picture])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_decoder_beyond_the_range_of_float16_still_draws(tiny_model: Any, dtype: str) -> None:
    """Published decoders are like this one: in half precision they draw nothing."""
    model = Paella.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    decoder = model.vqgan.decoder
    with torch.no_grad():
        decoder.mid.block_1.conv2.weight.mul_(1e6)
    inside: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    decoder.mid.register_forward_hook(lambda module, given, output: inside.append(output))
    decoder.register_forward_hook(lambda module, given, output: drawn.append(output))
    tokens: list[torch.Tensor] = []
    model.generate("a dog", on_step=lambda step, steps, seen: tokens.append(seen))  # type: ignore[func-returns-value]
    assert inside[-1].abs().max() > torch.finfo(torch.float16).max
    assert drawn[-1].isfinite().all()
    model.vqgan.half()
    assert not model.vqgan.decode(tokens[-1]).isfinite().all()


def test_a_prompt_that_clip_does_not_read_to_its_end_is_named(tiny: Paella) -> None:
    words = "a dog on a red background " * 20
    with pytest.warns(UserWarning, match=f"^prompt: cut to the {tiny.clip.context} tokens that CLIP reads: 'a dog"):  # type: ignore[union-attr]
        tiny.generate(words, steps=1)
    picture = Image.new("RGB", (32, 32))
    edits: list[Callable[[], Any]] = [
        lambda: tiny.generate(words),
        lambda: tiny.outpaint(picture, words, left=8),
        lambda: tiny.compose([(words, "left")]),
        lambda: tiny.vary(picture, guidance=1, negative_prompt="a cat"),
    ]
    for edit in edits:
        with pytest.warns(UserWarning) as warned:
            edit()
        assert {one.filename for one in warned} == {__file__}  # not a line of ours
