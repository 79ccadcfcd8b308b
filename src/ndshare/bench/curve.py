"""What one of many costs, over how many there are: as text, as JSON, as a picture."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ndshare.bench.goal import SUBJECT
from ndshare.bench.plot import save_figure
from ndshare.bench.report import quantity

#: One costs so many times as much as it did one size before: worth an explanation.
STEP = 1.5
_COLUMNS = 2  # panels side by side
_DPI = 150


@dataclass
class Curve:
    """The cost of one over the number of all.

    Parameters
    ----------
    name, title
        A word and a sentence.
    axis
        What is counted, such as "tasks".
    seconds
        For each contestant and each size the seconds per one, a number per round.
    notes
        Why a contestant stops, and other remarks.
    """

    name: str
    title: str
    axis: str
    seconds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def cost(self, contestant: str) -> dict[int, float]:
        """Return the median cost of one for each size."""
        return {size: statistics.median(rounds) for size, rounds in sorted(self.seconds[contestant].items())}

    def steps(self, contestant: str = SUBJECT) -> Iterator[tuple[int, int, float]]:
        """Yield where one costs much more than it did one size before: both sizes, and the ratio of costs."""
        costs = list(self.cost(contestant).items())
        for (before, cheap), (after, dear) in itertools.pairwise(costs):
            if dear > STEP * cheap:
                yield before, after, dear / cheap

    def text(self) -> str:
        """Return it as a table."""
        sizes = sorted({size for points in self.seconds.values() for size in points})
        width = max(14, *(len(name) + 1 for name in self.seconds))
        lines = [self.title, f"    {self.axis:{width}}" + "".join(f"{_count(size):>10}" for size in sizes)]
        for name in self.seconds:
            costs = self.cost(name)
            cells = (quantity(costs[size], "s") if size in costs else "" for size in sizes)
            lines.append(f"    {name:{width}}" + "".join(f"{cell:>10}" for cell in cells))
        for before, after, ratio in self.steps():
            lines.append(f"    step: {ratio:.2f} x from {_count(before)} to {_count(after)} {self.axis}")
        return "\n".join(lines + [f"    {note}" for note in self.notes])

    def content(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return {
            "name": self.name,
            "title": self.title,
            "axis": self.axis,
            "seconds per one": {
                name: [
                    {"size": size, "median": median, "rounds": self.seconds[name][size]}
                    for size, median in self.cost(name).items()
                ]
                for name in self.seconds
            },
            "steps": [{"from": before, "to": after, "ratio": ratio} for before, after, ratio in self.steps()],
            "notes": self.notes,
        }


def _count(size: int) -> str:
    for power, name in ((3, "G"), (2, "M"), (1, "k")):
        if size >= 1000**power:
            return f"{size / 1000**power:.3g}{name}"
    return str(size)


def save_picture(path: str, curves: Sequence[Curve], machine: Mapping[str, object]) -> None:
    """Draw one panel for each curve into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(curves) // _COLUMNS)
    figure = Figure(figsize=(9.6, 0.9 + 2.7 * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes, curve in zip(panels, curves, strict=False):
        for name in curve.seconds:
            costs = curve.cost(name)
            mine = name.startswith(SUBJECT)
            axes.plot(
                list(costs), list(costs.values()), marker="o" if mine else "s", ms=4, lw=1.6 if mine else 1.2,
                ls="-" if mine else "--", label=name,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel(curve.axis, fontsize=9)
        axes.set_ylabel("seconds each", fontsize=9)
        axes.set_title(curve.title, fontsize=9, loc="left")
        axes.grid(visible=True, which="major", lw=0.4, color="0.85")
        axes.tick_params(which="both", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7.5, frameon=False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    save_figure(figure, path, machine)
