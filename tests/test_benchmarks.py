"""The benchmarks run; at a tiny size here, where their figures mean nothing."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def figures_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The row that a script prints, by column, from the repository's root."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runpy.run_path(sys.argv[0], run_name="__main__")
    header, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    return dict(zip(header, row, strict=True))


def test_v1_prints_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of("benchmarks/v1.py --config tests/parity/config.json --size 32", monkeypatch, capsys)
    assert (figures["picture"], figures["steps"], figures["predictor"]) == ("32 x 32", "8", "0.3 M")
    assert float(figures["seconds"]) > 0 and 0 < float(figures["peak"].removesuffix(" GiB")) < 24


TRAINING = "benchmarks/training.py --config tests/parity/config.json --grid 8 --batch 2 --runs 3"


def test_training_prints_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(TRAINING, monkeypatch, capsys)
    assert (figures["predictor"], figures["grid"], figures["batch"]) == ("0.3 M, c_hidden 64", "8 x 8", "2")
    assert float(figures["ours"].removesuffix(" s")) > 0 and "authors' / ours" not in figures


def test_training_takes_turns_with_another_s_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "modules.py").write_text(
        "import torch\n"
        "class DenoiseUNet(torch.nn.Embedding):\n"
        "    def __init__(self, num_labels, c_hidden, c_clip, c_r, down_levels, up_levels):\n"
        "        super().__init__(num_labels, num_labels)\n"
        "    def add_noise(self, tokens, r):\n"
        "        return tokens, tokens\n"
        "    def forward(self, tokens, condition, r):\n"
        "        return super().forward(tokens).permute(0, 3, 1, 2)\n"
    )
    figures = figures_of(f"{TRAINING} --official {tmp_path}", monkeypatch, capsys)
    ratio = float(figures["authors' / ours"].split()[0])
    assert 0 < ratio < 1  # it is smaller by far
    with pytest.raises(SystemExit):
        figures_of(f"{TRAINING} --official {tmp_path / 'none'}", monkeypatch, capsys)
    assert "--official: there is no" in capsys.readouterr().err
