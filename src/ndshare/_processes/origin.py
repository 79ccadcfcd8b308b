"""What a worker is like before its first task, and the way back to it.

A warm worker goes from one pool to the next, and from one map to the next. What tasks left in its process
must not be found there: an alarm would hit somebody else's task. What can be put back is put back; if
something cannot, the worker is not used again. Threads, files, imported modules and what libraries keep in
them stay: that is what a warm worker is for.

What the caller's settings decide (`ndshare._processes.surroundings`) is not looked at here.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes an enumeration of each answer
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import context
from typing import Any, NamedTuple

import numpy as np

from ndshare._system import _wire

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = range(16)  # as many as Linux has
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_USERS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
)  # faulthandler may be asked for these
_SEED_BYTES = 16
_HOOKS = ("stdin", "displayhook", "excepthook", "unraisablehook", "breakpointhook")


class Origin:
    """The process as it was when this was made."""

    def __init__(self) -> None:
        self.nice = os.getpriority(os.PRIO_PROCESS, 0)  # or what the caller has had since
        self._timers = -1
        with contextlib.suppress(OSError):  # not every system lists them
            self._timers = os.open("/proc/self/timers", os.O_RDONLY | os.O_CLOEXEC)
        self._things = [(get, put, get()) for get, put in _THINGS]
        self._facts = _facts()
        self._standing = _wire.standing()

    def look(self) -> list[Any]:
        """Return what tasks may change within Python, as it is now."""
        return [get() for get, _, _ in self._things]

    def restore(self) -> bool:
        """Put back what tasks have changed; return whether all of it could be."""
        try:
            for get, put, before in self._things:
                if get() != before:
                    put(before)
        except Exception:  # somebody's object
            return False
        return self.settle()

    def settle(self) -> bool:
        """Put back what the system knows of the process, end what goes on; return whether it could be."""
        try:
            if _wire.standing() != self._standing:
                self._restore_standing()
            _end_what_goes_on()
            return self._timers < 0 or not os.pread(self._timers, 1, 0)
        except Exception:  # not allowed, most likely
            return False

    def _restore_standing(self) -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for limit, values in zip(_LIMITS, self._facts.limits, strict=True):
            if resource.getrlimit(limit) != values:
                resource.setrlimit(limit, values)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._facts.mask)
        if os.getpriority(os.PRIO_PROCESS, 0) != self.nice:
            os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        if _facts() != self._facts:
            raise OSError("what a process cannot take back")
        self._standing = _wire.standing()  # the caller may have become nicer, too


class _Facts(NamedTuple):
    """What `_wire.standing` tells of as one; the rest of it is nothing that could be taken back."""

    limits: list[tuple[int, int]]
    mask: set[int]
    rest: tuple[Any, ...]


def _facts() -> _Facts:
    top = os.stat("/")
    ids = (*os.getresuid(), *os.getresgid(), os.getpgrp(), os.getsid(0))
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    return _Facts(
        [resource.getrlimit(limit) for limit in _LIMITS],
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        (ids, scheduling, top.st_dev, top.st_ino),
    )


def seed_anew() -> None:
    """Have other random numbers drawn than would be after the last tasks, who may have set a seed."""
    if (python := sys.modules.get("random")) is not None:
        python.seed(int.from_bytes(os.urandom(_SEED_BYTES)))
    if (numpy := sys.modules.get("numpy.random")) is not None:
        numpy.seed(np.frombuffer(os.urandom(_SEED_BYTES), np.uint32))


def _end_what_goes_on() -> None:
    """End what goes on by itself, and forget what is kept for it."""
    for thread in threading.enumerate():
        if type(thread) is threading.Timer:
            thread.cancel()
    signal.set_wakeup_fd(-1)
    faulthandler.cancel_dump_traceback_later()
    for number in _USERS:
        faulthandler.unregister(number)
    for name, variable in (
        ("tempfile", "tempdir"),
        ("asyncio.events", "_event_loop_policy"),  # with the loop that it gives out, which may be closed
    ):
        if hasattr(module := sys.modules.get(name), variable):
            setattr(module, variable, None)
    if (tracing := sys.modules.get("tracemalloc")) is not None and not sys._xoptions.get("tracemalloc"):
        tracing.stop()
    getattr(warnings, "onceregistry", {}).clear()


def _handlers() -> list[Any]:
    return [_signal.getsignal(number) for number in _SIGNALS]


def _set_handlers(before: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, before, strict=True):
        if _signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _hooks() -> tuple[Any, ...]:
    return (
        *(getattr(sys, name) for name in _HOOKS),
        threading.excepthook,
        getattr(sys, "tracebacklimit", None),
    )


def _set_hooks(before: tuple[Any, ...]) -> None:
    for name, value in zip(_HOOKS, before, strict=False):
        setattr(sys, name, value)
    *_, threading.excepthook, limit = before
    if limit is None:
        with contextlib.suppress(AttributeError):
            del sys.tracebacklimit
    else:
        sys.tracebacklimit = limit


def _traces() -> tuple[Any, ...]:
    return sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()


def _set_traces(before: tuple[Any, ...]) -> None:
    sys.settrace(before[0])
    sys.setprofile(before[1])
    threading.settrace(before[2])
    threading.setprofile(before[3])


def _collecting() -> tuple[bool, int, list[Any]]:
    return gc.isenabled(), gc.get_debug(), list(gc.callbacks)


def _set_collecting(before: tuple[bool, int, list[Any]]) -> None:
    (gc.enable if before[0] else gc.disable)()
    gc.set_debug(before[1])
    gc.callbacks[:] = before[2]


def _defaults() -> tuple[Any, ...]:
    opened = sys.modules.get("_socket")
    timeout = None if opened is None else opened.getdefaulttimeout()
    return timeout, threading.stack_size(), vars(context._default_context)["_actual_context"]


def _set_defaults(before: tuple[Any, ...]) -> None:
    if (opened := sys.modules.get("_socket")) is not None:
        opened.setdefaulttimeout(before[0])
    threading.stack_size(before[1])
    vars(context._default_context)["_actual_context"] = before[2]  # `set_start_method` may be called once


def _shown() -> tuple[Any, ...]:
    return warnings.showwarning, warnings.formatwarning


def _set_shown(before: tuple[Any, ...]) -> None:
    logging.captureWarnings(False)
    warnings.showwarning, warnings.formatwarning = before


def _logged() -> tuple[Any, ...]:
    root = logging.root
    return list(root.handlers), root.level, list(root.filters), root.disabled, root.manager.disable


def _set_logged(before: tuple[Any, ...]) -> None:
    """Put the root logger back; the caller's levels come with its settings."""
    root = logging.root
    root.handlers[:], level, root.filters[:], root.disabled, disabled = before
    root.setLevel(level)
    logging.disable(disabled)


def _set_printing(before: dict[str, Any]) -> None:
    np.set_printoptions(**before)


_THINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (_handlers, _set_handlers),
    (_hooks, _set_hooks),
    (_traces, _set_traces),
    (_collecting, _set_collecting),
    (_defaults, _set_defaults),
    (_shown, _set_shown),
    (_logged, _set_logged),
    (np.get_printoptions, _set_printing),
)
