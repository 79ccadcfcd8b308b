"""A worker asks its caller for a name of ``__main__`` that it lacks, and for the file of what it imports.

::

    worker: sys.modules["__main__"].x   (an unpickler, import, getattr)      caller
        ── ASK x ───────────────────────────────────────────────────────────▶ mainspace.deliver({"x"})
        ◀── MAIN, answer: x and what it needs; empty if there is no x ──────
    worker: import y
        ── ASK import y ────────────────────────────────────────────────────▶ loaded.facts("y")
        ◀── MAIN, answer: {"y": facts} ─────────────────────────────────────

What else arrives meanwhile waits for its turn. A name that the caller lacks, too, is asked for once per task.
"""

from __future__ import annotations

import collections
import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ndshare._memory import trim
from ndshare._processes import frames
from ndshare._system import _wire
from ndshare._transport import unpack

Message = tuple[bytes, tuple[int, ...]]


class Asking:
    """Asks for names; keeps what arrives before the answer.

    Parameters
    ----------
    socket_fd : int
        Where the caller is.
    send : callable
        Sends parts and descriptors to it.
    """

    def __init__(self, socket_fd: int, send: Callable[[Sequence[bytes], Sequence[int]], None]) -> None:
        self._socket_fd = socket_fd
        self._send = send
        self._lock = threading.RLock()
        self._running = False
        self._absent: set[str] = set()
        self._buffer = bytearray()
        self.waiting: collections.deque[Message] = collections.deque()
        """Messages that have arrived meanwhile."""

    def begin(self) -> None:
        """Let code of the user's ask from now on."""
        self._running = True
        if self._absent:
            self._absent.clear()

    def end(self) -> None:
        """Let nobody ask any more; wait for who is at it."""
        with self._lock:
            self._running = False

    def leave(self) -> None:
        """Become a process that a task has forked: the socket is its parent's."""
        self._lock = threading.RLock()
        self._running = False

    def ask(self, name: str) -> None:
        """Have a name bound in ``__main__``, if the caller has it.

        Raises
        ------
        UnsendableGlobalError
            If it has, and cannot send it.
        """
        if name in self._absent:
            return
        content = self._put(name)
        if content is not None and name not in content:
            self._absent.add(name)

    def facts(self, module: str) -> Any:
        """Return `Modules.facts` of a module; None if it is to be found as usual."""
        content = self._put(frames.IMPORT + module)
        return None if content is None else content.get(module)

    def _put(self, question: str) -> dict[str, Any] | None:
        """Return the content of an answer; None if nobody can be asked."""
        with self._lock:
            if not self._running:
                return None
            self._send((frames.HEAD.pack(frames.ASK, 0, 0, 0, 0.0), question.encode()), ())
            answer = self._answer()
        if answer is None:
            return None  # the caller has gone
        status, body, fds = answer
        # Without the lock: to rebuild it may need an import that another thread is at, which asks in turn.
        content: Any = unpack(body, fds) if body else {}
        if status == frames.ERROR:
            raise content[0]
        found: dict[str, Any] = content
        return found

    def _answer(self) -> tuple[int, bytes, tuple[int, ...]] | None:
        if not self._buffer:
            self._buffer = bytearray(frames.BUFFER_BYTES)
        early: tuple[int, ...] = ()
        while True:
            try:
                received: Any = _wire.recv_message(self._socket_fd, self._buffer, 0)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    return None
                trim()  # the message waits in the socket until there is room
                time.sleep(0.01)
                continue
            if received is None or received[0] == 0:
                return None
            size, fds = received
            kind, status, answered, _, _ = frames.HEAD.unpack_from(self._buffer)
            data = bytes(memoryview(self._buffer)[:size])
            if kind == frames.FDS:
                early += fds
            elif kind == frames.MAIN and answered:
                return status, data[frames.HEAD.size :], early + fds
            else:
                self.waiting.append((data, early + fds))
                early = ()
                if kind == frames.QUIT:
                    return None
