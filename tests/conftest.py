"""A whole model, tiny and untrained: what it draws is noise, but every part is there. And the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from paella.cli import run

if TYPE_CHECKING:
    from paella.pipeline import Paella


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


def files(folder: Path) -> set[str]:
    """What is below a folder, by names relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def paella(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in an empty folder, at a terminal on which nobody types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    def call(*args: object) -> Result:
        capsys.readouterr()
        code = run([str(arg) for arg in args])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with f = 4, 32 codes and pictures of 32 x 32 pixels. Do not write to it: copy it."""
    import torch

    from paella.clip import Whitening
    from paella.data.scenes import Scenes
    from paella.data.vocabulary import objects
    from paella.pipeline import Paella
    from paella.sampler import SamplerSettings
    from paella.train.clip import ClipConfig, build_clip, train_tokenizer
    from paella.unet import TokenPredictor, UNetConfig
    from paella.vqgan import VQGAN, VQGANConfig

    vqgan_config = VQGANConfig(
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_levels=(),
        mid_attention=False,
        z_channels=32,
        embed_dim=8,
        n_embed=32,
        patch=2,
    )
    unet_config = UNetConfig(num_labels=32, c_hidden=32, c_clip=16, c_r=8, down_levels=(1, 1), up_levels=(1, 1))
    clip_config = ClipConfig(dim=16, width=16, heads=2, text_layers=1, vision_layers=1, vocabulary=300, context=64)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scenes = Scenes(32)
        tokenizer = train_tokenizer([scenes.caption(i) for i in range(100)], clip_config.vocabulary)
        clip = build_clip(clip_config, 32, tokenizer)
        clip.whitening = Whitening.fit(torch.nn.functional.normalize(torch.randn(100, clip.dim)))
        Paella(
            TokenPredictor(unet_config).eval(),
            VQGAN(vqgan_config).eval(),
            clip,
            SamplerSettings(steps=2),
            32,
            name="tiny",
            objects=list(objects())[:40],
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Paella:
    """That model, loaded: float32, on the CPU."""
    from paella.pipeline import Paella

    return Paella.from_pretrained(tiny_model, device="cpu", dtype="float32")


@pytest.fixture
def generate(paella: Run, tiny_model: Path) -> Run:
    """Runs `paella generate` with that model."""
    return lambda *args: paella("generate", *args, "--model", tiny_model)


@pytest.fixture
def small_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paella.train.clip.GALLERY", 24)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten tiny pictures with captions."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        low = np.repeat(np.repeat(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), 4, axis=0), 4, axis=1)
        Image.fromarray(low).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture number {i}\n")
    return folder
