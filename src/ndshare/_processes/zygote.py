"""The zygote: a clean single-threaded process from which every worker is forked.

::

    user's process ──Popen──► zygote ──fork──► worker 1, worker 2, …
          │  SPAWN, KILL  ──►   │
          │  ◄── READY, EXITED  │  waits for its children, watches the user's process

Forking the user's process would copy its threads' locks, its open files and its BLAS pool; starting a
fresh interpreter per worker costs a NumPy import each. The zygote imports once, has one thread, and
forks in a few milliseconds.

Guarantees
----------
- The user's process gone, however it went: all workers are killed (SIGKILL, so also within C code)
  and the zygote ends. It is watched through a pidfd: the end of a socket is no substitute, as any
  forked sibling may hold the other end open.
- The zygote gone: its workers are killed by the kernel (``PR_SET_PDEATHSIG``, which is safe here
  because the zygote has only one thread).
- Every exit status and peak memory is reported, once.
- A worker is signalled through the zygote, which reaps it: a process number that has been given to
  somebody else is never hit.

Not guaranteed: processes that a task started itself are not killed with the worker.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from ndshare._processes import frames, streams
from ndshare._system import _wire

#: How long workers get between the closing of the control socket and SIGKILL.
_GRACE_S = 2.0


def main(control: socket.socket, parent_pid: int, preload: tuple[str, ...]) -> None:
    """Import, then fork on request until the control socket or the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (
        signal.SIGCHLD,
        signal.SIGTERM,
    ):  # ignored by the caller, maybe: children are waited for here,
        signal.signal(number, signal.SIG_DFL)  # and workers can be terminated
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ctrl-C is blocked from birth
    _Zygote(control, parent_pid).run(preload)


class Start:
    """What a program that is started once more, or forked, is to do as a zygote.

    Pickled for the former: it has the verb that `multiprocessing.spawn` asks of what it unpickles.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def run(self) -> None:
        """Read from the socket what a fresh interpreter would, and do it."""
        control = socket.socket(fileno=self.fd)
        said = marshal.loads(control.recv(1 << 20))
        sys.path[:] = said["path"]
        main(control, said["parent"], said["preload"])

    def _bootstrap(self, parent_sentinel: int) -> int:
        os.close(parent_sentinel)
        self.run()
        return 0


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


class _Zygote:
    def __init__(self, control: socket.socket, parent_pid: int) -> None:
        self.control = control
        self.parent = os.pidfd_open(parent_pid)
        if os.getppid() != parent_pid:  # it ended before its pidfd was open
            os._exit(1)
        self.children: dict[int, tuple[int, int]] = {}  # pidfd -> (worker id, pid)
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.poll.register(self.parent, select.POLLIN)
        self.buffer = bytearray(1 << 16)
        self.per_worker: tuple[str, ...] = ()
        self.untold: collections.deque[bytes] = collections.deque()

    def run(self, preload: tuple[str, ...]) -> None:
        self.per_worker = self._preload(preload)
        gc.freeze()
        streams.Outlets().point((), ())  # workers are told where theirs go
        self._tell((frames.READY, os.getpid()))
        while True:
            for fd, events in self.poll.poll():
                if fd == self.parent:
                    self._end(grace=0.0)
                elif fd == self.control.fileno():
                    if events & select.POLLOUT:
                        self._tell_rest()
                    if events & ~select.POLLOUT:
                        self._command()
                elif fd in self.children:
                    self._reap(fd)

    def _tell(self, message: tuple[Any, ...]) -> None:
        self.untold.append(marshal.dumps(message))
        self._tell_rest()

    def _tell_rest(self) -> None:
        """Say what the socket takes, the rest later: a parent that is saying something itself is heard."""
        events = select.POLLIN
        try:
            while self.untold:
                self.control.send(self.untold[0], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                self.untold.popleft()
        except BlockingIOError:
            events |= select.POLLOUT
        except OSError:
            self._end(grace=0.0)
        self.poll.modify(self.control, events)

    def _command(self) -> None:
        try:
            received = _wire.recv_message(self.control.fileno(), self.buffer, socket.MSG_DONTWAIT)
        except OSError:
            received = (0, ())
        if received is None:
            return
        size, fds = received
        if size == 0:
            self._end(grace=_GRACE_S)
        command = marshal.loads(self.buffer[:size])
        if command[0] == frames.SPAWN:
            self._spawn(command[1], command[2], fds)
        elif command[0] == frames.KILL:
            _, worker_id, number = command
            for child_id, pid in self.children.values():
                if child_id == worker_id:
                    os.kill(pid, number)

    def _spawn(self, worker_id: int, options: dict[str, Any], fds: tuple[int, ...]) -> None:
        own_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell((frames.FAILED, worker_id, str(error)))
            for fd in fds:
                os.close(fd)
            return
        if pid == 0:
            code = 1
            try:
                code = self._become_worker(own_pid, options, fds)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                streams.flush()
                os._exit(code)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self.children[pidfd] = (worker_id, pid)
        self.poll.register(pidfd, select.POLLIN)

    def _become_worker(self, zygote_pid: int, options: dict[str, Any], fds: tuple[int, ...]) -> int:
        _wire.die_with_parent(signal.SIGKILL)
        if os.getppid() != zygote_pid:  # the zygote ended before the line above
            os._exit(1)
        self.control.close()
        for pidfd in self.children:
            os.close(pidfd)
        from ndshare._processes import family, worker

        options["preload"] = self.per_worker
        return family.be(options["description"], self.parent, lambda: worker.main(fds, options))

    def _reap(self, pidfd: int) -> None:
        worker_id, pid = self.children.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        self._tell((frames.EXITED, worker_id, pid, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024))

    def _end(self, grace: float) -> None:
        """End with all workers: those that were told to quit get `grace` seconds for it."""
        deadline = time.monotonic() + grace
        while self.children and (left := deadline - time.monotonic()) > 0:
            ready = [fd for fd, _ in self.poll.poll(left * 1000)]
            if self.parent in ready:
                break
            with contextlib.suppress(KeyError, ValueError):
                self.poll.unregister(self.control)
            for fd in ready:
                if fd in self.children:
                    _, pid = self.children.pop(fd)
                    self.poll.unregister(fd)
                    os.waitpid(pid, 0)
        for _, pid in self.children.values():
            os.kill(pid, signal.SIGKILL)
        for _, pid in self.children.values():
            os.waitpid(pid, 0)
        os._exit(0)

    def _preload(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Import what can be inherited; return what each worker has to import for itself.

        A module that starts threads when it is imported cannot be inherited by fork: the threads would
        be missing and their locks might be taken. A child tries it first.
        """
        import numpy as np

        import ndshare._processes.worker  # noqa: F401 - what every worker needs

        np.linalg.inv(np.eye(2))  # BLAS allocates its buffers once, before the fork
        if not names:
            return ()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            threaded = []
            for name in names:
                before = _threads()
                try:
                    importlib.import_module(name)
                except BaseException:
                    threaded.append(name)
                    continue
                if _threads() > before:
                    threaded.append(name)
            os.write(writer, marshal.dumps(tuple(threaded)))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as answer:
            raw = answer.read()
        os.waitpid(pid, 0)
        per_worker: tuple[str, ...] = marshal.loads(raw) if raw else names
        for name in names:
            if name not in per_worker:
                importlib.import_module(name)
        return per_worker
