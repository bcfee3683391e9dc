"""The diffusers adapter: other names, other containers, the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paella.integrations.diffusers import PaellaPipeline
from paella.pipeline import Cancelled, Paella

FOX, DOG = "a fox on a green background", "a dog face on a red background"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def left_half(size: int = 64) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size // 2, size))
    return mask


def content(pictures: list[Image.Image]) -> list[bytes]:
    return [one.tobytes() for one in pictures]


@pytest.fixture
def pipe(tiny: Paella) -> PaellaPipeline:
    return quiet(PaellaPipeline(tiny))


def quiet(pipe: PaellaPipeline) -> PaellaPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


# the pictures are those of the core


@pytest.fixture(scope="module")
def builtin() -> PaellaPipeline:
    return quiet(PaellaPipeline.from_pretrained())


MODES: dict[str, tuple[dict[str, Any], Callable[..., list[Image.Image]]]] = {
    "generate": ({"prompt": [FOX, DOG]}, lambda p, **o: p.generate([FOX, DOG], **o)),
    "generate wide": ({"prompt": FOX, "width": 96}, lambda p, **o: p.generate(FOX, size=(64, 96), **o)),
    "inpaint": (
        {"prompt": FOX, "image": picture(), "mask_image": left_half()},
        lambda p, **o: p.inpaint(picture(), left_half(), FOX, **o),
    ),
    "inpaint without a prompt": (
        {"image": picture(), "mask_image": left_half()},
        lambda p, **o: p.inpaint(picture(), left_half(), **o),
    ),
    "restyle": (
        {"prompt": FOX, "image": picture(), "strength": 0.7},
        lambda p, **o: p.restyle(picture(), FOX, strength=0.7, **o),
    ),
    "restyle without a strength": ({"prompt": FOX, "image": picture()}, lambda p, **o: p.restyle(picture(), FOX, **o)),
    "vary": ({"image": picture(), "height": 96}, lambda p, **o: p.vary(picture(), size=(96, 64), **o)),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_pictures_are_those_of_the_core(builtin: PaellaPipeline, mode: str) -> None:
    arguments, core = MODES[mode]
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": DOG, "num_images_per_prompt": 2}
    images = builtin(**arguments, **options, generator=seeded(7)).images
    expected = core(builtin.model, steps=2, guidance=3.0, negative_prompt=DOG, n=2, seed=7)
    assert content(images) == content(expected)
    assert [one.info for one in images] == [one.info for one in expected]
    assert images[0].info["ability"] == mode.split()[0]


def test_what_is_not_given_is_the_model_s_own(pipe: PaellaPipeline) -> None:
    assert content(pipe(FOX, generator=seeded(3)).images) == content(pipe.model.generate(FOX, seed=3))


# generators


def test_a_list_of_generators_gives_each_picture_its_seed(pipe: PaellaPipeline) -> None:
    images = pipe([FOX, DOG], generator=[seeded(9), seeded(4)]).images
    assert content(images) == content([*pipe.model.generate(FOX, seed=9), *pipe.model.generate(DOG, seed=4)])


def test_a_generator_stands_for_its_seed_whatever_it_has_drawn(pipe: PaellaPipeline) -> None:
    generator = seeded(5)
    first = pipe(FOX, generator=generator).images
    torch.rand(3, generator=generator)
    assert content(pipe(FOX, generator=generator).images) == content(first)


@pytest.mark.parametrize("seed", [-1, 2**63 + 5])
def test_any_generator_will_do(pipe: PaellaPipeline, seed: int) -> None:
    drawn = pipe(FOX, generator=seeded(seed)).images
    assert content(drawn) == content(pipe(FOX, generator=[seeded(seed)]).images)
    assert content(drawn) == content(pipe.model.generate(FOX, seed=seed % 2**63))


def test_without_a_generator_torch_s_own_draws_the_seed(pipe: PaellaPipeline) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second = (pipe(FOX).images for _ in range(2))
        torch.manual_seed(1)
        assert content(pipe(FOX).images) == content(first) != content(second)


# results


def test_outputs_are_pictures_arrays_or_tensors(pipe: PaellaPipeline) -> None:
    pil, array, tensor = (
        pipe(FOX, num_images_per_prompt=2, width=48, generator=seeded(0), output_type=kind).images
        for kind in ("pil", "np", "pt")
    )
    assert [one.size for one in pil] == [(48, 32)] * 2
    assert (array.shape, array.dtype) == ((2, 32, 48, 3), np.float32)
    assert (tensor.shape, tensor.dtype) == ((2, 3, 32, 48), torch.float32)
    assert np.array_equal((array * 255).round().astype(np.uint8), np.stack([np.asarray(one) for one in pil]))
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    (images,) = pipe(FOX, num_images_per_prompt=2, width=48, generator=seeded(0), return_dict=False)
    assert content(images) == content(pil)


def test_the_progress_bar_counts_the_steps_of_all_pictures(tiny: Paella, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = PaellaPipeline(tiny)
    pipe([FOX, DOG], num_images_per_prompt=2, num_inference_steps=3)
    assert "12/12" in capfd.readouterr().err
    quiet(pipe)(FOX)
    assert capfd.readouterr().err == ""


# callbacks


def test_the_callback_sees_every_step_of_every_picture(pipe: PaellaPipeline) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def callback(pipeline: PaellaPipeline, step: int, left: int, given: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        seen.append((step, left, tuple(given["latents"].shape)))
        return given

    watched = pipe(
        FOX, num_images_per_prompt=2, num_inference_steps=3, generator=seeded(0), callback_on_step_end=callback
    )
    assert seen == [(step, 2 - step, (1, 8, 8)) for _ in range(2) for step in range(3)]
    assert content(watched.images) == content(pipe.model.generate(FOX, n=2, steps=3, seed=0))


def test_the_callback_may_end_the_drawing(pipe: PaellaPipeline) -> None:
    steps: list[int] = []

    def callback(pipeline: PaellaPipeline, step: int, left: int, given: dict[str, Any]) -> None:
        steps.append(step)
        pipeline._interrupt = step == 1

    with pytest.raises(Cancelled):
        pipe(FOX, num_inference_steps=5, callback_on_step_end=callback)
    assert steps == [0, 1]
    assert len(pipe(FOX).images) == 1  # the next call is not interrupted


def test_the_callback_cannot_change_the_tokens(pipe: PaellaPipeline) -> None:
    with pytest.raises(ValueError, match=r"^callback_on_step_end: must not return other latents"):
        pipe(FOX, callback_on_step_end=lambda pipeline, step, left, given: {"latents": given["latents"] + 1})


# folders, devices


def test_a_pipeline_comes_back_from_its_folder(pipe: PaellaPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    again = quiet(PaellaPipeline.from_pretrained(tmp_path, device="cpu", dtype="float32"))
    core = Paella.from_pretrained(tmp_path, device="cpu", dtype="float32")
    images = pipe(FOX, generator=seeded(1)).images
    assert content(core.generate(FOX, seed=1)) == content(images)
    assert content(again(FOX, generator=seeded(1)).images) == content(images)


def test_a_pipeline_moves(tiny_model: Path) -> None:
    pipe = PaellaPipeline.from_pretrained(tiny_model, device="cpu", dtype="float32")
    assert pipe.components == {"model": pipe.model}
    assert pipe.to(torch.bfloat16) is pipe and (pipe.device.type, pipe.dtype) == ("cpu", torch.bfloat16)
    assert pipe.to("meta", torch.float16).device.type == "meta" and pipe.dtype == torch.float16
    assert pipe.model.vqgan.quant_conv.weight.dtype == torch.float32


# errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "prompt: must be given"),
        ({"prompt": ""}, "prompt: must not be empty"),
        ({"prompt": FOX, "mask_image": left_half()}, "mask_image: needs an image"),
        ({"prompt": FOX, "strength": 0.5}, "strength: needs an image"),
        ({"image": picture(), "strength": 0.5}, "strength: needs a prompt"),
        ({"image": picture(), "mask_image": left_half(), "strength": 0.5}, "strength: does not go with mask_image"),
        ({"image": picture(), "mask_image": left_half(), "width": 64}, "height, width: an edited picture"),
        ({"prompt": FOX, "image": picture(), "height": 64}, "height, width: an edited picture"),
        ({"prompt": FOX, "image": picture(), "strength": 1.5}, "strength: must be within"),
        ({"prompt": FOX, "image": [picture()]}, "image: must be a PIL image"),
        ({"image": picture(), "mask_image": [left_half()]}, "mask_image: must be one for all pictures, not a list"),
        ({"image": picture(), "mask_image": left_half(32)}, "mask_image: must have the picture's size"),
        ({"prompt": FOX, "height": 30}, "height, width: must be multiples of 4, not 30 x 32"),
        ({"prompt": FOX, "width": 0}, "height, width: must be at least 4"),
        ({"prompt": FOX, "num_inference_steps": 0}, "num_inference_steps: must be"),
        ({"prompt": FOX, "guidance_scale": float("nan")}, "guidance_scale: must be"),
        ({"prompt": FOX, "num_images_per_prompt": 0}, "num_images_per_prompt: must be"),
        ({"prompt": FOX, "negative_prompt": [DOG]}, "negative_prompt: must be one for all pictures, not a list"),
        ({"prompt": FOX, "generator": [seeded(0)] * 2}, "generator: must be one, or one for each of the 1"),
        ({"prompt": FOX, "output_type": "latent"}, "output_type: must be pil, np or pt, not 'latent'"),
    ],
)
def test_a_wrong_argument_is_named_as_it_is_called_here(
    pipe: PaellaPipeline, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{words}") as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)
