"""A worker as a process of `multiprocessing`: what programs ask there for, they find in a worker.

::

    caller   described() ── with SPAWN ──►  worker   be(description, …, run)
    caller   lend_tracker() ◄── TRACKER ──  worker   the first time that something is to be tracked

Guarantees
----------
- ``multiprocessing.current_process()`` has a name, ``_identity`` and ``daemon`` as in the standard executor;
  ``parent_process()`` is the caller, as long as it lives, whoever forked the worker.
- What patches the start of processes (coverage does) has its way with workers, too.
- Workers have no resource tracker of their own: what they attach or make lives as long as the caller wants.
- The key that connections are authenticated by comes with the caller's other settings
  (`ndshare._processes.surroundings`): by the socket, and by nothing that others could read.
"""

from __future__ import annotations

import ast
import contextvars
import functools
import os
import pickle
import select
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing import context, process, resource_tracker, spawn
from typing import Any

from ndshare._system import _wire

#: What `multiprocessing` itself says to a process that it starts; all else is from who has patched it.
_OWN_WORDS = {
    "authkey", "dir", "init_main_from_name", "init_main_from_path", "log_level", "log_to_stderr", "name",
    "orig_dir", "start_method", "sys_argv", "sys_path",
}  # fmt: skip
#: So many processes deep a script is imported: one that starts others outside of its guard comes to an end.
_DEPTH_MAX = 4
#: How long a worker waits for the caller's resource tracker, in milliseconds.
_TRACKER_MS = 10_000


def described() -> dict[str, Any]:
    """Describe the next worker of this process; simple enough for `marshal`."""
    me = process.current_process()
    number = next(process._process_counter)  # type: ignore[attr-defined]
    return {
        "name": f"NdshareWorker-{number}",
        "identity": (*me._identity, number),
        "parent": (me.name, os.getpid()),
        "start_method": context._default_context.get_start_method(allow_none=True),
        "more": _more(),
    }


def _more() -> bytes:
    """What others want to reach the processes that this one starts."""
    if spawn.get_preparation_data.__module__ == spawn.__name__:
        return b""
    try:
        said = spawn.get_preparation_data("")
        return pickle.dumps({name: value for name, value in said.items() if name not in _OWN_WORDS})
    except Exception:  # it is for measuring or watching, and no reason to start no worker
        return b""


class _Worker(process.BaseProcess):
    """The process that runs, from its first to its last moment as a worker."""

    def __init__(self, description: dict[str, Any], run: Callable[[], None]) -> None:
        super().__init__(name=description["name"], daemon=False)
        self._identity = description["identity"]
        self._parent_name, self._parent_pid = description["parent"]
        self._start_method = description["start_method"]
        self._run = run

    def run(self) -> None:
        """Do it."""
        try:
            self._run()
        finally:
            threading._shutdown = lambda: None  # type: ignore[attr-defined]  # no thread of a task's is waited for


def be(description: dict[str, Any], parent: int, run: Callable[[], None]) -> int:
    """Be the process that a caller has described; return the exit code.

    Parameters
    ----------
    description : dict
        As of `described`.
    parent : int
        Descriptor that becomes readable when the caller ends.
    run : callable
        What it does.
    """
    if description["more"]:
        pickle.loads(description["more"])
    code: int = _Worker(description, run)._bootstrap(parent_sentinel=parent)  # type: ignore[attr-defined]
    return code


def leave_script_alone() -> None:
    """Have processes that tasks start import the program's script only if it has a main guard.

    ``__main__.__file__`` is the script's here, too, and is all that `multiprocessing` goes by.
    """
    prepare = spawn.get_preparation_data
    if hasattr(prepare, "__wrapped__"):
        return

    @functools.wraps(prepare)
    def without_script(name: str) -> dict[str, Any]:
        said = prepare(name)
        path = said.get("init_main_from_path")
        deep = len(process.current_process()._identity) > _DEPTH_MAX
        if path is not None and not deep and has_main_guard(path):
            return said
        return {key: value for key, value in said.items() if not key.startswith("init_main_from_")}

    spawn.get_preparation_data = without_script


@functools.lru_cache(maxsize=8)
def has_main_guard(path: str) -> bool:
    """Tell whether a script can be imported: it has a main guard, and is no part of a package."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return False
    guarded = False
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.level:
            return False
        if isinstance(statement, ast.If):
            names = [node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)]
            guarded = guarded or "__name__" in names
    return guarded


# ---------------------------------------------------------------------- numbers

_own_number: int | None = None
_number: contextvars.ContextVar[int | None] = contextvars.ContextVar("ndshare worker", default=None)


def worker_id() -> int | None:
    """Return the number of the worker that this code runs in; None outside of workers.

    Page: docs/executor.md.

    Returns
    -------
    int or None
        From 0 to below the number of workers of the executor or context. Two workers that run at the same
        time have different ones; one that replaces another has its number. In the kernel of a map, in every
        context, it is the `worker_id` that the kernel is called with.

    Notes
    -----
    For what is shared out by number: a GPU, a port, the name of a log file. What tells all processes of a
    program apart, nested ones too, is ``multiprocessing.current_process().name``.

    Examples
    --------
    >>> import ndshare
    >>> with ndshare.ProcessPoolExecutor(1) as executor:
    ...     executor.submit(ndshare.worker_id).result()
    0
    """
    number = _number.get()
    return _own_number if number is None else number


def set_worker_id(number: int) -> None:
    """Have this process be the worker of that number."""
    global _own_number
    _own_number = number


class numbered:  # noqa: N801 - a context manager, without a generator for each share
    """Have what runs inside be at the worker of a map that has this number."""

    __slots__ = ("_before", "_given")

    def __init__(self, number: int) -> None:
        self._given = number

    def __enter__(self) -> None:
        self._before = _number.set(self._given)

    def __exit__(self, *_: object) -> None:
        _number.reset(self._before)


# ---------------------------------------------------------------------- the caller's resource tracker


class _CallersTracker(resource_tracker.ResourceTracker):
    """Asks the caller for its tracker the first time that there is something to track."""

    _ask: Callable[[], int | None]

    @property
    def _fd(self) -> int | None:
        if self.__dict__["_fd"] is None:
            self.__dict__["_fd"] = self._ask()
        fd: int | None = self.__dict__["_fd"]
        return fd

    @_fd.setter
    def _fd(self, fd: int | None) -> None:
        self.__dict__["_fd"] = fd


def track_with_caller(send: Callable[[int], None]) -> None:
    """Have what is tracked in this worker be tracked by the caller.

    Parameters
    ----------
    send : callable
        Sends a descriptor to the caller, who answers on it with `lend_tracker`.
    """
    pid = os.getpid()

    def ask() -> int | None:
        if os.getpid() != pid:  # forked by a task: it starts its own
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                send(theirs.fileno())
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            if not poll.poll(_TRACKER_MS):
                return None
            received = _wire.recv_message(ours.fileno(), bytearray(1), socket.MSG_DONTWAIT)
        return received[1][0] if received and received[1] else None

    def before_fork() -> None:
        if os.getpid() == pid and "multiprocessing.shared_memory" in sys.modules:
            resource_tracker.getfd()  # a child cannot ask

    tracker = resource_tracker._resource_tracker
    tracker.__class__ = _CallersTracker
    tracker._ask = ask  # type: ignore[attr-defined]
    os.register_at_fork(before=before_fork)


def lend_tracker(fd: int) -> None:
    """Answer a worker that asks for this process's resource tracker, and close the descriptor."""
    try:
        tracker = resource_tracker.getfd()
        if tracker is not None:
            _wire.send_message(fd, [b"."], (tracker,), socket.MSG_DONTWAIT)
    except Exception:  # none can be started here: the worker starts one
        pass
    finally:
        os.close(fd)
