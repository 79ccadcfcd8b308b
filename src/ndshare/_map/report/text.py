"""A map's report in words: several lines for a terminal, a small table for a notebook.

Both show the same rows: what, and what about it.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ndshare._memory import readable_bytes

if TYPE_CHECKING:
    from ndshare._map.report.report import MapReport
    from ndshare._map.watch.captured import Traffic

#: So many errors, workers and variables are shown; the report itself has them all.
_ERRORS_MOST = 3
_WORKERS_MOST = 16
_VARIABLES_MOST = 12
_TEXT_MOST = 160
_LABEL_MOST = 24

_STARTED = {
    "serial": "in the calling thread",
    "threads": "in threads made for this map",
    "pool": "in warm workers",
    "fork": "in workers forked for this map",
    "cluster": "in workers of other machines",
}
_WORKER_COLUMNS = ("worker", "process", "items", "shares", "busy", "peak memory")


def as_text(report: MapReport) -> str:
    """Return several lines, one per fact."""
    lines = [f"<MapReport: {headline(report)}"]
    facts = list(_facts(report))
    width = max(len(label) for label, _ in facts)
    lines += [f"  {label:<{width}}  {fact}" for label, fact in facts]
    table = list(_table(report))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += [
        "  " + "  ".join(f"{cell:>{most}}" for cell, most in zip(row, widths, strict=True)) for row in table
    ]
    if (hidden := len(report.workers) - _WORKERS_MOST) > 0:
        lines.append(f"  … and {hidden} more workers")
    return "\n".join(lines) + ">"


def as_html(report: MapReport) -> str:
    """Return two tables; whatever comes from the user's program is escaped."""
    facts = "".join(
        f'<tr><th style="text-align: left">{html.escape(label)}</th>'
        f'<td style="text-align: left">{html.escape(fact)}</td></tr>'
        for label, fact in _facts(report)
    )
    parts = [f"<div><b>MapReport: {html.escape(headline(report))}</b><table>{facts}</table>"]
    head, *rows = [*_table(report)] or [()]
    if rows:
        titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        parts.append(f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>")
    if (hidden := len(report.workers) - _WORKERS_MOST) > 0:
        parts.append(f"<p>… and {hidden} more workers</p>")
    return "".join(parts) + "</div>"


def headline(report: MapReport) -> str:
    """Return how much was done how fast."""
    text = f"{_items(report.items)} in {_duration(report.elapsed)}"
    if report.items and report.elapsed > 0:
        text += (
            f", {report.speed:,.4g} per second"
            if report.speed < 1000
            else f", {report.speed:,.0f} per second"
        )
    return text


def _facts(report: MapReport) -> Iterator[tuple[str, str]]:
    where = f"{report.context}, {_STARTED.get(report.start_method, report.start_method)}"
    yield "context", where + (f": {_short(report.reason)}" if report.reason else "")
    places = len({worker.worker_id for worker in report.workers})
    balance = f", the busiest {report.imbalance:.0%} above the mean" if places > 1 else ""
    yield "workers", f"{places} of {report.num_workers}{balance}"
    finished = int(np.count_nonzero(report.done))
    yield "done", "all" if finished == report.items else f"{finished:,} of {report.items:,}"
    if report.errors:
        yield "errors", f"{len(report.errors):,}"
        for index, error in report.errors[:_ERRORS_MOST]:
            yield f"  item {index}", _short(describe(error))
        if (hidden := len(report.errors) - _ERRORS_MOST) > 0:
            yield "  …", f"{hidden:,} more"
    if report.deaths:
        at = [str(death.index) for death in report.deaths if death.index is not None][:_ERRORS_MOST]
        yield "died", f"{_workers(len(report.deaths))}" + (f", at item {', '.join(at)}" if at else "")
    for name, kind in report.lost_writes[:_VARIABLES_MOST]:
        yield "lost writes", _short(f"{name} ({kind})")
    on_cluster = report.start_method == "cluster"
    if report.captured:
        yield "sent", _sent(list(report.captured.values()), on_cluster)
    by_size = sorted(report.captured.items(), key=lambda pair: -max(pair[1]))
    for name, traffic in by_size[:_VARIABLES_MOST]:
        yield f"  {_short(name, _LABEL_MOST)}", _sent([traffic], on_cluster)
    if (hidden := len(by_size) - _VARIABLES_MOST) > 0:
        yield "  …", f"{hidden} more"


def _sent(traffics: list[Traffic], on_cluster: bool) -> str:
    ways = (
        ("by reference", sum(traffic.shared for traffic in traffics)),
        ("to machines" if on_cluster else "copied once", sum(traffic.copied for traffic in traffics)),
        ("with shares" if on_cluster else "pickled", sum(traffic.pickled for traffic in traffics)),
    )
    return ", ".join(f"{readable_bytes(nbytes)} {way}" for way, nbytes in ways if nbytes) or "nothing"


def _table(report: MapReport) -> Iterator[tuple[str, ...]]:
    if not report.workers:
        return
    yield _WORKER_COLUMNS
    for worker in report.workers[:_WORKERS_MOST]:
        part = f" ({worker.busy / report.elapsed:.0%})" if report.elapsed > 0 else ""
        yield (
            str(worker.worker_id),
            f"{worker.node}:{worker.pid}" if worker.node else str(worker.pid),
            f"{worker.items:,}",
            f"{worker.shares:,}",
            _duration(worker.busy) + part,
            readable_bytes(worker.peak_bytes),
        )


# ---------------------------------------------------------------------- words


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count:,} items"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _duration(seconds: float) -> str:
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 1 or seconds <= 0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def describe(error: BaseException) -> str:
    """Return class and text of an exception, whatever its class does."""
    try:
        text = str(error)
    except Exception as failure:  # the user's class
        text = f"<its text could not be had: {type(failure).__name__}>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(text: str, most: int = _TEXT_MOST) -> str:
    """Return text in one line of limited length."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 2] + " …"
