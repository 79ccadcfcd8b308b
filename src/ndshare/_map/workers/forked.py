"""Workers of a map that are forked from the caller for this one map: nothing is pickled but their reports.

::

    caller ──fork──► child: has everything the caller has, runs shares
       ▲               │
       └── report ─────┘   one message; the end of the socket without one is a death

Guarantees
----------
- Children are killed with the thread that forked them, and when the map is given up.
- They draw other random numbers than the caller and each other, and have their part of the processors.

Not guaranteed: a fork copies locks that other threads hold, and not these threads. `fork_hazards` of the
system says whose there are; ndshare's own thread holds no lock at that moment.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker, util
from types import MappingProxyType
from typing import Any

from ndshare._map.job import Job
from ndshare._map.runner import run_watched
from ndshare._map.watch import captured
from ndshare._map.watch.captured import Traffic
from ndshare._map.watch.differences import Forker
from ndshare._map.workers.base import Lost, Outcome, Ranges
from ndshare._pickling import variables
from ndshare._pool import describe
from ndshare._processes import be, described
from ndshare._system import _wire, blas_controller, limit_child, native_threads, set_inside_worker
from ndshare._transport import INLINE_MAX, pack, pack_failure, unpack
from ndshare.errors import TransportError, WorkerDiedError, code_or_signal

_REPORT, _FAILURE = b"\0", b"\1"
_DELIVERY_S = 2.0  # for messages in queues, once a worker is done
_BUFFER_BYTES = INLINE_MAX + 4096


@contextmanager
def _own_memory() -> Iterator[int | None]:
    """Open the memory of this process for its children; None if it is not dumpable, when that is root's."""
    fd = None
    with suppress(OSError):
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


class Forked:
    """Children of this process.

    Parameters
    ----------
    job : Job
        The map.
    threads : int
        BLAS and OpenMP threads of each.
    """

    start_method = "fork"
    rolls_back = True
    captured: Mapping[str, Traffic] = MappingProxyType({})  # nothing is sent

    def __init__(self, job: Job, threads: int) -> None:
        self._libraries = blas_controller()
        # A team of GNU's OpenMP is not there in a child, which would wait for it.
        openmp = 1 if native_threads().openmp else threads
        self._limits = {"blas": threads, "openmp": openmp}
        self._job = job
        self._threads = threads
        self._children: dict[int, tuple[int, socket.socket]] = {}  # descriptor -> (process, socket)
        self._buffer = bytearray(_BUFFER_BYTES)

    @property
    def running(self) -> int:
        """See `MapWorkers`."""
        return len(self._children)

    def start(self, count: int, ranges: Ranges = ()) -> None:
        """See `MapWorkers`."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()  # else every child writes it again
        for _ in range(count):
            _wire.shield()
            try:
                self._fork(ranges)
            finally:
                _wire.unshield()

    def _fork(self, ranges: Ranges) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _own_memory() as memory:
            description = described()
            if "multiprocessing.shared_memory" in sys.modules:  # what a child attaches is not to end with it
                resource_tracker.ensure_running()
            # Newer Pythons take the tracker from a child, unless who forks it says that it shall keep it.
            intent = getattr(resource_tracker, "_fork_intent", types.SimpleNamespace())
            intent.preserve_fd = True
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # see fork_hazards
                    pid = os.fork()
            finally:
                intent.preserve_fd = False
            if pid == 0:
                self._live(theirs, description, ranges, memory)
        self._children[ours.fileno()] = pid, ours

    def _live(
        self, link: socket.socket, description: dict[str, Any], ranges: Ranges, memory: int | None
    ) -> None:
        """Be the child; never returns."""
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
            _wire.unshield()
            _wire.die_with_parent(signal.SIGKILL)
            caller = os.pidfd_open(os.getppid())
            code = be(description, caller, functools.partial(self._work, link, ranges, memory))
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def _work(self, link: socket.socket, ranges: Ranges, memory: int | None) -> None:
        for _, other in self._children.values():
            other.close()
        os.register_at_fork(after_in_child=link.close)  # its end is this process's alone to show
        if (random := sys.modules.get("numpy.random")) is not None:
            random.seed()
        set_inside_worker(self._threads)
        limit_child(self._libraries, self._limits)
        try:
            kernel = self._job.kernel
            used = {**dict(variables(kernel)), **captured.globals_of(kernel)}
            report = run_watched(self._job, ranges, used, None if memory is None else Forker(memory))
            _deliver_messages()
            _deliver_of_multiprocessing()
            parcel, kind = pack(report).settle(), _REPORT
        except BaseException as error:
            parcel, kind = pack_failure(error), _FAILURE
            _undelivered(0.0)  # the end of this process would wait for it
        fds = parcel.descriptors()
        _wire.send_message(link.fileno(), [kind, parcel.data], fds, 0)

    # ------------------------------------------------------------------ waiting

    def wait(self, seconds: float | None) -> list[Outcome]:
        """See `MapWorkers`."""
        poll = select.poll()
        for fd in self._children:
            poll.register(fd, select.POLLIN)
        outcomes = []
        for fd, _ in poll.poll(None if seconds is None else max(0, int(seconds * 1000))):
            _wire.shield()
            try:
                outcomes.append(self._hear(fd))
            finally:
                _wire.unshield()
        return outcomes

    def _hear(self, fd: int) -> Outcome:
        received = None
        with suppress(OSError):
            received = _wire.recv_message(fd, self._buffer, 0)
        pid, link = self._children.pop(fd)
        link.close()
        code, peak = None, 0
        with suppress(ChildProcessError):  # SIGCHLD is ignored: nobody knows
            _, status, usage = os.wait4(pid, 0)
            code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if received is None or not received[0]:
            return Lost(pid, WorkerDiedError(describe(self._job.kernel), pid, *code_or_signal(code), peak))
        size, fds = received
        content = unpack(bytes(self._buffer[1:size]), fds)
        if self._buffer[:1] == _REPORT:
            outcome: Outcome = content
            return outcome
        return Lost(0, content[0])

    def kill(self, pid: int) -> None:
        """See `MapWorkers`."""
        if any(pid == child for child, _ in self._children.values()):
            with suppress(ProcessLookupError):  # SIGCHLD is ignored: it has just ended
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own

    def close(self) -> None:
        """See `MapWorkers`."""
        _wire.shield()
        try:
            for pid, _ in self._children.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid, link in self._children.values():
                link.close()
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            self._children.clear()
        finally:
            _wire.unshield()


def _undelivered(seconds: float) -> int:
    """Let what the kernel put into queues get there, for so long; return how many messages are given up."""
    if "ndshare._queue" not in sys.modules:  # nothing was put
        return 0
    from ndshare._queue import finish_within

    return finish_within(seconds)


def _deliver_messages() -> None:
    """Let what the kernel put into queues get there: this process ends with the map."""
    if left := _undelivered(_DELIVERY_S):
        raise TransportError(
            "what a kernel put into a queue could not be delivered",
            f"{left} messages still waited for room in a worker of this map, which ends with it",
            "take messages out while the map runs, in a thread or another process, or put fewer",
        )


def _deliver_of_multiprocessing() -> None:
    """Let what the kernel put into queues of multiprocessing get there: a thread of each sends it.

    The end of the process would wait for that without end, and the caller for the process.
    """
    thread = threading.Thread(target=util._run_finalizers, daemon=True)  # type: ignore[attr-defined]
    thread.start()
    thread.join(_DELIVERY_S)
    if thread.is_alive():
        raise TransportError(
            "what a kernel put into a multiprocessing.Queue could not be delivered",
            "its pipe is full, and a worker of this map ends with it",
            "take messages out while the map runs, in a thread or another process, or put fewer",
        )
