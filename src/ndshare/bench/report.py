"""The figures as text and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ndshare.bench.goal import Goal, Result

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (0.0, "B"))
_SCALE = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0}


def quantity(value: float, unit: str) -> str:
    """Return a value with three digits and a unit that suits its size."""
    if unit == "x":  # a ratio already
        return f"{value:.3f} x"
    steps = _SECONDS if unit == "s" else _BYTES
    name = next(name for least, name in steps if abs(value) >= least)
    return f"{value / _SCALE[name]:.3g} {name}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def goal_text(result: Result, goal: Goal) -> str:
    """Return the goal as a reader would write it."""
    if goal.kind == "ratio":
        return f"<= {goal.limit:g} x {result.reference}"
    text = quantity(goal.limit, result.unit)
    return f"<= {result.reference} + {text}" if goal.kind == "extra" else f"<= {text}"


def reached_text(result: Result, goal: Goal) -> str:
    """Return what was reached, in the words of the goal, and whether that is enough."""
    reached = result.reached(goal)
    if reached is None:
        return "not measured"
    if goal.kind == "ratio":
        text = f"{_ratio(reached)} x"
    else:
        text = ("+ " if goal.kind == "extra" else "") + quantity(reached, result.unit)
    return f"{text} {'ok' if reached <= goal.limit else 'MISSED'}"


def text_of(result: Result) -> str:
    """Return a case as a few lines."""
    lines = [result.title]
    width = max(14, *(len(name) + 1 for name in result.values))
    for name in result.values:
        ratio = result.ratio(name)
        line = f"    {name:{width}}{quantity(result.median(name), result.unit):>10}"
        if ratio is not None and name != result.reference:
            line += f"{_ratio(ratio):>8} x {result.reference}"
        lines.append(line)
    lines += [f"    goal {goal_text(result, goal)}: {reached_text(result, goal)}" for goal in result.goals]
    lines += [f"    {note}" for note in result.notes]
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """Return one line per goal."""
    rows = [
        (result.title, goal_text(result, goal), reached_text(result, goal))
        for result in results
        for goal in result.goals
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def save(
    path: str,
    results: Sequence[Result],
    machine: Mapping[str, object],
    settings: Mapping[str, object],
    versions: Mapping[str, str],
    missing: Mapping[str, str],
) -> None:
    """Write everything to a JSON file: machine, settings, versions, and every single round."""
    cases: list[dict[str, Any]] = [
        {
            "name": result.name,
            "title": result.title,
            "unit": result.unit,
            "reference": result.reference,
            "goals": [
                {
                    "text": goal_text(result, goal),
                    "limit": goal.limit,
                    "kind": goal.kind,
                    "reached": result.reached(goal),
                }
                for goal in result.goals
            ],
            "results": {
                name: {"median": result.median(name), "ratio": result.ratio(name), "rounds": values}
                for name, values in result.values.items()
            },
            "notes": list(result.notes),
        }
        for result in results
    ]
    content = {
        "machine": machine,
        "settings": settings,
        "versions": versions,
        "left out": missing,
        "cases": cases,
    }
    write(path, content)


#: Stands for standard output as a name of a file.
TO_STDOUT = "-"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, with or without the name of a file."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const=TO_STDOUT,
        help="write every figure to this file; without a name to standard output, and the text to stderr",
    )


def write(path: str, content: object) -> None:
    """Write figures to a JSON file, or to standard output."""
    if path == TO_STDOUT:
        print(json.dumps(content, indent=1), file=sys.__stdout__)
        return
    with open(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
