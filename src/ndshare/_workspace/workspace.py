"""`Workspace`: named arrays in shared memory, and functions that use the names as if they were theirs.

::

    Workspace({"D": D})     with: share ─► start workers ─► values to each, by reference
    f = ws.register(f)      f(x) ─► a call on its way, its handle in the queue
    ws.evaluate()           waits for the queue, returns results in order

A name is withheld from what is sent: a global or a closure's variable of that name stays in the
caller, and the worker puts the shared value in its place (`ndshare._processes.injection`).
"""

from __future__ import annotations

import keyword
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

import numpy as np

from ndshare._pool import Environment, Recorder, TaskReport, checked_settings, describe
from ndshare._system import check_callable
from ndshare._transport import share
from ndshare._workspace.calls import Handle, Progress, Registered, check_progress, in_order
from ndshare._workspace.staff import PoolStaff, Staff
from ndshare.errors import CapacityError, add_note


class Workspace:
    """Arrays that functions in worker processes use by name.

    Page: docs/workspace.md.

    Parameters
    ----------
    values : mapping of str to object
        Names and what they stand for: arrays, and anything with arrays that `ndshare.share` takes
        (DataFrame, dict of arrays, ...). Shared once, on entering.
    num_workers : int, optional
        Number of processes. By default the smaller of the CPU affinity and the container's CPU quota,
        at least 1.
    initializer : callable, optional
        Called with `initargs` in each worker before anything else; it finds the names, too.
    initargs : tuple, optional
        Arguments of the initializer.
    max_tasks_per_child : int, optional
        A worker ends after so many calls and is replaced.
    snapshot : {"submit", "start"}, optional
        When ordinary arguments are read: before the call of a registered function returns, or when a
        worker takes it. The second copies less at a time; do not change arguments meanwhile.
    threads_per_worker : int, optional
        BLAS and OpenMP threads in each worker. By default the number of processors divided by
        `num_workers`, at least 1.
    env : mapping, sequence of mappings or callable, optional
        Environment variables on top of the caller's; see `ProcessPoolExecutor`.
    preload : iterable of str, optional
        Names of modules that are imported once, before workers are forked.
    retries : int, optional
        How often a call whose *worker died*, or was killed because the call took too long, is tried again.
    task_timeout : float, optional
        Seconds that a call may take; see `ProcessPoolExecutor`. `ndshare.options` gives a function its own.
    engine : distributed.Client, str or Executor, optional
        Calls run on the machines of a cluster; as of `ClusterContext`. Instead of `num_workers`.
    record : bool, optional
        Note when each call was submitted, begun and done, for `report`. Not on a cluster.

    Raises
    ------
    TypeError, ValueError
        For names that no variable can have, and options of the wrong kind.

    Notes
    -----
    Workers start on entering the ``with`` block and stop on leaving it. Calls that nobody has evaluated
    are finished first; if an exception leaves the block, those that have not begun are cancelled.

    Inside a registered function the names mean the shared values, wherever it is defined: a script, a
    notebook, an importable module, a closure. The names are in the globals of the function's module and of
    ``__main__`` for the time of the call only, so helpers in these modules find them as well. Ordinary
    variables of the same names are neither sent nor changed. Functions and classes among a closure's
    variables stay what they are.

    With an `engine` the arrays go to each machine once. Functions see them as they were at the first call
    since the last `evaluate`; what a call writes there arrives in the caller's before its future is done, and
    is not seen by the other calls of that evaluation. Calls whose node is lost run again elsewhere.

    One copy of each array, none if it is shared already: then the caller sees what functions write
    there. ``ws["D"]`` is the shared value. Workers that write the same element race.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> with ndshare.Workspace({"D": np.eye(3), "b": np.arange(3.0)}, num_workers=2) as ws:
    ...     @ws.register
    ...     def scaled(factor):
    ...         return float(factor * (D @ b).sum())
    ...     for factor in (1, 2, 3):
    ...         _ = scaled(factor)
    ...     ws.evaluate()
    [3.0, 6.0, 9.0]
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        num_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        snapshot: Literal["submit", "start"] = "submit",
        threads_per_worker: int | None = None,
        env: Environment = None,
        preload: Iterable[str] = (),
        retries: int = 0,
        task_timeout: float | None = None,
        engine: Any = None,
        record: bool = False,
    ) -> None:
        self._values = _checked_values(values)
        self._settings = checked_settings(
            "num_workers",
            num_workers,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
            snapshot=snapshot,
            threads_per_worker=threads_per_worker,
            env=env,
            preload=preload,
            retries=retries,
            task_timeout=task_timeout,
            record=record,
        )
        if record and engine is not None:
            raise ValueError("record=True: calls on a cluster are not recorded; its own dashboard shows them")
        if engine is not None:
            _check_for_cluster(num_workers, snapshot, env)
        self._engine = engine
        self._snapshot = snapshot
        self._shared: dict[str, Any] = {}
        self._staff: Staff | None = None
        self._was_entered = False
        self._recorder: Recorder | None = None
        self._queue: list[Handle] = []
        self._lock = threading.RLock()  # a callback may call while its thread is at another call

    @property
    def num_workers(self) -> int:
        """Number of worker processes; on a cluster those that it has now, inside the block."""
        if self._engine is None:
            return self._settings.max_workers
        return self._usable_staff("num_workers").num_workers

    # ------------------------------------------------------------------ with

    def __enter__(self) -> Self:
        if self._staff is not None:
            raise RuntimeError("this Workspace is entered already; leave it first, or make a second one")
        shared = _share_all(self._values)
        staff = self._hire(shared)
        self._finalizer = weakref.finalize(self, staff.abandon)
        self._finalizer.atexit = False
        self._shared, self._staff, self._was_entered = shared, staff, True
        return self

    def _hire(self, shared: dict[str, Any]) -> Staff:
        if self._engine is None:
            staff = PoolStaff(self._settings, shared, self._snapshot)
            self._recorder = staff.pool.recorder
            return staff
        from ndshare._workspace.on_cluster import ClusterStaff  # takes its time to import

        return ClusterStaff(self._engine, self._settings, shared)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        staff, self._staff = self._staff, None
        with self._lock:
            self._queue, self._shared = [], {}
        if staff is not None:
            self._finalizer.detach()
            staff.close(exc_type)

    def __getitem__(self, name: str) -> Any:
        self._usable_staff(f"ws[{name!r}]")
        return self._shared[name]

    def report(self) -> TaskReport:
        """Return what was done so far: a text or a table, `plot()`, `to_chrome_trace()`.

        Returns
        -------
        TaskReport
            Also after the ``with`` block, for the last time that it was entered.

        Raises
        ------
        ValueError
            If the workspace was made without ``record=True``, or was not entered.
        """
        if self._recorder is None:
            raise ValueError(
                "report needs a workspace that was entered and records: Workspace(…, record=True)"
            )
        return self._recorder.report(self._settings.max_workers)

    # ------------------------------------------------------------------ calls

    def register(self, function: Callable[..., Any]) -> Registered:
        """Make a function one of this workspace; as a decorator or by a call.

        Parameters
        ----------
        function : callable
            Anything that can be pickled, and lambdas, closures, functions of a notebook or a script. With
            `ndshare.options` around it, its calls have a time limit, tries or a priority of their own.

        Returns
        -------
        Registered
            Call it to have a worker call the function: it returns a handle at once.

        Raises
        ------
        TypeError
            If `function` cannot be called.
        """
        if isinstance(function, Registered):
            function = function.function
        check_callable("function", function)
        return Registered(self._enqueue, function)

    def _enqueue(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        staff = self._usable_staff(describe(function))
        handle = staff.handle(function, args, kwargs)
        with self._lock:
            staff.submit(handle)
            handle.index = len(self._queue)
            self._queue.append(handle)
        return handle

    def evaluate(
        self, progress: Progress = False, on_error: Literal["raise", "collect"] = "raise"
    ) -> list[Any]:
        """Wait for the calls since the last evaluation and return what they returned.

        Parameters
        ----------
        progress : bool or callable, optional
            True shows a bar (tqdm) of finished calls; a function is called with ``(done, total)``, in
            this thread.
        on_error : {"raise", "collect"}, optional
            What becomes of an exception: the first one in the order of the calls is raised, with the
            worker's traceback as its cause, or each stands in the list in the place of a result.

        Returns
        -------
        list
            Of results, in the order of the calls; empty if there was none.

        Raises
        ------
        Exception
            What the first failing call raised. The queue is empty then, too; the other calls go on, and
            their results are had from their handles.
        """
        staff = self._usable_staff("evaluate()")
        check_progress(progress)
        if not (isinstance(on_error, str) and on_error in {"raise", "collect"}):
            raise ValueError(f"on_error must be 'raise' or 'collect', got {on_error!r}")
        with self._lock:
            handles, self._queue = self._queue, []
            staff.begin_round()
        results: list[Any] = []
        failure: BaseException | None = None
        try:
            for handle in in_order(handles, progress):
                error = handle.failure()
                if error is not None and on_error == "raise":
                    failure = error
                    note = f"raised by call {handle.index} of {len(handles)} (counted from 0), {handle.name}"
                    add_note(failure, note)
                    if isinstance(failure, NameError):
                        add_note(failure, f"names of the Workspace: {', '.join(self._values)}")
                    break
                results.append(handle.result() if error is None else error)
        except KeyboardInterrupt:
            staff.give_up(handles)
            raise
        if failure is None:
            return results
        try:
            raise failure
        finally:  # the traceback refers to this frame: no cycle that keeps results
            del failure, error, handle, handles, results

    def _usable_staff(self, what: str) -> Staff:
        staff = self._staff
        if staff is None:
            when = "after its with block was left" if self._was_entered else "before it is entered"
            raise RuntimeError(
                f"{what} was refused: a Workspace has no workers {when}; "
                "use it inside 'with ndshare.Workspace(...) as ws:'"
            )
        staff.check(what)
        return staff

    def __reduce__(self) -> Any:
        raise TypeError("a Workspace cannot be sent to another process: its workers belong to this one")


def _check_for_cluster(num_workers: int | None, snapshot: str, env: Environment) -> None:
    """Refuse what has no meaning with an engine."""
    if num_workers is not None:
        raise ValueError(
            f"num_workers is {num_workers!r}, but with an engine it is the engine that has workers; leave it "
            "out"
        )
    if snapshot != "submit":
        raise ValueError(
            f"snapshot is {snapshot!r}, but with an engine arguments are read at the call; leave it out"
        )
    if env is not None and not isinstance(env, Mapping):
        raise TypeError(
            f"env is {env!r}; with an engine it must be one mapping, for all workers of all nodes"
        )


def _checked_values(values: object) -> dict[str, Any]:
    """Return the values of a workspace as a dict, or refuse them."""
    if not isinstance(values, Mapping):
        raise TypeError(f"values must be a mapping of names to arrays, got {values!r}")
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"names of values must be strings, got {name!r}")
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"values has the name {name!r}, but no variable can have it; rename it")
        if name.startswith("__") and name.endswith("__"):
            raise ValueError(f"values has the name {name!r}, but names like this belong to Python; rename it")
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(
                f"the value {name!r} is an array of Python objects (dtype {value.dtype}), which cannot be "
                "shared; convert it, or wrap it in a list to have it copied to each worker"
            )
    return dict(values)


def _share_all(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with their arrays in shared memory; says which one cannot be."""
    try:
        return dict(share(values))
    except CapacityError:
        raise
    except Exception:
        for name, value in values.items():
            try:
                share([value])
            except Exception as error:
                add_note(error, f"while the value {name!r} of a Workspace was put in shared memory")
                raise
        raise
