"""What an experiment is, and how one is run: setting by setting, so that nothing need be measured twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paella.pipeline import Paella

# What was measured in one setting, by the name of its column. Beside its value a figure may have a "curve": a list of
# [training step, value], of which the value is the end.
Figures = dict[str, dict[str, Any]]
Rows = dict[str, dict[str, Figures]]  # what is varied -> the setting's name -> its figures
Tick = Callable[[float], None]  # is told how much of a setting is done, in [0, 1]
Measure = Callable[[Paella, Any, int, int, Tick], Figures]  # pipeline, setting, number, seed

REFERENCE = "reference"  # the key of the row that is not a setting


@dataclass(frozen=True)
class Experiment:
    """A claim of the paper's, or a question, as a table to fill.

    Attributes:
        title: the headline of its page.
        groups: what is varied -> the name of each setting -> the setting, as `measure` takes it. Each group is a table
            of its own. Names that are numbers are places on an axis.
        measure: from a pipeline and a setting to figures.
        number: how much is measured in each setting, where nobody says otherwise.
        counted: what that is the number of.
        fewest: of these with which something can be said.
        judged: the columns that settings are compared by -> what finds the best of them, `max` or `min`.
        reference: measures, with number and seed, the real pictures that the settings are to be compared with; None =
            there are none.
    """

    title: str
    groups: Mapping[str, Mapping[str, Any]]
    measure: Measure
    number: int
    counted: str
    fewest: int = field(default=1, kw_only=True)
    judged: Mapping[str, Callable[..., str]] = field(default_factory=dict)
    reference: Callable[[Paella, int, int], Figures] | None = None
    note: str = ""  # what else a reader of the tables has to know
    comes_to: Callable[[Paella, Any], Any] = lambda pipeline, setting: setting  # those alike in this are measured once

    def run(
        self, pipeline: Paella, number: int, seed: int, known: Rows, progress: Callable[[float, int], None]
    ) -> Iterator[Rows]:
        """Measures what `known` has not, and yields all rows after each.

        Args:
            progress: called as `progress(done, total)`, in settings.
        """
        rows = {variable: dict(figures) for variable, figures in known.items()}
        every = [(variable, name, setting) for variable, own in self.groups.items() for name, setting in own.items()]
        open_ones = [one for one in every if one[1] not in rows.get(one[0], {})]
        measured = [
            (self.comes_to(pipeline, setting), rows[variable][name])
            for variable, name, setting in every
            if name in rows.get(variable, {})
        ]
        if self.reference is not None and REFERENCE not in rows:
            rows[REFERENCE] = {"real pictures": self.reference(pipeline, number, seed)}
            yield rows
        for done, (variable, name, setting) in enumerate(open_ones):

            def tick(share: float, done: int = done) -> None:
                progress(done + share, len(open_ones))

            what = self.comes_to(pipeline, setting)
            figures = next((figures for other, figures in measured if other == what), None)
            if figures is None:
                figures = self.measure(pipeline, setting, number, seed, tick)
                measured.append((what, figures))
            rows.setdefault(variable, {})[name] = figures
            yield rows
