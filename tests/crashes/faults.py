"""Fault points: places of the library where a test has a process die, stop, or run short, by the call and not by the clock.

The library has none of this. A process of the tests imports this module (workers by ``preload``), and it wraps the functions
that the library calls at these points. ``NDSHARE_TEST_FAULT`` says where and how, and names a file: whoever makes it first is
the one that it happens to.

::

    worker    start ─ received ─ claimed ─ unpacking ─ user, C ─ packing ─ sending ─ sent ─ leaving
    caller    packing ─ dispatching ─ dispatched ─ answered ─ closing
    zygote    forking
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from ndshare._processes import frames, worker, zygote
from ndshare._system import _wire

VARIABLE = "NDSHARE_TEST_FAULT"
_WHERE, _HOW, _FILE = (*os.environ.get(VARIABLE, "").split("|"), "", "", "")[:3]

_role = ["caller", ""]  # of this process; what it has done last


def _raise(error: BaseException) -> None:
    raise error


HOWS: dict[str, Callable[[], None]] = {
    "exception": lambda: _raise(RuntimeError("a fault")),
    "exit": lambda: os._exit(3),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "SIGSTOP": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "memory": lambda: _raise(MemoryError("a fault")),
    "descriptors": lambda: _raise(OSError(errno.EMFILE, "a fault")),
}


def _is_first() -> bool:
    try:
        fd = os.open(_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(fd, str(os.getpid()).encode())
    os.close(fd)
    return True


def reach(where: str) -> None:
    """Have happen what is to happen here, to the first that comes by."""
    if where == _WHERE and _is_first():
        HOWS[_HOW]()


def reach_in_c(where: str) -> None:
    """Do the same by a function in C, with the interpreter in the middle of a call."""
    if where == _WHERE and _is_first():
        if _HOW == "exit":
            ctypes.CDLL(None)._exit(3)
        ctypes.PyDLL(None)["raise"](getattr(signal, _HOW))


def _wrap(
    owner: Any, name: str, before: Callable[..., None] | None, after: Callable[..., None] | None
) -> None:
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args)
        result = plain(*args, **kwargs)
        if after is not None:
            after(result, *args)
        return result

    setattr(owner, name, wrapped)


def _starts(*_: Any) -> None:
    _role[:] = ["worker", ""]
    reach("worker start")


def _received(result: Any, _fd: int, buffer: Any, *_: Any) -> None:
    if _role[0] == "worker" and result and result[0] and frames.HEAD.unpack_from(buffer)[0] == frames.TASKS:
        reach("worker received")


def _claimed(result: Any, *_: Any) -> None:
    if _role[0] == "worker" and result:
        _role[1] = "claimed"
        reach("worker claimed")


def _in_task(where: str) -> Callable[..., None]:
    def reached(*_: Any) -> None:
        if _role == ["worker", "claimed"]:
            reach(where)

    return reached


def _is_answer(parts: Any) -> bool:
    return bool(_role == ["worker", "claimed"] and bytes(parts[0][:1]) == bytes([frames.RESULT]))


def _sending(_fd: int, parts: Any, *_: Any) -> None:
    if _is_answer(parts):
        reach("worker sending")


def _sent(_result: Any, _fd: int, parts: Any, *_: Any) -> None:
    if _is_answer(parts):
        _role[1] = ""
        reach("worker sent")


def install() -> None:
    """Wrap what is called at the points of workers and of the process that they are forked from."""
    _wrap(worker, "main", _starts, None)
    _wrap(worker, "unpack", _in_task("worker unpacking"), None)
    _wrap(worker, "pack_plain", _in_task("worker packing"), None)
    _wrap(_wire, "recv_message", None, _received)
    _wrap(_wire, "claim", None, _claimed)
    _wrap(_wire, "send_message", _sending, _sent)
    _wrap(worker._Worker, "_leave", lambda *_: reach("worker leaving"), None)
    _wrap(zygote._Zygote, "_spawn", lambda *_: reach("zygote forking"), None)


if _WHERE:
    install()
