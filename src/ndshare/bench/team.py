"""Processes that update keys of one dictionary at the same time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np

from ndshare.bench.dicts import DICTS, keep_memory

_LEAD_S = 0.02  # until all have been told
_WARM_UP = 3


class Team:
    """Some processes, started once, that update for a while whenever told to.

    Parameters
    ----------
    library : str
        Name in `DICTS`.
    handle : object
        Of the dictionary.
    keys : sequence of str
        Which one each process updates: one process per key named.
    elements : int
        Length of the arrays of float64.
    """

    def __init__(self, library: str, handle: Any, keys: Sequence[str], elements: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for key in keys:
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(library, handle, key, elements, theirs))
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def run(self, seconds: float) -> float:
        """Let all update for some seconds; return the time per completed update of all together."""
        start = time.monotonic() + _LEAD_S
        for pipe in self._pipes:
            pipe.send((start, seconds))
        reports = [pipe.recv() for pipe in self._pipes]
        return float(1 / sum(count / elapsed for count, elapsed in reports))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()
            pipe.close()
            process.close()


def _serve(library: str, handle: Any, key: str, elements: int, pipe: Connection) -> None:
    keep_memory()
    with DICTS[library].opened(handle) as update:
        new = np.ones(elements)
        for _ in range(_WARM_UP):
            update(key, new)
        pipe.send(None)
        while (order := pipe.recv()) is not None:
            start, seconds = order
            while time.monotonic() < start:
                pass
            done, now = 0, start
            while now < start + seconds:
                update(key, new)
                done += 1
                now = time.monotonic()
            pipe.send((done, now - start))
