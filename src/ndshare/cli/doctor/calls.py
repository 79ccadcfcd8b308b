"""System calls that ndshare needs: each is tried in a child of its own, which a filter may kill."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ndshare.cli.doctor.finding import Finding, text_of

_PATIENCE_S = 5.0
_FLOCK = struct.Struct("hhqqi4x")
_MODES = {"0": "no filter", "1": "strict mode", "2": "filtered"}


class Call(NamedTuple):
    """A system call, or a form of one.

    Parameters
    ----------
    name
        As in its manual page.
    since
        First version of Linux that has it.
    purpose
        What cannot be done without it.
    needed
        Whether there is no other way.
    attempt
        Does it; raises `OSError` if the system refuses.
    """

    name: str
    since: str
    purpose: str
    needed: bool
    attempt: Callable[[], object]


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    fd = os.memfd_create("ndshare-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 2 * mmap.PAGESIZE)
        yield fd
    finally:
        os.close(fd)


def _memfd() -> None:
    with _memory() as fd:
        mmap.mmap(fd, 0).close()


def _seal() -> None:
    with _memory() as fd:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | 0x0010)  # F_SEAL_FUTURE_WRITE


def _locks() -> None:
    with _memory() as fd:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


def _flock() -> None:
    if not os.path.isdir("/proc/self/fd"):
        return  # there is a check of its own for that
    with _memory() as fd:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(again, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _libc(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _punch() -> None:
    with _memory() as fd:
        size = ctypes.c_long
        _libc("fallocate", fd, 1 | 2, size(0), size(mmap.PAGESIZE))  # KEEP_SIZE | PUNCH_HOLE


def _populate() -> None:
    with _memory() as fd, mmap.mmap(fd, 0) as mapped:
        mapped.madvise(23)  # MADV_POPULATE_WRITE


def _messages() -> None:
    with _memory() as fd:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(one, [b"x"], [fd])
        _, (got,), _, _ = socket.recv_fds(other, 1, 1)
        os.fstat(got)


def _futex() -> None:
    word = ctypes.c_uint32(1)
    number = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine())
    if number is not None:  # FUTEX_WAKE; nobody waits
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(ctypes.c_long(number), ctypes.byref(word), 1, 1, None, None, 0) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _affinity() -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


CALLS = (
    Call("memfd_create", "3.17", "arrays in shared memory", True, _memfd),
    Call("fcntl(F_ADD_SEALS, F_SEAL_FUTURE_WRITE)", "5.1", "arrays that nobody can shorten", True, _seal),
    Call("fcntl(F_OFD_SETLK)", "3.15", "locks that end with their holder", True, _locks),
    Call("flock on /proc/self/fd", "2.6", "counting who uses memory", True, _flock),
    Call("fallocate(PUNCH_HOLE)", "3.5", "giving memory back", False, _punch),
    Call("madvise(MADV_POPULATE_WRITE)", "5.14", "fresh memory at full speed", False, _populate),
    Call("sendmsg of descriptors, SOCK_SEQPACKET", "2.6", "messages between processes", True, _messages),
    Call("eventfd2", "2.6.27", "waiting for workers", True, lambda: os.close(os.eventfd(0))),
    Call("pidfd_open", "5.3", "workers that end with their caller", True, lambda: os.pidfd_open(os.getpid())),
    Call("futex", "2.6", "locks and waiting", True, _futex),
    Call("sched_setaffinity", "2.6", "placing workers", False, _affinity),
)


def system_calls() -> Finding:
    """Try every system call, and say what filters them if one is refused."""
    refused = [(call, why) for call in CALLS if (why := _try(call.attempt))]
    status = text_of("/proc/self/status")
    mode = next((line.split()[1] for line in status.splitlines() if line.startswith("Seccomp:")), "")
    filtered = f"seccomp: {_MODES.get(mode, 'not known')}"
    if not refused:
        return Finding("system calls", "ok", f"all {len(CALLS)} that ndshare uses work; {filtered}")
    needed = any(call.needed for call, _ in refused)
    texts = [f"{call.name}: {why} (Linux {call.since}; for {call.purpose})" for call, why in refused]
    if needed:
        remedy = (
            "Use a kernel that has it, or allow the call in the seccomp profile of the container (docker run "
            "--security-opt seccomp=PROFILE)."
        )
    else:
        remedy = "Works without, only slower; a newer kernel, or another seccomp profile, has it."
    return Finding("system calls", "fail" if needed else "warn", f"{'; '.join(texts)}; {filtered}", remedy)


def _try(attempt: Callable[[], object]) -> str:
    """Do something in a forked child; return why it failed, or an empty text."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that there are threads does no harm: the child only calls the system
        pid = os.fork()
    if pid == 0:
        text = b"failed"
        try:
            attempt()
            text = b""
        except OSError as error:
            text = f"{errno.errorcode.get(error.errno or 0, 'error')}, {error.strerror or error}".encode()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}".encode()
        finally:
            with contextlib.suppress(BaseException):
                os.write(writer, text or b"\0")
            os._exit(0)
    os.close(writer)
    try:
        return _outcome(pid, reader)
    finally:
        os.close(reader)


def _outcome(pid: int, reader: int) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"did not return within {_PATIENCE_S:.0f} s"
        time.sleep(0.001)
    said = os.read(reader, 1000)
    return said.rstrip(b"\0").decode() if said else "the process that tried it was killed"
