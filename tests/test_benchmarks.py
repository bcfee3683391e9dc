"""The benchmarks run; at a tiny size here, where their figures mean nothing."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_v1_prints_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmarks/v1.py", "--config", str(ROOT / "tests/parity/config.json"), "--size", "32"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    header, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    figures = dict(zip(header, row, strict=True))
    assert (figures["picture"], figures["steps"], figures["predictor"]) == ("32 x 32", "8", "0.3 M")
    assert float(figures["seconds"]) > 0 and 0 < float(figures["peak"].removesuffix(" GiB")) < 24
