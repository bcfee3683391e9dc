"""The benchmarks run; at a tiny size here, where their figures mean nothing."""

import json
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paella.baselines.transformer import TransformerPredictor
from paella.pipeline import Paella
from paella.unet import TokenPredictor, UNetConfig

ROOT = Path(__file__).parents[1]
TINY = "--config tests/parity/config.json"
SAMPLING = f"benchmarks/sampling.py {TINY} --models v1 --sizes 32 --batches 2 --runs 2"
TRANSFORMER = f"benchmarks/against_transformer.py {TINY} --runs 2"
TRAINING = f"benchmarks/training.py {TINY} --grid 8 --batch 2 --runs 3"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run from the repository's root, and the scripts find one another."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def script(name: str) -> ModuleType:
    return import_module(name)


def rows_of(printed: str) -> list[dict[str, str]]:
    """The rows of the table that a script prints, by column, under the line that says what ran where."""
    about, _, *table = printed.splitlines()
    assert about.startswith("`python benchmarks/") and " torch " in about
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table)
    return [dict(zip(header, row, strict=True)) for row in rows]


def run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    monkeypatch.setattr(sys, "argv", command.split())
    runpy.run_path(sys.argv[0], run_name="__main__")
    return rows_of(capsys.readouterr().out)


def test_sampling_prints_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run(SAMPLING, monkeypatch, capsys)
    assert [row[name] for name in ("model", "predictor", "steps", "guidance", "size", "batch", "turns")] == [
        *("v1", "0.3 M", "8", "5", "32", "2", "2")
    ]
    seconds = float(row["seconds"])
    assert float(row["pictures/s"]) == pytest.approx(2 / seconds, rel=0.01)
    assert float(row["s/megapixel"]) == pytest.approx(seconds / (2 * 32 * 32 / 1e6), rel=0.01)
    assert 0 < float(row["filter and draw, %"]) < 100
    assert 0 <= float(row["above the built model, GiB"]) < float(row["peak, GiB"]) < 24


def test_batches_of_too_many_pixels_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="nothing could be measured"):
        run(f"{SAMPLING} --megapixels 0.002", monkeypatch, capsys)


def test_several_rows_are_measured_apart_and_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "found.json"
    command = [sys.executable, *TRANSFORMER.split(), "--networks", "transformer", "--sizes", "64", "128"]
    ran = subprocess.run([*command, "--json", str(file)], capture_output=True, text=True, check=True)
    rows = rows_of(ran.stdout)
    assert [(row["size"], row["tokens"]) for row in rows] == [("64", "64"), ("128", "256")]
    found = json.loads(file.read_text())
    assert found.keys() == {"command", "machine", "date", "rows"}
    assert [list(row) for row in found["rows"]] == [list(row) for row in rows]
    assert all(isinstance(row["seconds"], float) for row in found["rows"])


def test_time_per_pixel_is_that_of_the_network_s_smallest_picture() -> None:
    against = script("against_transformer")
    times = {("a", 256): 1.0, ("a", 512): 4.0, ("b", 512): 8.0, ("b", 256): 1.0}
    rows = [{"network": network, "size": size, "seconds": time} for (network, size), time in times.items()]
    assert [row[against.RELATIVE] for row in against.with_relative_times(rows)] == [1, 1, 2, 1]


@pytest.mark.parametrize("size", ["48M", "578M"])
def test_both_networks_have_about_equally_many_parameters(size: str) -> None:
    against, table = script("against_transformer"), script("table")
    unet = against.UNETS[size]
    with torch.device("meta"):
        ours = table.parameters(TokenPredictor(unet))
        theirs = table.parameters(TransformerPredictor(against.as_large_as(unet)))
    assert f"{ours / 1e6:.0f}M" == size
    assert theirs == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_random_network_has_the_dtypes_and_strides_of_the_engine_s(tiny: Paella, dtype: torch.dtype) -> None:
    config = tiny.predictor.config
    assert isinstance(config, UNetConfig)
    made = script("table").random_network(lambda: TokenPredictor(config), torch.device("cpu"), dtype)
    engine = Paella(TokenPredictor(config), tiny.vqgan, tiny.clip, tiny.settings, tiny.size).to(dtype=dtype)

    def layout(network: torch.nn.Module) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, parameter.dtype, parameter.stride()) for name, parameter in network.named_parameters()]

    assert layout(made) == layout(engine.predictor)
    assert len({dtype for _, dtype, _ in layout(made)}) == (1 if dtype == torch.float32 else 2)


def test_a_choice_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here every choice but "--size 2" is run by a script that writes a row."""
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, sys\n"
        "_, size, _, file = sys.argv[1:]\n"
        "size == '2' and sys.exit(1)\n"
        "open(file, 'w').write(json.dumps({'rows': [{'size': size}]}))\n"
    )
    monkeypatch.setattr(sys, "argv", [str(fake)])
    assert script("table").apart([{"size": size} for size in (1, 2, 3)], dict) == [{"size": "1"}, {"size": "3"}]
    assert "--size 2\n... failed" in capsys.readouterr().err


def test_turns_are_as_many_as_asked_for_while_there_is_time() -> None:
    table = script("table")
    assert table.turns(lambda: "a", 3) == ["a", "a", "a"]
    assert table.turns(lambda: "a", 3, patience=0) == ["a"]


def test_start_up_prints_new_processes_and_a_warm_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: None)  # what the commands do has tests of its own
    rows = run(f"benchmarks/start_up.py --model {tiny_model} --runs 1", monkeypatch, capsys)
    assert [row["process"] for row in rows] == ["new"] * 4 + ["warm"] * 2
    assert [row["what"].split()[0] for row in rows] == ["python", *["paella"] * 3, "one", "16"]
    assert [row["pictures/s"] != "" for row in rows] == [False] * 3 + [True] * 3
    assert all(row["shortest"] == row["seconds"] == row["longest"] for row in rows)


def test_start_up_s_commands_run(tmp_path: Path) -> None:
    start_up, picture = script("start_up"), tmp_path / "picture.png"
    start_up.process(start_up.commands([], str(picture))[f'paella generate "{start_up.PROMPT}"'])
    assert picture.is_file()


def test_plots_are_drawn_from_what_was_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = script("plot")
    sampling = [
        {"model": "v1", "size": size, "batch": batch, "seconds": 1.0, "pictures/s": batch}
        for size, batch in ((64, 1), (64, 4), (128, 1))
    ]
    networks = [{"network": "unet", "size": size, plot.RELATIVE: 1.0} for size in (256, 512)]
    for name, rows in {"sampling": sampling, "against_transformer": networks}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": "a machine; its versions", "rows": rows}))
    assert plot.lines(sampling, "batch", "pictures/s", "model", "size") == {"v1, 64 x 64": [(1, 1), (4, 4)]}
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path), str(tmp_path / "images")])
    plot.main()
    assert {path.stem for path in (tmp_path / "images").iterdir()} == {
        *("performance-size", "performance-batch", "performance-transformer")
    }


def test_training_prints_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run(TRAINING, monkeypatch, capsys)
    assert [row[name] for name in ("predictor", "c_hidden", "grid", "batch")] == ["0.3 M", "64", "8 x 8", "2"]
    assert float(row["samples/s"]) == pytest.approx(2 / float(row["ours, s"]), rel=0.02)
    assert "authors' / ours" not in row


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
    [row] = run(f"{TRAINING} --official {tmp_path}", monkeypatch, capsys)
    lowest, ratio, highest = (float(row[name]) for name in ("lowest", "authors' / ours", "highest"))
    assert 0 < lowest <= ratio <= highest and ratio < 1  # it is smaller by far
    with pytest.raises(SystemExit):
        run(f"{TRAINING} --official {tmp_path / 'none'}", monkeypatch, capsys)
    assert "--official: there is no" in capsys.readouterr().err


def test_a_picture_takes_turns_with_another_s_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Our own predictor stands in for the authors', under their names: the logits must be the same."""
    (tmp_path / "modules.py").write_text(
        "from paella.unet import TokenPredictor, UNetConfig\n"
        "class DenoiseUNet(TokenPredictor):\n"
        "    def __init__(self, **sizes):\n"
        "        super().__init__(UNetConfig(**sizes))\n"
        "    def forward(self, tokens, condition, r):\n"
        "        return super().forward(tokens, condition, 1 - r)\n"
    )
    utils = tmp_path / "utils.py"
    utils.write_text(
        "import a_package_that_is_not_there\n"
        "def sample(model, c, *, T, size, typical_mass, classifier_free_scale, renoise_steps):\n"
        "    assert (T, renoise_steps, size) == (8, 7, (8, 8))\n"
        "    return model(torch.zeros(1, *size).long(), c, torch.ones(1)).argmax(1)\n"
    )
    command = f"benchmarks/against_official.py {TINY} --size 64 --runs 2 --dtype float32 --official {tmp_path}"
    [row] = run(command, monkeypatch, capsys)
    lowest, ratio, highest = (float(row[name]) for name in ("lowest", "authors' / ours", "highest"))
    assert 0 < lowest <= ratio <= highest and ratio < 1  # it takes one step
    assert float(row["logits off by, %"]) < 1e-3
    utils.write_text("")
    with pytest.raises(SystemExit):
        run(command, monkeypatch, capsys)
    assert "has no function sample" in capsys.readouterr().err
