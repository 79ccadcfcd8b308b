"""The numbers of the demo as text."""

from __future__ import annotations

from ndshare.demo.grid import Grid, Search


def table(grid: Grid, search: Search) -> str:
    """Return the cross-validation errors in per cent, one row per ridge; the best is marked."""
    best = search.best
    lines = ["ridge\\width" + "".join(f"{width:5.2f} " for width in grid.bandwidths)]
    for row, ridge in enumerate(grid.ridges):
        cells = [
            f"{100 * error:5.2f}{'*' if (row, column) == best else ' '}"
            for column, error in enumerate(search.errors[row])
        ]
        lines.append(f"{ridge:9.0e}  " + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def size(nbytes: float) -> str:
    """Return a number of bytes in a unit that a reader can compare (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
