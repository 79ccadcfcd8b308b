"""What happened when, on tracks: as a plot, and as a file for trace viewers.

References
----------
Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: what
Perfetto (https://ui.perfetto.dev) and ``chrome://tracing`` open.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

#: Numbers of tracks: viewers take a thread with the number of its process for the main one, and 0 for idle.
_TRACKS_EACH = 1_000_000
_BAR_HEIGHT = 0.8
_COLOURS = ("C0", "C9", "C1", "C2", "C4", "C5", "C6", "C8")
#: So many kinds of bars have a colour and a line in the legend; the others are grey.
_KINDS_MOST = len(_COLOURS)


class Slice(NamedTuple):
    """Something that took a while.

    Parameters
    ----------
    track
        Its row.
    began, ended
        In seconds of the monotonic clock.
    name
        What it was.
    kind
        Bars of one kind have one colour; those of no kind two in turn.
    facts
        For the trace.
    """

    track: int
    began: float
    ended: float
    name: str
    kind: str
    facts: dict[str, Any]


class Moment(NamedTuple):
    """Something that happened at one moment: an error, or a death."""

    track: int
    at: float
    name: str
    facts: dict[str, Any]


class Timeline:
    """What happened when.

    Parameters
    ----------
    title : str
        Of what.
    began, elapsed : float
        Its start in seconds of the monotonic clock, and the seconds that it took.
    tracks : mapping of int to str
        Rows, from the top, and their names.
    slices, moments
        What is drawn there.
    category : str
        Of the slices, for a viewer.
    """

    def __init__(
        self,
        title: str,
        began: float,
        elapsed: float,
        tracks: Mapping[int, str],
        slices: Sequence[Slice],
        moments: Sequence[Moment],
        category: str,
    ) -> None:
        self._title = title
        self._began = began
        self._elapsed = elapsed
        self._tracks = tracks
        self._slices = slices
        self._moments = moments
        self._category = category

    def _events(self, process: int, zero: float) -> list[dict[str, Any]]:
        """Return the events of a trace file: a track per row, a slice per bar, an instant per moment."""

        def at(track: int) -> dict[str, int]:
            return {"pid": process, "tid": process * _TRACKS_EACH + track}

        events = [{"name": "process_name", "ph": "M", "pid": process, "args": {"name": self._title}}]
        for number, (track, name) in enumerate(self._tracks.items()):
            events.append({"name": "thread_name", "ph": "M", **at(track), "args": {"name": name}})
            events.append(
                {"name": "thread_sort_index", "ph": "M", **at(track), "args": {"sort_index": number}}
            )
        events += [
            {
                "name": one.name,
                "cat": self._category,
                "ph": "X",
                "ts": _microseconds(one.began - zero),
                "dur": _microseconds(one.ended - one.began),
                **at(one.track),
                "args": one.facts,
            }
            for one in self._slices
        ]
        events += [
            {
                "name": one.name,
                "cat": "error",
                "ph": "i",
                "s": "t",
                "ts": _microseconds(one.at - zero),
                **at(one.track),
                "args": one.facts,
            }
            for one in self._moments
        ]
        return events

    def write(self, path: str | os.PathLike[str], others: Iterable[Timeline] = ()) -> None:
        """Write a trace file; `others` are in it as well, on the same clock."""
        import json

        every = [self, *others]
        zero = min(timeline._began for timeline in every)
        events = [event for n, timeline in enumerate(every, 1) for event in timeline._events(n, zero)]
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)

    def plot(self, title: str, axes: Any = None) -> Any:
        """Draw a bar per slice, a row per track, a cross per moment; returns the axes."""
        rows = {track: row for row, track in enumerate(self._tracks)}
        if axes is None:
            from matplotlib import pyplot as plt

            _, axes = plt.subplots(figsize=(8, 1.2 + 0.35 * max(len(rows), 2)), layout="constrained")
        kinds = list(dict.fromkeys(one.kind for one in self._slices if one.kind))
        colours = {kind: _COLOURS[n] if n < _KINDS_MOST else "0.7" for n, kind in enumerate(kinds)}
        for track, row in rows.items():
            own = [one for one in self._slices if one.track == track]
            if own:
                spans = [(one.began - self._began, one.ended - one.began) for one in own]
                filling = [colours.get(one.kind, _COLOURS[n % 2]) for n, one in enumerate(own)]
                axes.broken_barh(
                    spans, (row - _BAR_HEIGHT / 2, _BAR_HEIGHT), facecolors=filling, edgecolors="none"
                )
        times = [one.at - self._began for one in self._moments]
        if times:
            places = [rows[one.track] for one in self._moments]
            axes.plot(times, places, linestyle="none", marker="x", color="C3", label="errors")
        _add_legend(axes, colours if len(colours) > 1 else {})
        axes.set_yticks(range(len(rows)), list(self._tracks.values()))
        axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)  # the first one on top
        axes.set_xlim(0, max([self._elapsed, *times]) or 1)
        axes.set_xlabel("seconds")
        axes.set_title(title, fontsize="medium")
        return axes


def _add_legend(axes: Any, colours: Mapping[str, str]) -> None:
    """Say what is what beside the axes: inside it would cover bars."""
    handles, labels = axes.get_legend_handles_labels()
    if colours:
        from matplotlib.patches import Patch

        handles = [*(Patch(color=colour) for colour in colours.values()), *handles][: _KINDS_MOST + 1]
        labels = [*colours, *labels][: _KINDS_MOST + 1]
    if handles:
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize="small"
        )


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
