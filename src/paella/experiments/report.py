"""An experiment's rows as Markdown tables and as a plot. Needs matplotlib: the extra `bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paella.evaluate.metrics import Estimate
from paella.experiments.experiment import REFERENCE, Experiment, Figures, Rows

ACROSS = 4  # panels beside each other


def tables(experiment: Experiment, rows: Rows) -> str:
    """A Markdown table for each group, the best of each judged column in bold, and in words what it beats."""
    return "\n".join(_table(experiment, variable, rows) for variable in experiment.groups)


def _table(experiment: Experiment, variable: str, rows: Rows) -> str:
    found = {name: rows[variable][name] for name in experiment.groups[variable]}
    columns = list(next(iter(found.values())))
    best = {column: _best(found, column, choose) for column, choose in experiment.judged.items()}
    lines = [f"| {variable} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, figures in (found | rows.get(REFERENCE, {})).items():
        cells = [_cell(figures.get(column), bold=name in best.get(column, ())) for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for column, names in best.items():
        own = found[names[0]][column]
        alike = [other for other in found if other not in names and _meet(found[other][column], own)]
        meets = f"its interval meets those of {', '.join(alike)}" if alike else "no other interval meets its own"
        lines.append(f"- Best by *{column.removesuffix(', %')}*: {' and '.join(names)}; {meets}.")
    return "\n".join(lines) + "\n"


def _best(found: Mapping[str, Figures], column: str, choose: Callable[..., str]) -> list[str]:
    """The settings whose value reads as the best one does."""
    highest = choose(found, key=lambda name: found[name][column]["value"])
    return [name for name in found if _shown(found[name][column]["value"]) == _shown(found[highest][column]["value"])]


def _cell(estimate: Estimate | None, bold: bool) -> str:
    if estimate is None:
        return ""
    value, low, high = (_shown(estimate[key]) for key in ("value", "low", "high"))
    return f"**{value}** ({low}–{high})" if bold else f"{value} ({low}–{high})"


def _shown(value: float) -> str:
    return f"{round(value, 6):.3g}"  # 1e-15 is 0


def _meet(one: Estimate, other: Estimate) -> bool:
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def plot(experiment: Experiment, rows: Rows) -> Figure:
    """For each group a panel for each column; a dashed line is the reference."""
    columns = list(next(iter(rows[next(iter(experiment.groups))].values())))
    width = min(len(columns), ACROSS)
    height = -(-len(columns) // width)
    figure = Figure(figsize=(1 + 3 * width, 1 + 2.6 * height * len(experiment.groups)), layout="constrained")
    panels = figure.subplots(height * len(experiment.groups), width, squeeze=False)
    for group, (variable, settings) in enumerate(experiment.groups.items()):
        own = panels[group * height : (group + 1) * height].flatten()
        for axes, column in zip(own, columns, strict=False):
            _panel(axes, variable, column, {name: rows[variable][name] for name in settings})
            for name, figures in rows.get(REFERENCE, {}).items():
                if column in figures:
                    axes.axhline(figures[column]["value"], color="gray", linestyle="--", label=name)
        for axes in own[len(columns) :]:
            axes.set_axis_off()
    figure.suptitle(experiment.title)
    handles: dict[Any, Any] = {}  # one for each name: panels share them
    for axes in panels.flatten():
        handles |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, variable: str, column: str, found: Mapping[str, Figures]) -> None:
    """One column over the settings of a group, with intervals: along an axis if all of them are numbers. Of curves, a
    line for each setting."""
    axes.set_ylabel(column, fontsize="small")
    axes.grid(alpha=0.3)
    if all("curve" in figures[column] for figures in found.values()):
        for number, (name, figures) in enumerate(found.items()):
            axes.plot(*zip(*figures[column]["curve"], strict=True), color=f"C{number}", label=name)
        axes.set_xlabel("training step")
        return
    try:
        places, joined = [float(name) for name in found], "-"
    except ValueError:
        places, joined = [float(place) for place in range(len(found))], ""
    estimates = [figures[column] for figures in found.values()]
    values = [one["value"] for one in estimates]
    below = [max(one["value"] - one["low"], 0) for one in estimates]  # rounding may leave less than 0
    above = [max(one["high"] - one["value"], 0) for one in estimates]
    axes.errorbar(places, values, yerr=[below, above], marker="o", linestyle=joined, capsize=3)
    if joined and max(places) > 10 * min(places):
        axes.set_xscale("log")
    turned: dict[str, Any] = {"rotation": 90 * (len(places) > 6)} if joined else {"rotation": 20, "ha": "right"}
    axes.set_xticks(places, list(found), fontsize="small", **turned)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(variable)
