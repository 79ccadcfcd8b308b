"""One large array and nothing else out of band: the commonest task and result, at half of the price.

`ndshare._transport.settling` and `ndshare._transport.transport` do the same for any number of arrays, with
lists. Right after a large copy, when nothing is in the caches any more, each step that is not taken counts.

A result that is an array has no pickle either: its stream is empty.
"""

from __future__ import annotations

import marshal
import pickle
from typing import Any

import numpy as np

from ndshare._memory import VALUE, attach, decode_dtype, encode_dtype, should_copy_out, stage, view_of
from ndshare._pickling import ALONE_STREAM, Placed
from ndshare._transport.parcel import (
    ALONE,
    ALONE_HEAD,
    COPIED_BELOW,
    INLINE_MAX,
    Parcel,
    copied,
    handed_out,
    release,
    take_descriptor,
)
from ndshare._transport.staging import OWN_MIN, copy_into, copy_strides

_TABLE_MAX = 4096  # bytes; more than what describes one array, unless its dtype is pickled


def settle_alone(note: Any, stream: bytes, needs: frozenset[str]) -> Parcel | None:
    """Settle a pickle that asks for one array.

    Parameters
    ----------
    note : numpy.ndarray or Placed
        The array that is to be copied, or where it lies.
    stream : bytes
        The pickle.
    needs : frozenset of str
        See `ndshare._transport.parcel.Parcel`.

    Returns
    -------
    Parcel or None
        None for what the general way has to decide: small arrays, shared ones, results in use.

    Raises
    ------
    CapacityError, SegmentError
        As `ndshare._transport.transport.Draft.settle`.
    """
    if type(note) is Placed:
        block = note.block
        if (
            stream is not ALONE_STREAM
            or note.nbytes < COPIED_BELOW
            or note.nbytes * 2 < block.nbytes
            or block.users
            or not block.lendable
            or type(note.dtype) is bytes
        ):
            return None
        place = block.uid, block.size, block.offset + note.offset
        data = _message((*place, note.dtype, note.shape, note.strides), b"")
        return Parcel(data, (block,), needs, 0, note.nbytes)
    if type(note) is not np.ndarray or note.nbytes < OWN_MIN or len(stream) > INLINE_MAX - _TABLE_MAX:
        return None
    code = encode_dtype(note.dtype)
    if type(code) is bytes:
        return None
    block = stage(note.nbytes)
    try:
        strides = copy_strides(note)
        copy_into(block, 0, strides, note)
        data = _message((block.uid, block.size, block.offset, code, note.shape, strides), stream)
    except BaseException:
        release(block)
        raise
    return Parcel(data, (block,), needs, note.nbytes)


def _message(table: tuple[Any, ...], stream: bytes) -> bytes:
    body = marshal.dumps(table)
    return b"".join((ALONE_HEAD.pack(ALONE, len(body)), body, stream))


def rebuild_alone(data: memoryview, fds: list[int]) -> Any:
    """Rebuild the object of a message of kind `ALONE`.

    Parameters
    ----------
    data : memoryview
        The message.
    fds : list of int
        Its descriptor, which is taken out.
    """
    start = ALONE_HEAD.size
    stop = start + ALONE_HEAD.unpack_from(data)[1]
    uid, size, offset, code, shape, strides = marshal.loads(data[start:stop])
    block = attach(uid, size, VALUE, take_descriptor(fds))
    try:
        offset -= block.offset
        dtype = decode_dtype(code)
        if should_copy_out(block):
            array = copied(view_of(block, offset, dtype, shape, strides))
        else:
            array = block.array(dtype, shape, strides, offset)
    finally:
        release(block)
    if stop == len(data):
        return array
    buffers = [array]
    del array  # it is the stream's alone: a task that drops its argument frees it
    return pickle.loads(data[stop:], buffers=handed_out(buffers))
