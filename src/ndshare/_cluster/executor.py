"""`ClusterExecutor`: functions called on the machines of a cluster; shared arrays keep their meaning.

::

    submit ──► crates ──► engine ──► node: a worker calls the function ──► result, and what it has written
    map    ──► several items at a time                                      to shared arrays
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ndshare._cluster.calls import CallFuture, Calls, Packed, crates_of
from ndshare._cluster.engines import find_engine
from ndshare._cluster.items import Items
from ndshare._node import CallTask
from ndshare._pool import describe
from ndshare._processes import without_options
from ndshare._system import check_callable, check_count, check_seconds
from ndshare._transport import Manifest

__all__ = ["ClusterExecutor"]

_T = TypeVar("_T")


class ClusterExecutor(concurrent.futures.Executor):
    """Run calls on the machines of a cluster.

    Page: docs/cluster.md.

    Parameters
    ----------
    engine : distributed.Client, str or Executor
        As of `ClusterContext`.

    Notes
    -----
    Arguments are read when `submit` is called. Large arrays go to each machine once, whichever calls use
    them. A function sees shared arrays as they are at `submit`; what it writes to them arrives, byte by byte,
    before its future is done. Calls that write to the same elements overwrite each other, the last one wins.
    A call whose node is lost runs again elsewhere.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = find_engine(engine, None)
        self._calls = Calls(self._engine)
        self._closed = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        With `ndshare.options` around `fn`, the machine that runs the call keeps its time limit and tries it
        again as often as it may; a priority is the engine's, and refused by those that have none.

        Raises
        ------
        TypeError
            If `fn` is not callable, or an argument cannot be sent.
        RuntimeError
            After `shutdown`.
        """
        self._check(fn)
        asked = self._calls.options_of(fn)
        function = without_options(fn)

        def pack() -> Packed:
            manifest = Manifest()
            crates = [*crates_of((function, args, kwargs), manifest)]
            manifest.keep_all()
            name, blocks = describe(function), manifest.blocks_of(crates)
            return CallTask("", name, crates, blocks, {}, asked=asked), manifest

        future: concurrent.futures.Future[_T] = CallFuture()
        future.set_running_or_notify_cancel()
        self._calls.submit(future, pack)
        return future

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[_T]:
        """Apply `fn` to the items of the iterables, in order.

        Parameters
        ----------
        fn : callable
            Takes as many arguments as there are iterables.
        *iterables : iterable
            The shortest one decides; read at once.
        timeout : float, optional
            Seconds from this call after which ``__next__`` raises `TimeoutError`.
        chunksize : int, optional
            Items per task of the engine. By default as many as take some 0.4 s, found out on the way. With a
            time limit (`ndshare.options`) it is one.

        Returns
        -------
        iterator
            Of results, in the order of the items. An error of an item is raised where its result would be.

        Notes
        -----
        Items are read when their task is sent: do not change them before the last result is there. The
        items of a task run one after the other in one worker, and see what those before have written; what
        they have written arrives together. After an error the rest of a task does not run. If the worker
        dies, the items of its task run again, one by one, so that only those fail that kill it.
        """
        self._check(fn)
        if chunksize is not None:
            check_count("chunksize", chunksize, 1)
        if timeout is not None:
            check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        items = Items(self._calls, fn, list(zip(*iterables, strict=False)), chunksize)
        items.fill()
        return items.results(deadline)

    def _check(self, fn: object) -> None:
        check_callable("fn", fn)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the engine itself stays as it is.

        Parameters
        ----------
        wait : bool, optional
            Return only when all futures are done.
        cancel_futures : bool, optional
            Give up the calls that have not begun: their futures raise `CancelledError`.
        """
        self._closed = True
        if cancel_futures:
            self._calls.cancel()
        if wait:
            self._calls.wait()
            self._engine.release()
        self._engine.close()

    def release(self) -> None:
        """Free what machines keep for the next call; see `ClusterContext.release`."""
        self._engine.release()
