"""What surrounds a task: the caller's process-wide settings, and how a worker comes to have them.

::

    caller   CallerState.refresh() ──► Snapshot ── STATE ──►  worker   Surroundings.apply()

Snapshots are compared with the last one at each dispatch, so this has to cost microseconds. What a process
inherits when it is forked, and rarely changes later (the arguments of the program, umask, locale …), is
looked at when a pool begins and every `_CLOSELY_S`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import importlib.machinery
import itertools
import locale
import logging
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import process
from typing import Any, NamedTuple

import numpy as np

from ndshare._processes import family, records
from ndshare._processes.origin import Origin, seed_anew
from ndshare._processes.streams import Streams
from ndshare._system import _wire, set_inside_worker

#: Read by numerical libraries when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
#: What a process inherits is looked at again after this time.
_CLOSELY_S = 0.01

# ---------------------------------------------------------------------- the caller's side


class Snapshot(NamedTuple):
    """The settings at one time; equal versions, equal settings."""

    version: int
    seen: tuple[Any, ...]
    inherited: dict[str, Any]
    content: dict[str, Any]

    def message(self, **extra: Any) -> bytes:
        """Pickle it for a worker."""
        return pickle.dumps(self.content | self.inherited | extra, protocol=5)


_aliases: dict[str, str] = {}


def add_aliases(names: dict[str, str]) -> None:
    """Have the workers of this process import modules under other names, too.

    Parameters
    ----------
    names : dict of str to str
        What code in workers says, and the module that it gets.
    """
    _aliases.update(names)


class CallerState:
    """The caller's process-wide settings, with a version that changes when they do.

    Several threads may ask at once: a snapshot is published whole, and none is ever changed.
    """

    def __init__(self) -> None:
        self._versions = itertools.count(1)
        self._last: Snapshot | None = None
        self._closely = 0.0  # when to look closely again
        self.streams = Streams()

    def look_closely(self) -> None:
        """Have the next snapshot be of everything, as for a process that is forked now."""
        self._closely = 0.0

    def refresh(self) -> Snapshot:
        """Look whether anything changed, and return the snapshot of now."""
        here = _wire.here()
        environ = os.environ._data  # type: ignore[attr-defined]  # bytes: a copy of os.environ takes 30 µs
        self.streams.look()
        last = self._last
        if last is not None:
            seen = last.seen
            if (
                seen[0] == here
                and seen[1] == sys.path
                and seen[2] == environ
                and seen[3] == warnings.filters
                and seen[4] == bool(logging.root.handlers)
                and seen[5] == self.streams.files
                and seen[6] == len(_aliases)
                and records.is_marked()
            ):
                now = time.monotonic()
                if now < self._closely:
                    return last
                umask = _umask() if not self._closely else last.inherited["umask"]  # not free to look at
                self._closely = now + _CLOSELY_S
                if _inherited(umask) == last.inherited:
                    return last
        self._last = new = self._look(here, environ)
        return new

    def _look(self, here: bytes, environ: dict[bytes, bytes]) -> Snapshot:
        records.mark()  # before looking: who sets a level meanwhile removes it
        handled = bool(logging.root.handlers)
        files = self.streams.files
        seen = (here, list(sys.path), dict(environ), list(warnings.filters), handled, files, len(_aliases))
        cwd = working_directory()
        content = {
            "cwd": cwd,
            "path": absolute(seen[1], cwd),
            "environ": {os.fsdecode(name): os.fsdecode(value) for name, value in seen[2].items()},
            "aliases": dict(_aliases),
            "logging": records.settings(),
            "filters": [f for f in seen[3] if f[2].__module__ == "builtins" or _importable(f)],
        }
        return Snapshot(next(self._versions), seen, _inherited(_umask()), content)


def working_directory() -> str | None:
    """Return its path; None if somebody has removed it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def absolute(path: list[Any], cwd: str | None) -> list[str]:
    """Return ``sys.path`` for a process elsewhere; without what is relative to a directory that is gone."""
    texts = [entry for entry in path if isinstance(entry, str)]
    if cwd is None:
        return [entry for entry in texts if os.path.isabs(entry)]
    return [os.path.join(cwd, entry) for entry in texts]


def _inherited(umask: int | None) -> dict[str, Any]:
    """What a process has from the one that forks it."""
    return {
        "argv": [argument for argument in sys.argv if isinstance(argument, str)],
        "authkey": bytes(process.current_process().authkey),
        "levels": dict(logging._levelToName),
        "settings": tuple(get() for get, _ in _SETTINGS),
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": os.sched_getaffinity(os.getpid()),
        "locale": locale.setlocale(locale.LC_ALL),
    }


def _umask() -> int | None:
    """Return the umask; without changing it, as other threads may make files meanwhile."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line[6:], 8)
    return None


def _set_faulthandler(wanted: bool) -> None:
    if wanted:
        faulthandler.enable()
    else:
        faulthandler.disable()


def _timeout() -> float | None:
    found = sys.modules.get("socket")  # who has not loaded it has the usual
    return None if found is None else found.getdefaulttimeout()


def _field_size() -> int:
    found = sys.modules.get("csv")
    return 128 << 10 if found is None else found.field_size_limit()


class _Printing:
    """How NumPy prints arrays: in the main thread, as each thread may have its own."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        if not self._last or threading.current_thread() is threading.main_thread():
            functions = {"formatter": None, "override_repr": None}
            self._last = {name: functions.get(name, value) for name, value in np.get_printoptions().items()}
        return self._last

    def put(self, wanted: dict[str, Any]) -> None:
        np.set_printoptions(**wanted)


_printing = _Printing()


# Settings of the interpreter and of the process, and how to set them.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    (gc.get_threshold, lambda wanted: gc.set_threshold(*wanted)),
    (faulthandler.is_enabled, _set_faulthandler),
    (lambda: sys.dont_write_bytecode, lambda wanted: setattr(sys, "dont_write_bytecode", wanted)),
    (lambda: sys.pycache_prefix, lambda wanted: setattr(sys, "pycache_prefix", wanted)),
    (lambda: tuple(sys.warnoptions), lambda wanted: setattr(sys, "warnoptions", list(wanted))),
    (_timeout, lambda wanted: importlib.import_module("socket").setdefaulttimeout(wanted)),
    (_field_size, lambda wanted: importlib.import_module("csv").field_size_limit(wanted)),
    (_printing.get, _printing.put),
)


def _importable(entry: tuple[Any, ...]) -> bool:
    """Whether a worker can rebuild this warning filter: its category may be anybody's class."""
    if entry[2].__module__ == "__main__" or entry[2].__module__.startswith(("_pytest", "pytest")):
        return False
    try:
        pickle.dumps(entry)
    except Exception:
        return False
    return True


# ---------------------------------------------------------------------- the worker's side


class Surroundings:
    """Where the tasks of this worker run.

    Parameters
    ----------
    overlay : dict
        Variables of the environment that this worker has, whatever its caller has.
    threads : int
        What BLAS and OpenMP use now; 0 if that is not known.
    send : callable
        Sends a pickled log record to the caller.
    """

    def __init__(self, overlay: dict[str, str], threads: int, send: Callable[[bytes], bool]) -> None:
        self._overlay = overlay
        self._threads = threads
        self._forwarder = records.Forwarder(send)
        self._origin = Origin()
        self._state: dict[str, Any] | None = None
        self._seen: tuple[Any, ...] = ()

    def apply(self, state: dict[str, Any], *, fresh: bool) -> None:
        """Bring them to what the caller has said; `fresh` if tasks are another executor's from now on.

        Of the same executor what has changed at the caller: what its initializer has set stays.
        """
        before = self._state
        if fresh:
            before = None
            np.seterr(divide="warn", over="warn", under="ignore", invalid="warn")
            self._overlay = state["overlay"]
            family.set_worker_id(state["number"])
        self._bring(state, before)

    def _bring(self, state: dict[str, Any], before: dict[str, Any] | None) -> None:
        """Bring them to a state, or by what has changed since another one."""
        self._state = state
        self._inherit(state, before)
        _learn_aliases(state["aliases"])
        if before is None:
            sys.path[:] = state["path"]
        elif state["path"] != before["path"]:
            sys.path[:] = _with_own(state["path"], before["path"], sys.path)
        importlib.invalidate_caches()
        if state["cwd"] is not None and (before is None or state["cwd"] != before["cwd"]):
            with contextlib.suppress(OSError):
                os.chdir(state["cwd"])
        self._set_environment(state, before)
        if before is None or state["filters"] != before["filters"]:
            own = [] if before is None else [f for f in warnings.filters if f not in before["filters"]]
            warnings.filters[:] = own + state["filters"]  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        if before is None or state["logging"] != before["logging"]:
            self._forwarder.apply(state["logging"])
        self._seen = self._look(_wire.here())

    def _look(self, here: bytes) -> tuple[Any, ...]:
        """Return all that tasks may change of it, as it is now; but the umask is not free to look at."""
        return (
            here,
            list(sys.path),
            dict(os.environ._data),  # type: ignore[attr-defined]
            list(warnings.filters),
            self._origin.look(),
            list(sys.argv),
            process.current_process().authkey,
            dict(logging._levelToName),
            [get() for get, _ in _SETTINGS],
            os.sched_getaffinity(0),
            locale.setlocale(locale.LC_ALL),
            self._forwarder.levels(),
        )

    def _inherit(self, state: dict[str, Any], before: dict[str, Any] | None = None) -> None:
        def is_new(name: str) -> bool:
            return before is None or state[name] != before[name]

        if is_new("argv"):
            sys.argv[:] = state["argv"]
        if is_new("authkey"):
            process.current_process().authkey = state["authkey"]
        if is_new("levels"):
            records.name_levels(state["levels"])
        said = (None,) * len(_SETTINGS) if before is None else before["settings"]
        for (get, put), wanted, last in zip(_SETTINGS, state["settings"], said, strict=True):
            if (before is None or wanted != last) and get() != wanted:
                with contextlib.suppress(Exception):
                    put(wanted)
        if is_new("umask") and state["umask"] is not None:
            os.umask(state["umask"])
        if is_new("nice"):
            with contextlib.suppress(OSError):  # the caller may go up and down
                if os.getpriority(os.PRIO_PROCESS, 0) != state["nice"]:
                    os.setpriority(os.PRIO_PROCESS, 0, state["nice"])
            self._origin.nice = os.getpriority(os.PRIO_PROCESS, 0)
        if is_new("processors"):
            with contextlib.suppress(OSError):
                if os.sched_getaffinity(0) != state["processors"]:
                    os.sched_setaffinity(0, state["processors"])
        if is_new("locale"):
            with contextlib.suppress(locale.Error):
                if locale.setlocale(locale.LC_ALL) != state["locale"]:
                    locale.setlocale(locale.LC_ALL, state["locale"])

    def rest(self) -> bool:
        """Put back what tasks have changed in this process; return whether all of it could be."""
        self._forwarder.apply(None)
        seed_anew()
        return self._origin.restore()

    def renew(self, here: bytes) -> bool:
        """Put back what tasks have changed, and the caller's settings with it, for its next tasks.

        `here` is what `_wire.here` tells now.
        """
        if self._state is not None and self._look(here) == self._seen:  # after most tasks
            if (umask := self._state["umask"]) is not None:
                os.umask(umask)
            return self._origin.settle()
        self._forwarder.apply(None)
        if not self._origin.restore():
            return False
        if self._state is not None:
            self._bring(self._state, None)
        return True

    def _wanted_environment(self, state: dict[str, Any]) -> dict[str, str]:
        wanted: dict[str, str] = state["environ"] | self._overlay
        for name in THREAD_VARIABLES:
            if state["threads_asked"] or name not in wanted:
                wanted[name] = str(state["threads"])
        return wanted

    def _set_environment(self, state: dict[str, Any], before: dict[str, Any] | None) -> None:
        wanted, threads = self._wanted_environment(state), state["threads"]
        last = os.environ if before is None else self._wanted_environment(before)
        zone = os.environ.get("TZ")
        for name in last.keys() - wanted.keys():
            os.environ.pop(name, None)
        for name, value in wanted.items():
            if last.get(name) != value:
                os.environ[name] = value
        if os.environ.get("TZ") != zone:
            time.tzset()
        set_inside_worker(threads)
        if threads != self._threads:
            from ndshare._system import blas_controller, limit_child  # takes its time, for threadpoolctl

            limit_child(blas_controller(), {"blas": threads, "openmp": threads})
            self._threads = threads


def _with_own(wanted: list[str], before: list[str], now: list[str]) -> list[str]:
    """Return a new ``sys.path`` with what has been added here: in front, or at the end."""
    known = {*wanted, *before}
    first = next((number for number, entry in enumerate(now) if entry in before), len(now))
    front, rest = now[:first], now[first:]
    return [*front, *wanted, *(entry for entry in rest if entry not in known)]


class _Aliases:
    """Finds modules under other names, before anything else does; imports them when they are asked for."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """See `importlib.abc.MetaPathFinder`."""
        return importlib.machinery.ModuleSpec(name, self) if name in self.names else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        """See `importlib.abc.Loader`; the module keeps the spec under which it was made."""
        module = importlib.import_module(self.names[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """See `importlib.abc.Loader`; it was executed under its own name."""
        module.__spec__ = module.__spec__.loader_state


_finder = _Aliases()


def _learn_aliases(names: dict[str, str]) -> None:
    if names == _finder.names:
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name in names.keys() - _finder.names.keys():
        sys.modules.pop(name, None)  # of an earlier task: what it has imported stays as it is
    _finder.names = names
