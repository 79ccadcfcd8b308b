"""The numbers of the demo as a picture: the error surface and the digits the best model finds hard."""

from __future__ import annotations

from typing import Any

import numpy as np

from ndshare.demo.digits import Digits
from ndshare.demo.grid import Grid, Search
from ndshare.demo.ridge import Floats

_SHOWN = 8  # hard digits beside the surface, two columns of four
_DPI = 160
_LEAST_PER_CENT = 0.05  # less than one digit of 1,438


def save(path: str, grid: Grid, search: Search, held_out: Digits, answers: Floats, caption: str) -> None:
    """Write the picture.

    Parameters
    ----------
    path
        Name of the PNG file.
    grid, search
        The models and their cross-validation errors.
    held_out, answers
        The test digits and the answers of the best model, shape (n, classes).
    caption
        One line below the picture.
    """
    # Object interface: works without a display and leaves the user's backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.6, 1.0))
    left, right = parts
    _surface(left, grid, search)
    _hard_ones(right, held_out, answers)
    figure.supxlabel(caption, fontsize=8.5, color="0.35")
    figure.savefig(path)


def _surface(figure: Any, grid: Grid, search: Search) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes = figure.subplots()
    row, column = search.best
    best = 100 * search.errors[row, column]
    # A logarithmic scale has no place for a model without an error.
    per_cent = np.maximum(100 * search.errors, _LEAST_PER_CENT)
    norm = LogNorm(per_cent.min(), max(per_cent.max(), 1.01 * per_cent.min()))
    across, up = _edges(grid.bandwidths), _edges(grid.ridges)
    mesh = axes.pcolormesh(across, up, per_cent, norm=norm, cmap="viridis_r")
    levels = [level for level in (2, 5, 10, 20, 40) if per_cent.min() < level < per_cent.max()]
    if levels:
        lines = axes.contour(
            grid.bandwidths, grid.ridges, per_cent, levels=levels, colors="white", linewidths=0.9
        )
        axes.clabel(lines, fmt=lambda level: f"{level:g} %", fontsize=8)
    axes.plot(
        grid.bandwidths[column],
        grid.ridges[row],
        "*",
        ms=17,
        mfc="#ff7f0e",
        mec="white",
        mew=1.2,
        clip_on=False,
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(across[0], across[-1]),
        ylim=(up[0], up[-1]),
        xlabel="bandwidth of the Gaussian kernel",
        ylabel="regularisation",
    )
    axes.set_title(
        f"Best of {per_cent.size} models: {best:.2f} % wrong in {grid.folds}-fold cross-validation",
        fontsize=10.5,
        loc="left",
    )
    ticks = [tick for tick in (0.5, 1, 2, 4, 8) if grid.bandwidths[0] <= tick <= grid.bandwidths[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label("wrong digits (%)")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _edges(centres: Floats) -> Floats:
    """Return the borders of cells around `centres` that are evenly spaced on a logarithmic axis."""
    half = np.sqrt(centres[1] / centres[0])
    return np.append(centres / half, centres[-1] * half)


def _hard_ones(figure: Any, held_out: Digits, answers: Floats) -> None:
    """Draw the wrong digits and, where room is left, the right ones that were closest to wrong."""
    found = answers.argmax(axis=1)
    ranked = np.sort(answers, axis=1)
    wrong = found != held_out.labels
    # Wrong ones first, then by the distance between the best and the second answer.
    order = np.lexsort((ranked[:, -1] - ranked[:, -2], ~wrong))
    figure.suptitle(f"{wrong.sum()} of {len(held_out)} held-out digits wrong", fontsize=10.5)
    axes = figure.subplots(_SHOWN // 2, 2).ravel()
    for panel, index in zip(axes, order, strict=False):
        panel.imshow(held_out.images[index].reshape(8, 8), cmap="gray_r", interpolation="nearest")
        panel.set_axis_off()
        second = answers[index].argsort()[-2]
        text = (
            f"{held_out.labels[index]} taken for {found[index]}"
            if wrong[index]
            else f"{found[index]}, not {second}"
        )
        panel.set_title(text, fontsize=8.5, pad=3, color="#c0392b" if wrong[index] else "0.35")
