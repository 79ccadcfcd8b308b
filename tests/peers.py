"""A second process for tests of shared memory: a fresh interpreter at the other end of a socket.

`Peer.run` executes source text there and returns what it leaves in ``result``; descriptors go along in
both directions. `Peer.give` lends an array by hand, the way the layers above do it by message.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from typing import Any, Self

import numpy as np

from ndshare._memory import segments

_LOOP = """
import os, pickle, socket, sys
import numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import segments
channel = socket.socket(fileno=int(sys.argv[1]))
names = {"np": np, "ndshare": ndshare, "segments": segments, "_arrays": _arrays, "os": os}

def take(ticket, fd):
    uid, size, kind, dtype, shape, strides, offset = ticket
    block = segments.attach(uid, size, kind, fd)
    array = block.array(np.dtype(dtype), shape, strides, offset)
    block.release()
    return array

def ticket_of(array):
    block, offset = segments.block_of(array)
    layout = array.dtype.str, array.shape, array.strides
    where = block.uid, block.size, block.kind, *layout, block.offset + offset
    fd = block.lend()
    block.release()
    return where, fd

names.update(take=take, ticket_of=ticket_of)
while True:
    data, fds, _, _ = socket.recv_fds(channel, 1 << 20, 64)
    if not data:
        break
    source, values = pickle.loads(data)
    names.update(values, fds=fds, out_fds=[], result=None)
    try:
        exec(source, names)
        answer = ("result", names["result"])
    except BaseException as error:
        answer = ("error", f"{type(error).__name__}: {error}")
    socket.send_fds(channel, [pickle.dumps(answer)], names["out_fds"])
    for fd in names["out_fds"]:
        os.close(fd)
    names.update(fds=[], out_fds=[])
"""


class Peer:
    """Another process that can be told what to do."""

    def __init__(self, **options: Any) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(60)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LOOP, str(theirs.fileno())], pass_fds=[theirs.fileno()], **options
            )
        self.fds: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()
        if self.process.wait(30) not in (0, -signal.SIGKILL):
            raise AssertionError(f"the peer ended with {self.process.returncode}")

    def run(self, source: str, *, send: tuple[int, ...] = (), **values: Any) -> Any:
        """Execute source text there; descriptors it puts into ``out_fds`` arrive in `fds`."""
        socket.send_fds(self._channel, [pickle.dumps((source, values))], list(send))
        for fd in send:
            os.close(fd)
        data, self.fds, _, _ = socket.recv_fds(self._channel, 1 << 20, 64)
        kind, value = pickle.loads(data)
        if kind == "error":
            raise RuntimeError(value)
        return value

    def give(self, name: str, array: np.ndarray[Any, Any], kind: int | None = None) -> None:
        """Lend an array; it gets a name there."""
        where, fd = ticket(array, kind)
        self.run(f"{name} = take(where, fds[0])", send=(fd,), where=where)

    def fetch(self, name: str) -> np.ndarray[Any, Any]:
        """Take over an array that has a name there."""
        where = self.run(f"result, fd = ticket_of({name}); out_fds.append(fd)")
        return take(where, self.fds[0])

    def kill(self) -> None:
        """End it as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait(30)


def ticket(array: np.ndarray[Any, Any], kind: int | None = None) -> tuple[Any, int]:
    """Return what a message says about an array, and the descriptor that goes with it."""
    found = segments.block_of(array)
    assert found is not None, "ordinary memory cannot be lent"
    block, offset = found
    where = (
        block.uid,
        block.size,
        block.kind if kind is None else kind,
        array.dtype.str,
        array.shape,
        array.strides,
        block.offset + offset,
    )
    fd = block.lend()
    block.release()
    return where, fd


def take(where: Any, fd: int) -> np.ndarray[Any, Any]:
    """Make the array that a message describes."""
    uid, size, kind, dtype, shape, strides, offset = where
    block = segments.attach(uid, size, kind, fd)
    array = block.array(np.dtype(dtype), shape, strides, offset)
    block.release()
    return array


def uid_of(array: np.ndarray[Any, Any]) -> int:
    """Return the segment an array lies in."""
    found = segments.block_of(array)
    assert found is not None
    return found[0].uid


def staged(nbytes: int, value: int = 0) -> np.ndarray[Any, Any]:
    """Return a by-value array of bytes in a segment of its own."""
    block = segments.stage(nbytes)
    array = block.array(np.uint8, (nbytes,))
    block.release()
    array.fill(value)
    return array
