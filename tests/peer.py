"""The smallest possible worker: a fresh interpreter at the other end of a SEQPACKET socket.

It stands for the real workers, without pool, zygote or limits, so that a test of the transport
fails for the transport's reasons only. ``Peer().call(f, *args)`` runs ``f(*args)`` over there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ndshare._memory import segments
from ndshare._system import _wire
from ndshare._transport import mainspace, transport

_FDS_MAX = 200
_BUFFER_BYTES = 1 << 17

given: dict[str, Any] = {}  # what the peer was sent to keep


def send(sock: socket.socket, tag: bytes, parcel: transport.Parcel) -> None:
    """Send a parcel; descriptors that do not fit one message go ahead in messages of their own."""
    fds = parcel.descriptors()
    try:
        ahead = fds
        while len(ahead) > _FDS_MAX:
            _wire.send_message(sock.fileno(), [b"+"], ahead[:_FDS_MAX], 0)
            ahead = ahead[_FDS_MAX:]
        _wire.send_message(sock.fileno(), [tag, parcel.data], ahead, 0)
    finally:
        for fd in fds:
            os.close(fd)


def receive(sock: socket.socket, buffer: bytearray) -> tuple[bytes, memoryview, list[int]]:
    """Return tag, data and descriptors of the next message; an empty tag at the end."""
    fds: list[int] = []
    while True:
        received = _wire.recv_message(sock.fileno(), buffer, 0)
        assert received is not None
        nbytes, more = received
        fds.extend(more)
        tag = bytes(buffer[: min(1, nbytes)])
        if tag != b"+":
            return tag, memoryview(buffer)[1:nbytes], fds


def _run(data: memoryview, fds: list[int]) -> transport.Draft:
    function, args, kwargs = transport.unpack(data, fds)
    return transport.pack(function(*args, **kwargs), lend_values=True)


def _error(error: BaseException) -> transport.Draft:
    try:
        return transport.pack(error)
    except Exception as unpicklable:
        return transport.pack(RuntimeError(f"{error!r} could not be sent: {unpicklable!r}"))


def serve(fd: int) -> None:
    """Work until the other end is closed."""
    sock = socket.socket(fileno=fd)
    mainspace.install()
    segments.install_handler()
    buffer = bytearray(_BUFFER_BYTES)
    while True:
        tag, data, fds = receive(sock, buffer)
        if not tag:
            return
        if tag == b"u":
            transport.unpack(data, fds)
            continue
        if tag == b"k":
            given.clear()
            given.update(transport.unpack(data, fds))
            continue
        try:
            draft = _run(data, fds)
            tag = b"r"
        except BaseException as error:
            error.__traceback__ = None  # its frames keep the arguments
            draft = _error(error)
            tag = b"e"
        send(sock, tag, draft.settle())
        del draft


def to_oneself(obj: Any) -> Any:
    """Pack an object, and unpack it in the same process."""
    parcel = transport.pack(obj).settle()
    try:
        return transport.unpack(parcel.data, parcel.descriptors())
    finally:
        parcel.release()


class Peer:
    """A process to send things to."""

    def __init__(self, **environment: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from tests import peer; peer.serve({theirs.fileno()})"],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
            )
        self.sock = ours
        self.known: dict[str, object] = {}
        self.buffer = bytearray(_BUFFER_BYTES)
        self.sent: transport.Parcel | None = None
        self.delivered: list[set[str]] = []

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``function(*args, **kwargs)`` in the peer; its exception is raised here."""
        draft = transport.pack((function, args, kwargs))
        update = mainspace.deliver(draft.needs, self.known)
        if update is not None:
            assert update.delivers is not None
            send(self.sock, b"u", update.settle())
            self.delivered.append(set(update.delivers))
            self.known.update(update.delivers)
        self.sent = parcel = draft.settle()
        send(self.sock, b"c", parcel)
        parcel.release()
        tag, data, fds = receive(self.sock, self.buffer)
        if not tag:
            raise EOFError(f"the peer ended with status {self.process.wait()}")
        self.received_nbytes = len(data)
        result = transport.unpack(data, fds)
        if tag == b"e":
            raise result
        return result

    def close(self) -> None:
        """End the peer."""
        self.sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
            return
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
