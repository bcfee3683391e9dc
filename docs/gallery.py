"""Draws the pictures of gallery.md with the built-in model: `make gallery`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from paella import Paella
from paella.cli.files import write_picture
from paella.data.render import render
from paella.data.scene import Scene
from paella.evaluate.matching import Matcher
from paella.evaluate.quality import HeldOutScenes
from paella.evaluate.scenes import held_out_prompts, object_ranks
from paella.images import composite, contact_sheet, open_mask, to_tensor

IMAGES = Path(__file__).parent / "images"
SIZE = 64


def scene(*objects: str, on: str, layout: str) -> Image.Image:
    """A real scene to edit, drawn as the model's training data are."""
    return render(Scene(objects, on, layout), SIZE, np.random.default_rng(0), snap=8, jitter=0)  # type: ignore[arg-type]


def shown(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with its masked part blanked, as an editor shows it."""
    blank = Image.new("RGB", picture.size, (235, 235, 235))
    return composite(picture, blank, open_mask(mask, picture.size).float())


def save(name: str, pictures: list[Image.Image], captions: list[str]) -> None:
    write_picture(contact_sheet(pictures, captions), IMAGES / f"{name}.png")


def uncurated(p: Paella) -> None:
    """64 prompts, plainly worded and mixed as scenes are by default, with the seeds 0 to 63: nothing is chosen."""
    scenes = HeldOutScenes(SIZE, names=p.objects)
    captions = [scenes[index][1] for index in range(64)]
    save("uncurated", p.generate(captions, seed=0), captions)


def failures(p: Paella) -> None:
    """Of the first prompts of `paella evaluate scenes`, small objects and pairs that the judge calls wrong, at most
    eight of each."""
    matcher = Matcher(p.objects, SIZE)
    pictures, captions = [], []
    for kind, layouts in (("small", ["small"]), ("pair", ["horizontal", "vertical"])):
        prompts = held_out_prompts(150, kind, 0, p.objects)  # type: ignore[arg-type]
        scenes, words = [scene for scene, _ in prompts], [caption for _, caption in prompts]
        drawn = p.generate(words, seed=0)
        wrong: list[int] = []
        for layout in layouts:
            members = [index for index, scene in enumerate(scenes) if scene.layout == layout]
            worse, _ = object_ranks(matcher, to_tensor(drawn), scenes, layout)  # type: ignore[arg-type]
            wrong += [index for index, ranks in zip(members, worse, strict=True) if (ranks > 0).any()]
        pictures += [drawn[index] for index in sorted(wrong)[:8]]
        captions += [words[index] for index in sorted(wrong)[:8]]
    save("failures", pictures, captions)


def main() -> None:
    p = Paella.from_pretrained()
    uncurated(p)
    failures(p)
    right_half = np.arange(SIZE)[None].repeat(SIZE, 0) >= SIZE // 2
    leaf = scene("maple leaf", on="blue", layout="single")
    pair = scene("smiling face with sunglasses", "sun", on="green", layout="horizontal")
    telephone = scene("telephone", on="pink", layout="single")
    wish = "a smiling face with sunglasses to the left of a robot on a green background"

    save(
        "inpaint",
        [
            shown(leaf, right_half),
            p.inpaint(leaf, right_half)[0],
            shown(pair, right_half),
            p.inpaint(pair, right_half, wish)[0],
        ],
        ["half is masked, no prompt", "inpaint", "one object is masked", wish],
    )
    right = "a sun on a blue background"
    save(
        "outpaint",
        [leaf, p.outpaint(leaf, right=SIZE, regions=[(right, "right")])[0]],
        ["a picture", f"outpaint, on the right: {right}"],
    )
    save("vary", [telephone, *p.vary(telephone, 4)], ["a picture", *["vary"] * 4])
    ends = "a telephone on a pink background", "a maple leaf on a blue background"
    save("interpolate", p.interpolate(*ends, 8), [ends[0], *["…"] * 6, ends[1]])
    strengths = (0.05, 0.2, 0.5, 1.0)
    save(
        "restyle",
        [telephone, *[p.restyle(telephone, ends[1], strength=strength)[0] for strength in strengths]],
        ["a picture", *[f"{ends[1]}, strength {strength}" for strength in strengths]],
    )
    halves = [("a maple leaf on a blue background", "left"), ("a sun on a pink background", "right")]
    save(
        "compose",
        [p.compose(halves, size=(SIZE, 2 * SIZE))[0], p.compose(halves)[0]],
        ["compose, 64 x 128: " + " | ".join(text for text, _ in halves), "the same, 64 x 64"],
    )
    said = ["a puppy on a blue background", "Fußball auf grünem Hintergrund", "coche sobre fondo amarillo"]
    said += ["hibou sur fond rose", "빨간색 배경의 축구공", "pineaple on yellow background"]
    said += ["three stars on a purple background", "a fox on a green and white background"]
    captions = [words if words[0] < "가" else "a soccer ball on a red background, in Korean" for words in said]
    save("words", p.generate(said), captions)
    wide = p.generate("a maple leaf on a blue background", size=(64, 256))[0]
    save("sizes", [wide], ["generate, size=(64, 256): a maple leaf on a blue background"])


if __name__ == "__main__":
    main()
