"""`ClusterExecutor`: functions called on the machines of a cluster; shared arrays keep their meaning.

::

    submit ──► crates ──► engine ──► node: a worker calls the function ──► result, and what it has written
                                                                           to shared arrays
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ndshare import locks, mainspace, transport
from ndshare._arguments import check_callable
from ndshare._engines import find_engine
from ndshare._freight import Manifest, open_reply
from ndshare._shares import CallTask, TaskResult
from ndshare.pickling import Recording
from ndshare.tasks import describe, with_traceback

__all__ = ["ClusterExecutor"]

_T = TypeVar("_T")


class ClusterExecutor(concurrent.futures.Executor):
    """Run calls on the machines of a cluster.

    Parameters
    ----------
    engine : distributed.Client, str or Executor
        As of `ClusterContext`.

    Notes
    -----
    Arguments are read when `submit` is called. Large arrays go to each machine once, whichever calls use
    them. A function sees shared arrays as they are at `submit`; what it writes to them arrives, byte by byte,
    before its future is done. Calls that write to the same elements overwrite each other, the last one wins.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = find_engine(engine, None)
        self._lock = threading.Lock()  # of arrays that results are merged into
        self._pending: dict[concurrent.futures.Future[Any], Any] = {}  # and the engine's own
        self._closed = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Raises
        ------
        TypeError
            If `fn` is not callable, or an argument cannot be sent.
        RuntimeError
            After `shutdown`.
        """
        check_callable("fn", fn)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        manifest = Manifest()
        with locks.leaving_machine():
            content = transport.pack((fn, args, kwargs)).take()
            update = mainspace.deliver(content.needs, {})
        crates = [
            manifest.crate(Recording((b"N.",)) if update is None else update.take()),
            manifest.crate(content),
        ]
        for number in range(len(manifest.blocks)):
            manifest.keep(number)
        task = CallTask("", describe(fn), crates, manifest.blocks_of(crates), {})
        task.load(manifest.contents, ())
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        self._pending[future] = None
        self._send(future, task, manifest, None)
        return future

    def _send(self, future: Any, task: CallTask, manifest: Manifest, address: Any) -> None:
        def landed(sent: Any) -> None:
            try:
                result = self._engine.result(sent)
                if result.lacks:
                    task.load(manifest.contents, result.lacks)
                    self._send(future, task, manifest, result.address)
                    return
                self._finish(future, manifest, result)
            except BaseException as error:
                future.set_exception(error)
            self._pending.pop(future, None)

        sent = self._engine.submit(task, landed, address)
        if future in self._pending:
            self._pending[future] = sent

    def _finish(self, future: Any, manifest: Manifest, result: TaskResult) -> None:
        with self._lock:
            for change in result.changes:
                change.merge(manifest.blocks[change.block].memory)
        if result.failure is not None:
            future.set_exception(with_traceback(*open_reply(result.failure)))
        else:
            assert result.outcome is not None
            future.set_result(open_reply(result.outcome))

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
            self._engine.cancel([sent for sent in self._pending.values() if sent is not None])
        if wait:
            concurrent.futures.wait(list(self._pending))
        self._engine.close()
