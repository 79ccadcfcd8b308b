"""When each worker of a traced map ran which items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ndshare._map.job import Death, WorkerReport
from ndshare._system import Moment, Slice, Timeline


def timeline_of(
    title: str,
    began: float,
    elapsed: float,
    workers: Sequence[WorkerReport],
    deaths: Sequence[Death],
    errors: Mapping[int, str],
) -> Timeline:
    """Return the timeline of a map: a track per `worker_id`, whoever had it; a slice per share.

    Parameters
    ----------
    title : str
        Of the map.
    began, elapsed : float
        Its start in seconds of the monotonic clock, and the seconds that it took.
    workers, deaths
        Those that have ended by themselves, and the others.
    errors : mapping of int to str
        What went wrong, by item.
    """
    numbers = {worker.worker_id for worker in workers}
    numbers |= {death.worker_id for death in deaths if death.worker_id is not None}
    slices = [
        Slice(
            worker.worker_id,
            start_s,
            end_s,
            f"item {first}" if end == first + 1 else f"items {first} to {end - 1}",
            "",
            {"first": first, "last": end - 1, "items": end - first, "process": worker.pid},
        )
        for worker in workers
        for first, end, start_s, end_s in worker.timeline
    ]
    tracks = {number: f"worker {number}" for number in sorted(numbers)}
    moments = list(_moments(workers, deaths, errors))
    return Timeline(title, began, elapsed, tracks, slices, moments, "share")


def _moments(
    workers: Sequence[WorkerReport], deaths: Sequence[Death], errors: Mapping[int, str]
) -> Iterator[Moment]:
    for worker in workers:
        for index, at in worker.failures:
            text = errors.get(index, "")
            yield Moment(worker.worker_id, at, f"error at item {index}", {"item": index, "error": text})
    for death in deaths:
        if death.worker_id is None:
            continue
        where = "between items" if death.index is None else f"at item {death.index}"
        text = "" if death.index is None else errors.get(death.index, "")
        yield Moment(death.worker_id, death.at, f"died {where}", {"item": death.index, "error": text})
