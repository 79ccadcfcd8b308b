"""One look at everything: processes, workers, maps, queues, streams, dicts."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import time
from collections.abc import Iterator

import numpy as np

from ndshare._dict import DictState, states
from ndshare._memory import HeapFigures, ledger
from ndshare._processes import MapNote, Row, board
from ndshare._queue import QueueCounts, counts, newest
from ndshare._system import Board
from ndshare.cli.processes import File, Process, parent_of, scan

_TICKS = os.sysconf("SC_CLK_TCK")
Key = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class RunningMap:
    """A map that runs in workers.

    Parameters
    ----------
    owner
        Process that has called `map`.
    note
        What it says of the map.
    finished
        How many items are done.
    slowest
        The item that has taken longest so far, and for how many seconds; None between items.
    """

    owner: int
    note: MapNote
    finished: int
    slowest: tuple[int, float] | None


@dataclasses.dataclass
class Look:
    """What there was at one moment.

    Parameters
    ----------
    when
        As of `time.monotonic`.
    processes, seconds
        By number: what they have, and how much time of a processor they have used.
    rows, owners, forkers
        By the number of a worker: what it does, and the process that it works for; whom they are forked from.
    heaps
        By the number of a process: its segments.
    maps, queues, streams, dicts
        What there is; queues and streams with the processes that have them.
    """

    when: float
    processes: dict[int, Process] = dataclasses.field(default_factory=dict)
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    rows: dict[int, Row] = dataclasses.field(default_factory=dict)
    owners: dict[int, int] = dataclasses.field(default_factory=dict)
    forkers: set[int] = dataclasses.field(default_factory=set)
    heaps: dict[int, HeapFigures] = dataclasses.field(default_factory=dict)
    maps: list[RunningMap] = dataclasses.field(default_factory=list)
    queues: dict[Key, tuple[QueueCounts, list[int]]] = dataclasses.field(default_factory=dict)
    streams: dict[Key, tuple[int, bool, list[int]]] = dataclasses.field(default_factory=dict)
    dicts: list[DictState] = dataclasses.field(default_factory=states)


def look() -> Look:
    """Look at everything once."""
    seen = Look(time.monotonic())
    seen.processes = {process.pid: process for process in scan()}
    for pid in list(seen.processes):
        with contextlib.suppress(OSError, ValueError, IndexError):
            seen.seconds[pid] = _seconds(pid)
    users: dict[tuple[str, Key], list[int]] = {}
    files: dict[tuple[str, Key], File] = {}
    for process in seen.processes.values():
        for file in process.files:
            users.setdefault((file.kind, file.key), []).append(process.pid)
            files.setdefault((file.kind, file.key), file)
    for (kind, key), file in files.items():
        with contextlib.suppress(OSError, ValueError), _opened(file.path) as fd:
            pids = users[kind, key]
            if kind == "ndshare-board":
                _read_board(seen, fd)
            elif kind == "ndshare-ledger":
                seen.heaps |= ledger(fd)
            elif kind == "ndshare-queue":
                seen.queues[key] = counts(fd), pids
            elif kind == "ndshare-stream":
                seen.streams[key] = *newest(fd), pids
    return seen


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def _read_board(seen: Look, fd: int) -> None:
    rows, notes = board(fd)
    owner = 0
    for row in rows:
        if (worker := seen.processes.get(row.pid)) is None:
            continue  # a row that nobody has taken again
        seen.rows[row.pid] = row
        seen.forkers.add(worker.parent)
        with contextlib.suppress(OSError):
            owner = parent_of(worker.parent)  # that forker may hold no memory itself
        seen.owners[row.pid] = owner
    if owner in seen.processes:
        seen.maps += [found for note in notes if (found := _map(seen.processes[owner], note)) is not None]


def _map(owner: Process, note: MapNote) -> RunningMap | None:
    file = next((file for file in owner.files if file.key == note.file), None)
    if file is None:
        return None
    begin = note.offset // mmap.PAGESIZE * mmap.PAGESIZE
    size = note.offset - begin + Board.nbytes(note.workers, note.items)
    with _opened(file.path) as fd, mmap.mmap(fd, size, prot=mmap.PROT_READ, offset=begin) as memory:
        content = bytearray(memory[note.offset - begin :])
    state = Board(np.frombuffer(content, np.uint8), note.workers, note.items)
    now = time.monotonic_ns()
    at = [
        (index, (now - state.began(worker)) / 1e9)
        for worker in range(note.workers)
        if state.pid_of(worker) and state.began(worker) and (index := state.current(worker)) is not None
    ]
    slowest = max(at, key=lambda pair: pair[1], default=None)
    return RunningMap(owner.pid, note, min(state.finished(), note.items), slowest)
