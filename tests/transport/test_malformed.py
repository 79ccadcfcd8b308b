"""Messages that nobody has packed: an error that says so, no crash, and no descriptor is left."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._memory import encode_dtype
from ndshare._transport import parcel, transport
from ndshare.errors import TransportError

pytestmark = [pytest.mark.once, pytest.mark.sanitized]

_EMPTY_STREAM = b"\x80\x05N."
_ONE_BUFFER = b"\x80\x05\x97."
_WRONG: dict[str, bytes] = {
    "empty": b"",
    "only a tag": b"\1",
    "another tag": b"\xffabc",
    "table cut off": parcel.TABLE_HEAD.pack(1, 100, 10) + b"abc",
    "lengths that overflow": parcel.TABLE_HEAD.pack(1, 2**64 - 1, 2**64 - 1) + b"abc",
    "no table": parcel.TABLE_HEAD.pack(1, 3, 4) + b"\xff\xff\xff" + _EMPTY_STREAM,
    "a list without end": parcel.TABLE_HEAD.pack(1, 5, 4) + b"[\xff\xff\xff\x7f" + _EMPTY_STREAM,
    "stored, size beyond the address space": parcel.STORED_HEAD.pack(2, 1, 2**64 - 1, 0, 0, 0, 0),
    "stored, size 0": parcel.STORED_HEAD.pack(2, 1, 0, 0, 0, 0, 0),
    "stored, no such kind": parcel.STORED_HEAD.pack(2, 1, 4096, 0, 99, 0, 0),
    "stored, no segment": parcel.STORED_HEAD.pack(2, 1, 4096, 0, 0, 0, 0),
    "stored cut off": b"\2abc",
    "alone cut off": b"\3abc",
    "alone without a table": parcel.ALONE_HEAD.pack(3, 0),
    "pickle cut off": b"\0" + _EMPTY_STREAM[:2],
    "pickle of no protocol": b"\0\x80\xff.",
    "no pickle": b"\0\0\0",
    "bare and empty": b"\0",
}


def _table(segments: Any, pieces: Any, stream: bytes = _ONE_BUFFER, inline: bytes = b"") -> bytes:
    body = marshal.dumps((segments, pieces))
    return parcel.TABLE_HEAD.pack(1, len(body), len(stream)) + body + stream + inline


_DOUBLE = encode_dtype(np.dtype("f8"))
_PIECES: dict[str, tuple[Any, ...]] = {
    "bytes that are not there": (-1, 0, _DOUBLE, (5,), None, 0),
    "objects": (-1, 0, "|O", (4,), None, 0),
    "objects within a record": (-1, 0, encode_dtype(np.dtype([("a", "O")])), (2,), (8,), 0),
    "a place before the message": (-1, -64, _DOUBLE, (1,), (8,), 0),
    "a place behind it": (-1, 1 << 40, _DOUBLE, (1,), None, 0),
    "a shape that overflows": (-1, 0, _DOUBLE, (2**62, 2**62), None, 0),
    "strides that overflow": (-1, 0, _DOUBLE, (3, 2**62), (2**62, 4), 0),
    "strides that reach out": (-1, 0, _DOUBLE, (4, 1 << 20), (-64, 8), 0),
    "a negative length": (-1, 0, _DOUBLE, (-1,), (8,), 0),
    "strides of another number": (-1, 0, _DOUBLE, (2, 2), (8,), 0),
    "no shape": (-1, 0, _DOUBLE, None, None, 0),
    "no dtype": (-1, 0, "no dtype", (1,), None, 0),
    "no dtype at all": (-1, 0, 5, (1,), None, 0),
    "no such segment": (7, 0, _DOUBLE, (1,), None, 0),
    "a segment below all": (-2, 0, _DOUBLE, (1,), None, 0),
    "too many dimensions": (-1, 0, _DOUBLE, (1,) * 100, None, 0),
    "a piece cut off": (-1, 0),
}


def _refused(data: bytes, count: int = 2) -> TransportError:
    before = set(os.listdir("/proc/self/fd"))
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    with pytest.raises(TransportError) as caught:
        transport.unpack(data, fds)
    assert set(os.listdir("/proc/self/fd")) == before
    return caught.value


@pytest.mark.parametrize("name", _WRONG)
def test_wrong_message_is_refused_and_its_descriptors_closed(name: str) -> None:
    """Whatever comes before the pickle."""
    assert "a message was refused" in str(_refused(_WRONG[name]))


@pytest.mark.parametrize("name", _PIECES)
def test_wrong_piece_is_refused(name: str) -> None:
    """An array that the message cannot have, in the message itself."""
    _refused(_table([], [_PIECES[name]], inline=bytes(32)))


@pytest.mark.parametrize("name", _PIECES)
def test_wrong_piece_of_a_segment_is_refused(name: str) -> None:
    """And one that the segment cannot have."""
    x = ndshare.zeros(1 << 20)
    sent = transport.pack(x).settle()
    (block,) = sent.blocks
    piece = _PIECES[name]
    if piece[0] == -1 and len(piece) > 2:
        place = block.offset + piece[1] * (1 << 20)
        piece = (0, place, piece[2], piece[3] if piece[3] != (5,) else (1 << 30,), *piece[4:])
    data = _table([(block.uid, block.size, block.kind)], [piece])
    before = set(os.listdir("/proc/self/fd"))
    fds = sent.descriptors()
    with pytest.raises(TransportError):
        transport.unpack(data, fds)
    assert set(os.listdir("/proc/self/fd")) == before
    sent.release()


def test_message_without_its_descriptors_or_buffers_is_refused() -> None:
    """What was lost on the way, or never there."""
    sent = transport.pack([np.zeros(300_000), ndshare.zeros(4)]).settle()
    fds = sent.descriptors()
    os.close(fds.pop())
    with pytest.raises(TransportError):
        transport.unpack(sent.data, fds)
    sent.release()
    _refused(_table([], []))


def test_error_of_an_object_is_its_own() -> None:
    """An object that raises while it is rebuilt is no malformed message."""
    for error in (EOFError, ValueError, OverflowError, IndexError):
        sent = transport.pack(_Raises(error)).settle()
        with pytest.raises(error, match="its own") as caught:
            transport.unpack(sent.data, ())
        assert not isinstance(caught.value, TransportError)


class _Raises:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self.error,)


def _raise(error: type[Exception]) -> None:
    raise error("its own")


@pytest.mark.chaos
def test_changed_messages_never_crash(chaos_seed: int, chaos_rounds: int) -> None:
    """Thousands of messages with some bytes changed."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("fuzz_messages.py")),
            str(chaos_seed),
            str(4000 * chaos_rounds),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, f"seed {chaos_seed}: status {done.returncode}\n{done.stdout}{done.stderr}"
