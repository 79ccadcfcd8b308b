"""The figures as a picture: one bar per case and contestant, goals marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ndshare.bench.goal import SUBJECT, Result

_COLOURS = {
    "ndshare": "#ff7f0e",
    "stdlib": "#4c72b0",
    "mp.Pool": "#8da0cb",
    "npshmex": "#55a868",
    "joblib": "#c44e52",
    "loky": "#8172b3",
    "mpire": "#937860",
    "ray": "#64b5cd",
    "pasha": "#55a868",
}
_DPI = 150
_BAR_INCHES = 0.21
_LABEL_WIDTH = 2.5  # the part of the logarithmic axis that a label covers, as a ratio
_FLOOR = 0.01  # smallest ratio shown


def save(path: str, results: Sequence[Result], machine: Mapping[str, object]) -> None:
    """Write the picture of every case that has ratios to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [result for result in results if result.ratio(SUBJECT) is not None]
    rows: list[tuple[Result, str] | None] = []
    for result in shown:
        rows += [(result, name) for name in result.values if name != result.reference]
        rows.append(None)  # a gap between the cases
    figure = Figure(
        figsize=(9.6, 1.6 + _BAR_INCHES * (len(rows) + len(shown))), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = 0.0
    largest = 1.0
    for result in shown:
        axes.text(
            0.0,
            at,
            f"{result.title}  (1 = {result.reference})",
            transform=axes.get_yaxis_transform(),
            fontsize=8.5,
            va="center",
            fontweight="bold",
        )
        at += 1.0
        for name in result.values:
            ratio = result.ratio(name)
            if name == result.reference or ratio is None:
                continue
            colour = _COLOURS.get(name.partition(",")[0], "0.6")
            axes.barh(at, ratio, left=0, height=0.82, color=colour, alpha=1.0 if name == SUBJECT else 0.75)
            label_at = max(ratio, _FLOOR)
            for goal in result.goals:
                limit = _as_ratio(result, goal.limit, goal.kind) if goal.subject == name else None
                if limit is not None:
                    axes.plot([limit, limit], [at - 0.5, at + 0.5], color="black", lw=2.2)
                    if ratio < limit < _LABEL_WIDTH * ratio:
                        label_at = limit  # beside the mark, not below it
            text = f"{name}  {ratio:.2f}" if ratio < 10 else f"{name}  {ratio:,.0f}"
            axes.text(label_at * 1.06, at, text, fontsize=7.5, va="center")
            largest = max(largest, ratio)
            at += 1.0
        at += 0.7
    axes.axvline(1.0, color="0.5", lw=0.8, zorder=0)
    axes.set(xscale="log", xlim=(_FLOOR, largest * 6), ylim=(at, -1.0), yticks=[])
    axes.set_xlabel(
        "time or memory against the reference of the case; black mark: goal for ndshare", fontsize=9
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path, machine)


def save_figure(figure: Any, path: str, machine: Mapping[str, object]) -> None:
    """Write a picture with a line that says where its figures were taken."""
    figure.suptitle(
        f"{machine['cpu']}, {machine['usable cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, NumPy {machine['numpy']}",
        fontsize=8.5,
        color="0.35",
    )
    figure.savefig(path)


def _as_ratio(result: Result, limit: float, kind: str) -> float | None:
    """Return where a goal lies on the axis of ratios."""
    if kind == "ratio":
        return limit
    if result.reference is None:
        return None
    reference = result.median(result.reference)
    return limit / reference if kind == "value" else 1.0 + limit / reference
