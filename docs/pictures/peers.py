"""Draws peers.png, the picture of the first page, from the figures in benchmarks/executor.json.

``python docs/pictures/peers.py``, after ``ndshare bench executor --peers all --json …``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from PIL import Image

mpl.use("Agg")

_HERE = Path(__file__).resolve().parent
_NAMES = {
    "stdlib": "concurrent.futures",
    "mp.Pool": "multiprocessing.Pool",
    "ray": "Ray",
    "bare": "plain call",
}
_OWN, _PLAIN, _OTHERS = "#f07818", "#5a6570", "#a9bccf"
#: Case, its title, what seconds are told in, and who is left out: one of a kind is enough to read.
_PANELS = (
    ("large", "x + 1 of 160 MB", 1e3, "ms", ()),
    ("megabyte-peers", "x + 1 of 1 MB", 1e3, "ms", ()),
    ("round-trip", "a tiny task and its answer", 1e6, "µs", ()),
    ("map-many", "a map of 10,000 items, each", 1e6, "µs", ("stdlib",)),
    ("submit-many", "10,000 tiny tasks at once, each", 1e6, "µs", ("mp.Pool",)),
    ("first-result-2", "first result of a new pool", 1e3, "ms", ()),
)


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def main() -> None:
    """Draw it."""
    measured = json.loads((_HERE.parents[1] / "benchmarks" / "executor.json").read_text())
    cases = {case["name"]: case for case in measured["cases"]}
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.4), layout="constrained")
    for axis, (name, title, factor, unit, left_out) in zip(axes.flat, _PANELS, strict=True):
        results = {
            _NAMES.get(who, who): factor * result["median"]
            for who, result in cases[name]["results"].items()
            if who not in left_out and not who.endswith(", all")
        }
        names = sorted(results, key=results.__getitem__)
        colours = [{"ndshare": _OWN, "plain call": _PLAIN}.get(who, _OTHERS) for who in names]
        bars = axis.barh(names, [results[who] for who in names], color=colours, height=0.72)
        axis.bar_label(bars, [f"{_number(results[who])} {unit}" for who in names], padding=4)
        axis.set_title(title, loc="left", x=-0.3, fontweight="bold", fontsize=11)
        axis.set_xlim(0, 1.22 * max(results.values()))
        axis.set_ylim(max(len(names), 7) - 0.5, -0.5)
        axis.xaxis.set_visible(False)
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        for label in axis.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == "ndshare" else "normal")
    machine = measured["machine"]
    figure.supxlabel(
        f"Time, less is better: two workers, median of {measured['settings']['rounds']} rounds in turns.  "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, NumPy {machine['numpy']}",
        fontsize=9,
        color="#555555",
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    few_colours = Image.open(drawn).convert("RGB").quantize(32)
    few_colours.save(_HERE / "peers.png", optimize=True)


if __name__ == "__main__":
    main()
