"""The threads of this process that a fork would miss, and whose they are likely to be.

A fork copies the memory of such threads and not the threads: a library that waits for its own in the child
waits for ever. Who a thread belongs to is read off its stack while it sleeps: the first library that an
address on it lies in, apart from those of the system.

Threads of Python harm a fork if they hold a lock at that moment. Those do not that wait in a known place for
something to do: their whole stack is code of the standard library, of ndshare, or of what runs beside a
notebook and a progress bar.

Guarantees
----------
- A process without such threads is looked at in 10 µs.
- `fork_hazards` names whom a fork would harm, for every room that forks: those threads of Python that are not
  ndshare's own and do not wait in a known place, and those of libraries.
- Not harmful are those that cope with a fork (OpenBLAS, the OpenMP of Intel and LLVM, blosc, jemalloc), those
  of ZeroMQ, which a child has no use for, and that of `faulthandler`.

Not guaranteed
--------------
- The name of the library is a likely one: a thread may have called from one into another.
"""

from __future__ import annotations

import contextvars
import ctypes
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

#: The name of ndshare's own thread, which holds no lock when another one forks.
THREAD_NAME = "ndshare-io"
_TASKS = "/proc/self/task"
_STACK_BYTES = 16 << 10
#: Threads of OpenBLAS spin for a while after their work: that long they are waited for.
_PATIENCE_S = 0.005
_POLL_S = 0.0005

_SYSTEM = ("libc.", "libc-", "ld-", "ld.", "libpthread", "libstdc++", "libgcc_s", "libm.", "[")
_PYTHON = ("libpython", "python")
#: Parts of names of libraries, and beginnings of names of threads.
_SAFE_LIBRARIES = ("openblas", "libiomp5", "libomp.", "libomp-", "blosc")
_SAFE_THREADS = ("jemalloc_bg_thd", "ZMQbg")
_OPENMP = "libgomp"
_NUMBA = "numba.np.ufunc.omppool"

#: So long a thread whose code is known is waited for until it waits for something to do.
_PARKING_S = 0.1
#: Whose threads hold no locks while they wait: packages, and modules of the standard library.
_KNOWN = frozenset({
    "threading", "queue", "selectors", "asyncio", "concurrent", "multiprocessing", "socketserver", "logging",
    "contextlib", "contextvars", "runpy",
    "ndshare", "tqdm", "zmq", "tornado", "ipykernel", "IPython", "decorator", "traitlets", "jupyter_client",
    "distributed", "debugpy", "pydevd", "_pydevd_bundle",
})  # fmt: skip
#: Where they wait: functions by their modules.
_WAITS = {
    "threading": ("wait", "_wait_for_tstate_lock", "join"),
    "queue": ("get",),
    "selectors": ("select",),
    "concurrent.futures.thread": ("_worker",),
    "multiprocessing.connection": ("_recv", "accept"),
    "multiprocessing.pool": ("worker", "_handle_tasks"),
    "multiprocessing.popen_fork": ("poll",),
    "socketserver": ("serve_forever",),
    "tqdm._monitor": ("run",),
    "zmq.sugar": ("device", "proxy"),
    "zmq.sugar.poll": ("poll",),
    "zmq.sugar.socket": ("recv", "recv_multipart", "poll"),
    "zmq.utils.garbage": ("run",),
    "ipykernel.heartbeat": ("run",),
    "ipykernel.iostream": ("_watch_pipe_fd",),
    "ipykernel.parentpoller": ("run",),
    "distributed.profile": ("_watch",),
    "distributed.threadpoolexecutor": ("_worker",),
    "_pydevd_bundle.pydevd_comm": ("_on_run",),
    "_pydevd_bundle.pydevd_timeout": ("_on_run",),
}
#: System calls in which a thread sleeps for a time.
_SLEEPS = {"x86_64": ("35", "230"), "aarch64": ("101", "115")}


class Native(NamedTuple):
    """What there is of threads that are not Python's."""

    #: Whom a fork would harm, each once.
    harmful: tuple[str, ...]
    #: Whether GNU's OpenMP has threads: in a child it may use one only.
    openmp: bool


_NONE = Native((), openmp=False)
_found: dict[tuple[str, str], str | None] = {}  # owner by thread and its start
_libraries: tuple[int, Any, Any, list[str]] = (0, None, None, [])
_controller: tuple[int, Any] | None = None


def own_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Return a daemon thread that serves all of the process: it has nothing of its maker's context.

    From Python 3.14 on a thread may begin with a copy of that (``-X thread_inherit_context``, the default
    without the GIL), and so with the warning filters and the memory handler of NumPy of whoever came first.
    """
    if sys.version_info >= (3, 14):
        return threading.Thread(target=target, name=name, daemon=True, context=contextvars.Context())
    return threading.Thread(target=target, name=name, daemon=True)


def fork_hazards(*, native_only: bool = False, parked: bool = True) -> list[str]:
    """Return whose threads a forked child would lack; none of them is ndshare's own, or the calling one.

    Parameters
    ----------
    native_only : bool, optional
        Leave threads of Python out: the user answers for them.
    parked : bool, optional
        Whether those of Python count that wait in a known place, where they hold no lock.
    """
    found = [] if native_only else python_threads(parked=parked)
    return found or list(native_threads().harmful)


def blas_controller() -> Any:
    """Return what sets the threads of the BLAS and OpenMP libraries of this process.

    To look for them takes up to 15 ms, so children are not to do it, nor every map: libraries come with
    modules.
    """
    global _controller
    if _controller is None or _controller[0] != len(sys.modules):
        import threadpoolctl

        _controller = len(sys.modules), threadpoolctl.ThreadpoolController()
    return _controller[1]


def limit_child(controller: Any, limits: Mapping[str, int]) -> None:
    """Limit the threads of the libraries of a child that has just been forked.

    Parameters
    ----------
    controller
        From `blas_controller`, asked before the fork.
    limits : mapping of str to int
        Threads for ``"blas"`` and ``"openmp"``.
    """
    for library in controller.lib_controllers:
        if (count := limits.get(library.user_api)) is not None and not _set_quietly(library, count):
            library.set_num_threads(count)


def _set_quietly(library: Any, count: int) -> bool:
    """Set the number that OpenBLAS is to use, without the threads that its own function would start first.

    After a fork it has none. Told to use one thread it starts as many as there are processors, which spin for
    some 20 ms each. The first call for more than one starts them in any case.
    """
    if library.internal_api != "openblas":
        return False
    try:
        started, most, used = (
            ctypes.c_int.in_dll(library.dynlib, f"blas_{name}")
            for name in ("server_avail", "num_threads", "cpu_number")
        )
    except (AttributeError, ValueError):  # not told by this one
        return False
    if started.value or not 1 <= count <= most.value:
        return False
    used.value = count
    return True


def _blas_threads() -> int:
    """Return how many threads OpenBLAS may have besides the callers'; it ends them before a fork."""
    return sum(
        library["num_threads"] - 1
        for library in blas_controller().info()
        if library["internal_api"] == "openblas" and library.get("threading_layer") == "pthreads"
    )


def native_threads() -> Native:
    """Look at the threads of this process that Python did not start.

    Of those that are busy and have no name of their own, as many as OpenBLAS may have are taken for its.
    """
    python = {str(thread.native_id) for thread in threading.enumerate()}
    others = [task for task in os.listdir(_TASKS) if task not in python]
    if not others:
        return _NONE
    owners: list[str | None] = []
    deadline = time.monotonic() + _PATIENCE_S
    while others:
        busy = [task for task in others if not _classify(task, owners)]
        if not busy or time.monotonic() > deadline:
            others = busy
            break
        others = busy
        time.sleep(_POLL_S)
    blas_threads = _blas_threads() if others else 0
    blas_threads -= sum(1 for owner in owners if owner is not None and "openblas" in owner)
    own_name = _read(str(os.getpid()), "comm")
    for task in others:
        name = _read(task, "comm")
        if name == own_name and blas_threads > 0:
            blas_threads -= 1
        elif name == own_name and (openmp := _openmp_library()) is not None:
            owners.append(openmp)
        elif name is not None and not name.startswith(_SAFE_THREADS):
            owners.append(f"a thread named {name!r}")
    names = [owner for owner in owners if owner is not None]
    harmful = [
        name for name in names if _OPENMP not in name and not any(map(name.__contains__, _SAFE_LIBRARIES))
    ]
    of_gnu = [name for name in names if _OPENMP in name]
    if _NUMBA in sys.modules and any(" of " not in name for name in of_gnu):
        harmful.append("numba, by the OpenMP of GNU")  # it ends a child that uses it
    return Native(tuple(dict.fromkeys(harmful)), openmp=bool(of_gnu))


def python_threads(*, parked: bool = True) -> list[str]:
    """Return the other threads that run Python code, known to `threading` or not, except ndshare's own.

    Parameters
    ----------
    parked : bool, optional
        Whether those count that wait for something to do, in a known place: they hold no lock. One that is
        just about to, such as one that has delivered what was printed, is given the time.
    """
    deadline = time.monotonic() + _PARKING_S
    while True:
        threads = {thread.ident: thread for thread in threading.enumerate()}
        own = (ident for ident, thread in threads.items() if thread.name == THREAD_NAME)
        left_out = {threading.get_ident(), *own}
        frames = {ident: frame for ident, frame in sys._current_frames().items() if ident not in left_out}
        working = [
            ident
            for ident, frame in frames.items()
            if parked or not (_is_known(frame) and _waits(frame, threads.get(ident)))
        ]
        soon = all(map(_is_known, frames.values()))
        del frames
        if parked or not working or not soon or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return [
        f"thread {threads[ident].name!r}" if ident in threads else "a thread that `threading` does not know"
        for ident in working
    ]


def _is_known(frame: types.FrameType | None) -> bool:
    """Whether all of a stack is code of the standard library or of what runs beside a notebook."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _KNOWN:
            return False
        frame = frame.f_back
    return True


def _waits(frame: types.FrameType, thread: threading.Thread | None) -> bool:
    module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    if (module, function) == ("threading", "run") and thread is not None:  # in a function of C
        call = (_read(str(thread.native_id), "syscall") or "running").split()[0]
        return call in _SLEEPS.get(os.uname().machine, ())
    return function in _WAITS.get(module, ())


def _classify(task: str, owners: list[str | None]) -> bool:
    """Add the owner of a thread, None if it harms nobody; False if that cannot be told while it is busy."""
    name, stat = _read(task, "comm"), _read(task, "stat")
    if name is None or stat is None:  # it has ended
        return True
    if name.startswith(_SAFE_THREADS):
        return True
    key = task, stat.rpartition(")")[2].split()[19]  # when it began
    if key not in _found:
        state = (_read(task, "syscall") or "running").split()
        if len(state) < 3:
            return False
        if len(_found) > 1000:
            _found.clear()
        _found[key] = _owner(int(state[-2], 16), name)
    owners.append(_found[key])
    return True


def _read(task: str, file: str) -> str | None:
    try:
        with open(f"{_TASKS}/{task}/{file}", encoding="utf-8", errors="replace") as text:
            return text.read().rstrip("\n")
    except OSError:
        return None


def _owner(stack: int, name: str) -> str | None:
    """Return whose thread it is that has this stack, or None for one of Python itself."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            content = os.pread(memory.fileno(), _STACK_BYTES, stack)
    except OSError:
        return f"a thread named {name!r}"
    words = np.frombuffer(content[: len(content) // 8 * 8], np.uint64)
    # The C library keeps what it knows of a thread above its stack; that begins with its own address, twice
    # (x86-64). Beyond is memory of anybody.
    own = words == np.uint64(stack) + 8 * np.arange(len(words), dtype=np.uint64)
    ends_at = np.flatnonzero(own[:-2] & (words[2:] == words[:-2]))
    tcb = stack + 8 * int(ends_at[0]) if len(ends_at) else 0
    words = words[: ends_at[0]] if len(ends_at) else words
    starts, ends, paths = _executable()
    at = np.searchsorted(starts, words, side="right") - 1
    inside = (at >= 0) & (words < ends[np.maximum(at, 0)])
    seen = list(dict.fromkeys(paths[number] for number in at[inside].tolist()))
    # Code of Python, which may call any library; or faulthandler's watchdog. Unless the thread has a name and
    # is none that Python knows: then that was left on its stack by one of Python that had the stack before.
    is_pythons = not tcb or tcb in sys._current_frames() or name == _read(str(os.getpid()), "comm")
    if is_pythons and any(os.path.basename(path).startswith(_PYTHON) for path in seen):
        return None
    for path in seen:
        library = os.path.basename(path)
        if library.startswith(_PYTHON):
            continue
        if not library.startswith(_SYSTEM):
            package = _package(path)
            return f"{library} of {package}" if package else library
    return f"a thread named {name!r}"


def _package(path: str) -> str:
    """Return the installed package that a library lies in, or nothing."""
    for folder in ("/site-packages/", "/dist-packages/"):
        if folder in path:
            return path.partition(folder)[2].partition("/")[0].removesuffix(".libs")
    return ""


def _openmp_library() -> str | None:
    return next((name for path in _executable()[2] if _OPENMP in (name := os.path.basename(path))), None)


def _executable() -> tuple[Any, Any, list[str]]:
    """Return starts, ends and paths of what may be executed in this process, in order."""
    global _libraries
    if _libraries[0] != len(sys.modules):
        found = []
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                fields = line.split(None, 5)
                if "x" in fields[1] and len(fields) == 6:
                    start, _, end = fields[0].partition("-")
                    found.append((int(start, 16), int(end, 16), fields[5].strip()))
        starts, ends, paths = zip(*found, strict=True)
        _libraries = len(sys.modules), np.array(starts, np.uint64), np.array(ends, np.uint64), list(paths)
    return _libraries[1:]
