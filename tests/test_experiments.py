"""`paella experiment`: every one runs, goes on where it was interrupted, and ends in a table and a plot."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from conftest import Run, files
from PIL import Image

from paella import experiments
from paella.baselines.transformer import TransformerConfig, TransformerPredictor
from paella.checkpoint import read_tensors, write_tensors
from paella.clip import WHITENING
from paella.experiments import kernels
from paella.experiments.experiment import REFERENCE, Experiment, Rows
from paella.experiments.scored import scored
from paella.pipeline import Paella
from paella.unet import TokenPredictor, UNetConfig


def short(name: str) -> Experiment:
    """The experiment with the first two settings of each group."""
    chosen = experiments.load(name)
    return replace(chosen, groups={variable: dict(list(own.items())[:2]) for variable, own in chosen.groups.items()})


@pytest.fixture
def experiment(paella: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a shortened experiment of few prompts or training steps; more options may follow its name."""
    monkeypatch.setattr("paella.cli.experiment.load", short)
    monkeypatch.setattr("paella.experiments.trained.JUDGED", 8)
    monkeypatch.setattr("paella.experiments.maskgit.PICTURES", 4)
    return lambda name, *more: paella("experiment", name, "-n", 4, "-o", "out", "--model", tiny_model, *more)


def rows_in(name: str) -> Rows:
    return json.loads(Path(f"out/{name}.json").read_text())["rows"]


def undrawable(monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: int = 0) -> None:
    """The predictor refuses whoever asks for pictures, after so many were drawn."""
    usual, drawn = TokenPredictor.conditioned, []

    def conditioned(predictor: TokenPredictor, condition: torch.Tensor) -> Any:
        if len(drawn) == after:
            raise error
        drawn.append(condition)
        return usual(predictor, condition)

    monkeypatch.setattr(TokenPredictor, "conditioned", conditioned)


@pytest.mark.parametrize("name", experiments.NAMES)
def test_every_experiment_ends_in_tables_and_a_plot_and_is_measured_once(
    experiment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    result = experiment(name)
    assert (result.code, result.err) == (0, "")
    assert files(tmp_path) == {"out", *(f"out/{name}.{kind}" for kind in ("json", "md", "png"))}
    page = Path(f"out/{name}.md").read_text()
    assert f"`paella experiment {name} -n 4" in page and f"]({name}.png)" in page
    for variable, settings in short(name).groups.items():
        assert f"\n| {variable} |" in page and all(f"\n| {setting} |" in page for setting in settings)
    with Image.open(f"out/{name}.png") as plot:
        assert min(plot.size) > 200

    undrawable(monkeypatch, AssertionError)
    again = experiment(name)
    assert again.code == 0 and Path(f"out/{name}.md").read_text() == page


@pytest.mark.parametrize("name", ["steps", "guidance", "ablation", "sweep"])
def test_every_setting_is_one_that_the_sampler_takes(tiny: Paella, name: str) -> None:
    for settings in experiments.load(name).groups.values():
        assert len({replace(tiny.settings, **changes) for changes in settings.values()}) == len(settings)


def test_settings_that_come_to_the_same_are_measured_once(tiny: Paella) -> None:
    seen = []

    def measure(pipeline: Paella, setting: Any, *_: Any) -> Any:
        seen.append(setting)
        return {"figure": {"value": float(len(seen))}}

    groups = {"steps": {"own": {}, "two": {"steps": 2}}, "others": {"as two": {"steps": 2}, "three": {"steps": 3}}}
    one = replace(scored("", groups), measure=measure, reference=None)
    *_, rows = one.run(tiny, 4, 0, {"steps": {"own": {"figure": {"value": 0.0}}}}, lambda done, total: None)
    assert seen == [{"steps": 3}]  # the tiny model's own steps are two
    assert rows["steps"]["own"] == rows["steps"]["two"] == rows["others"]["as two"] != rows["others"]["three"]


def test_an_interrupted_experiment_goes_on(experiment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(rows: Rows) -> list[Any]:
        return [
            [variable, setting, [figure for column, figure in figures.items() if "seconds" not in column]]
            for variable, own in rows.items()
            for setting, figures in own.items()
        ]

    assert experiment("guidance").code == 0
    whole = rows_in("guidance")
    Path("out/guidance.json").unlink()
    with monkeypatch.context() as patch:
        undrawable(patch, KeyboardInterrupt, after=16)  # in the second setting: each draws one, then twelve
        stopped = experiment("guidance")
    assert stopped.code == 130 and stopped.err.startswith("paella: warning: interrupted; the same command goes on")
    half = rows_in("guidance")
    assert half.keys() == {REFERENCE, "guidance w"} and list(half["guidance w"]) == ["1"]
    assert experiment("guidance").code == 0
    resumed = rows_in("guidance")
    assert resumed["guidance w"]["1"] == half["guidance w"]["1"]  # with its seconds: it was not measured again
    assert scores(resumed) == scores(whole)


def test_rows_of_other_conditions_are_set_aside(experiment: Run, tmp_path: Path) -> None:
    assert experiment("batch").code == 0
    before = rows_in("batch")
    result = experiment("batch", "--seed", 1)
    assert result.code == 0 and "was measured otherwise (seed); it is out/batch-before.json now" in result.err
    assert json.loads(Path("out/batch-before.json").read_text())["rows"] == before != rows_in("batch")


def test_a_clip_that_is_whitened_otherwise_is_another(experiment: Run, tmp_path: Path, tiny_model: Path) -> None:
    assert experiment("batch").code == 0
    other = copytree(tiny_model, tmp_path / "other")
    file = other / "clip" / WHITENING
    write_tensors({name: 2 * value for name, value in read_tensors(file).items()}, file)
    assert "was measured otherwise (weights)" in experiment("batch", "--model", other).err


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"conditions": 3, "rows": {}}'])
def test_a_file_of_something_else_is_left_alone(experiment: Run, content: str) -> None:
    Path("out").mkdir()
    Path("out/batch.json").write_text(content)
    result = experiment("batch")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--output: out/batch.json is not what this command writes" in result.err
    assert Path("out/batch.json").read_text() == content


def test_too_few_are_refused_before_the_model_is_loaded(paella: Run) -> None:
    result = paella("experiment", "steps", "-n", 3, "--model", "nowhere")
    assert (result.code, result.err) == (2, "paella: error: --number: must be at least 4, not 3\n")


def test_what_it_needs_is_told_before_the_work(
    experiment: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert experiment("colours").code == 2
    undrawable(monkeypatch, AssertionError)
    monkeypatch.delitem(sys.modules, "paella.experiments.report", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    result = experiment("steps")
    assert result.code == 1 and 'needs the package matplotlib: pip install -e ".[bench]"' in result.err
    assert files(tmp_path) == set()


def test_a_table_marks_the_best_and_says_what_it_cannot_tell_apart() -> None:
    from paella.experiments.report import tables

    def right(value: float, low: float, high: float) -> dict[str, dict[str, float]]:
        return {"right, %": {"value": value, "low": low, "high": high}}

    chosen = Experiment("", {"w": {"1": {}, "2": {}, "3": {}}}, lambda *_: {}, 1, "prompts", judged={"right, %": max})
    rows: Rows = {"w": {"1": right(10, 5, 15), "2": right(50, 40, 60), "3": right(45, 35, 55)}}
    rows[REFERENCE] = {"real": right(99, 98, 100)}
    assert tables(chosen, rows).splitlines() == [
        "| w | right, % |",
        "|---|---|",
        "| 1 | 10 (5–15) |",
        "| 2 | **50** (40–60) |",
        "| 3 | 45 (35–55) |",
        "| real | 99 (98–100) |",
        "",
        "- Best by *right*: 2; its interval meets those of 3.",
    ]
    rows["w"]["3"] = right(20, 15, 25)
    assert "2; no other interval meets its own." in tables(chosen, rows)
    rows["w"]["3"] = right(50.0001, 45, 65)
    assert tables(chosen, rows).count("**50**") == 2 and "*right*: 2 and 3; no other" in tables(chosen, rows)


def test_less_may_be_better() -> None:
    from paella.experiments.report import tables

    chosen = Experiment("", {"w": {"1": {}, "2": {}}}, lambda *_: {}, 1, "prompts", judged={"distance": min})
    rows: Rows = {"w": {w: {"distance": {"value": v, "low": v, "high": v}} for w, v in (("1", 3.0), ("2", 2.0))}}
    assert "| 2 | **2** (2–2) |" in tables(chosen, rows)


def test_curves_are_drawn_over_training_a_line_for_each_setting() -> None:
    from paella.experiments.report import plot

    chosen = Experiment("", {"network": {"a": {}, "b": {}}}, lambda *_: {}, 1, "steps")
    figures = {"loss": {"value": 1.0, "low": 1.0, "high": 1.0, "curve": [[10, 3.0], [20, 1.0]]}}
    axes = plot(chosen, {"network": {"a": figures, "b": figures}}).axes[0]
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    assert axes.lines[0].get_xydata().tolist() == [[10, 3], [20, 1]]


def test_networks_that_are_compared_have_as_many_parameters(tiny: Paella) -> None:
    sizes = [
        sum(p.numel() for p in TokenPredictor(UNetConfig(1024, c_clip=256, **tuples(network["model"]))).parameters())
        for name, network in kernels.NETWORKS.items()
        if name != "Transformer"
    ]
    transformer = TransformerConfig(1024, c_clip=256, grid=16, **kernels.NETWORKS["Transformer"]["transformer"])
    sizes.append(sum(p.numel() for p in TransformerPredictor(transformer).parameters()))
    assert max(sizes) < 1.02 * min(sizes)


def tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def test_a_trained_network_learns_and_its_seed_decides_all(tiny: Paella) -> None:
    from paella.experiments.trained import ACCURACY, LOSS, judge, train_small

    network = {"model": {"c_hidden": 32, "down_levels": [1], "up_levels": [1]}, "ema": 0}
    done: list[float] = []
    first, curves = train_small(tiny, network, 60, 0, done.append)
    again, others = train_small(tiny, network, 60, 0, lambda share: None)
    assert curves == others and done == sorted(done)
    start, end = (curves["training loss, nats"]["curve"][at][1] for at in (0, -1))
    assert end < 0.8 * start
    before, _ = train_small(tiny, network, 1, 0, lambda share: None)
    assert judge(tiny, first, 0)[LOSS]["value"] < 0.8 * judge(tiny, before, 0)[LOSS]["value"]
    assert judge(tiny, first, 0)[ACCURACY] == judge(tiny, again, 0)[ACCURACY]
