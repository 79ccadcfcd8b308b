"""What tasks leave in a process is not met by a later executor, nor by a later map."""

from __future__ import annotations

import contextvars
import decimal
import faulthandler
import gc
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ndshare

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

_VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("tests.origin", default="usual")


def _alarm() -> None:
    def on_alarm(*_: object) -> None:
        raise TimeoutError("of another task")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(60)


def _timers() -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 60)
    signal.setitimer(signal.ITIMER_PROF, 60)
    faulthandler.dump_traceback_later(60)


def _handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGPIPE else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])


def _limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 10, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _streams() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = None  # type: ignore[assignment]
    sys.excepthook = print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _interpreter() -> None:
    sys.setrecursionlimit(3000)
    sys.setswitchinterval(0.1)
    sys.dont_write_bytecode = not sys.dont_write_bytecode
    sys.tracebacklimit = 3
    sys.argv[:] = ["nonsense"]
    gc.disable()
    gc.set_threshold(7)
    gc.callbacks.append(print)
    threading.excepthook = print
    threading.stack_size(1 << 20)
    socket.setdefaulttimeout(1)
    threading.settrace(print)  # type: ignore[arg-type]


def _process() -> None:
    os.umask(0o777)
    os.chdir("/")
    os.environ["NDSHARE_LEFT"] = "1"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tempfile.tempdir = "/nowhere"
    multiprocessing.set_start_method("spawn", force=True)


def _numbers() -> None:
    decimal.getcontext().prec = 3
    np.seterr(all="raise")
    np.set_printoptions(precision=1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    _VARIABLE.set("left")


def _warnings() -> None:
    warnings.simplefilter("error")
    warnings.showwarning = print  # type: ignore[assignment]
    logging.basicConfig(level=1, stream=sys.stdout)
    logging.disable(50)
    logging.addLevelName(25, "LEFT")


_MISDEEDS = [_alarm, _timers, _handlers, _limits, _streams, _interpreter, _process, _numbers, _warnings]


def _state() -> dict[str, Any]:
    os.umask(mask := os.umask(0))
    return {
        "pid": os.getpid(),
        "timers": [signal.getitimer(n) for n in range(3)],
        "handlers": {n: repr(signal.getsignal(n)) for n in sorted(signal.valid_signals() - {signal.SIGINT})},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "limits": [resource.getrlimit(n) for n in range(16)],
        "streams": (sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.excepthook is sys.__excepthook__),
        "fd 1": os.fstat(1).st_rdev,
        "interpreter": (
            sys.getrecursionlimit(), sys.getswitchinterval(), sys.dont_write_bytecode, sys.argv,
            getattr(sys, "tracebacklimit", None), gc.isenabled(), gc.get_threshold(),
            print in gc.callbacks, threading.stack_size(), socket.getdefaulttimeout(),
            threading.excepthook is threading.__excepthook__, threading.gettrace(),
        ),
        "process": (mask, os.getcwd(), os.environ.get("NDSHARE_LEFT"), os.sched_getaffinity(0), os.getpriority(0, 0)),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "temporary": tempfile.tempdir,
        "numbers": (decimal.getcontext().prec, np.geterr(), np.get_printoptions()["precision"], _VARIABLE.get()),
        "warnings": (warnings.filters[:1], warnings.showwarning is warnings._showwarning_orig),  # type: ignore[attr-defined]
        "logging": (
            [type(handler).__name__ for handler in logging.root.handlers], logging.root.level,
            logging.root.manager.disable, logging.getLevelName(25),
        ),
    }  # fmt: skip


def _draw() -> tuple[float, float]:
    return random.random(), float(np.random.random())  # noqa: NPY002


@pytest.mark.parametrize("misdeed", _MISDEEDS, ids=lambda misdeed: misdeed.__name__.strip("_"))
def test_next_executor_finds_the_worker_as_it_was(misdeed: Callable[[], None]) -> None:
    """The process is the same: what can be put back is put back."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        before = executor.submit(_state).result()
        executor.submit(misdeed).result()
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(_state).result() == before


@pytest.mark.parametrize("misdeed", _MISDEEDS, ids=lambda misdeed: misdeed.__name__.strip("_"))
def test_next_map_finds_the_worker_as_it_was(misdeed: Callable[[], None]) -> None:
    """A map's workers stay with its context: what a kernel leaves goes when the map is over."""
    context = ndshare.ProcessContext(1, start="pool")
    states = ndshare.Queue()

    def look(_worker_id: int, _index: int, _value: int) -> None:
        states.put(_state())

    def leave(_worker_id: int, _index: int, _value: int) -> None:
        misdeed()

    context.map(look, range(1))
    before = states.get(timeout=60)
    context.map(leave, range(1))
    context.map(look, range(1))
    assert states.get(timeout=60) == before
    states.shutdown()


def test_seeded_generators_are_seeded_anew() -> None:
    """A seed that a task has set does not make later executors draw the same numbers."""
    drawn = []
    for _ in range(2):
        with ndshare.ProcessPoolExecutor(1) as executor:
            executor.submit(_numbers).result()
        with ndshare.ProcessPoolExecutor(1) as executor:
            drawn.append(executor.submit(_draw).result())
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


def _session() -> int:
    os.setpgid(0, 0)
    return os.getpid()


def _root() -> int:
    os.chroot("/proc")
    return os.getpid()


def _timer() -> int:
    import ctypes

    timer = ctypes.c_void_p()
    assert ctypes.CDLL(None).timer_create(1, None, ctypes.byref(timer)) == 0
    return os.getpid()


@pytest.mark.parametrize(
    "misdeed", [_session, _root, _timer], ids=lambda misdeed: misdeed.__name__.strip("_")
)
def test_worker_that_cannot_be_put_back_is_replaced(misdeed: Callable[[], int]) -> None:
    """Before the next executor, and before the next map of its context; nobody's task is lost."""
    if misdeed is _root and os.getuid():
        pytest.skip("needs root")
    if misdeed is _timer and not os.path.exists("/proc/self/timers"):
        pytest.skip("this system does not list timers")
    with ndshare.ProcessPoolExecutor(1) as executor:
        pid = executor.submit(misdeed).result()
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(os.getpid).result() != pid
    context = ndshare.ProcessContext(1, start="pool")
    pids = context.alloc(3, int)

    def kernel(_worker_id: int, _index: int, item: int) -> None:
        pids[item] = misdeed() if item == 1 else os.getpid()

    for item in range(3):
        context.map(kernel, [item])
    assert pids[0] == pids[1] != pids[2]


def test_niceness_that_cannot_be_taken_back_costs_the_worker(run_script: RunScript) -> None:
    """An ordinary user may not become less nice again."""
    if os.getuid():
        pytest.skip("starts as root, and gives up the right to do so")
    done = run_script(
        """
import ctypes, os, ndshare
assert ctypes.CDLL(None).prctl(24, 23, 0, 0, 0) == 0  # programs that are started have no CAP_SYS_NICE
def nicer(): os.nice(5); return os.getpid(), os.nice(0)
def look(): return os.getpid(), os.nice(0)
with ndshare.ProcessPoolExecutor(1) as executor:
    first, nice = executor.submit(nicer).result()
    assert executor.submit(look).result() == (first, nice)
with ndshare.ProcessPoolExecutor(1) as executor:
    second, now = executor.submit(look).result()
    assert second != first and now == nice - 5
os.nice(3)
for _ in range(2):
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(look).result() == (second, nice - 2)
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def _keep_busy() -> int:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    _kept.append(open(os.devnull))  # noqa: SIM115
    return os.getpid()


_kept: list[Any] = []


def test_threads_files_and_caches_are_no_reason_to_replace_a_worker() -> None:
    """A warm worker stays warm."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        pid = executor.submit(_keep_busy).result()
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(os.getpid).result() == pid


def test_what_an_initializer_sets_stays_for_its_executor() -> None:
    """Tasks of one executor find what earlier ones have left, as in the standard library."""
    with ndshare.ProcessPoolExecutor(1, initializer=_interpreter) as executor:
        assert executor.submit(gc.isenabled).result() is False
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
        assert executor.submit(gc.isenabled).result() is False


@pytest.mark.parametrize("arm", ["_arm", "_watch"])
def test_alarm_of_a_task_hits_no_later_one(arm: str) -> None:
    """It would end a task of somebody else."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(globals()[arm], 0.3).result()
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(time.sleep, 0.6).result()


def _arm(seconds: float) -> None:
    def on_alarm(*_: object) -> None:
        raise TimeoutError("of another task")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _watch(seconds: float) -> None:
    threading.Timer(seconds, os._exit, (3,)).start()
