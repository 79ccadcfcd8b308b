"""How an object gets from one process to another: pack, settle, send, unpack.

::

    sender                                                     receiver
    pack(obj) ─► Draft          pickle; arrays are only noted
        (a worker drops everything its task used here)
    draft.settle() ─► Parcel    copy ordinary arrays, lend
                                the others
    parcel.data, parcel.descriptors() ──► SEQPACKET socket ──► unpack(data, fds) ─► obj

Shared arrays go by reference: the message names segment, offset and strides. Ordinary arrays are
copied once, into recycled segments (`ndshare._transport.staging`). A worker's result lies in a by-value
segment already (NumPy in a worker allocates there); it is lent without any copy if nothing in the worker
can still reach it.

Guarantees
----------
* What a receiver gets by value is its own: writable, and no other process writes there.
* The rules do not depend on size.
* A failure while packing leaves nothing allocated; `unpack` closes every descriptor it was given.
* Thread-safe.

Not guaranteed
--------------
* An ordinary array and a view of it arrive as two arrays, as with pickle. Views of one block in a
  worker's *result* keep sharing memory with each other.
"""

from __future__ import annotations

import errno
import marshal
import pickle
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ndshare._memory import COPY, SEALED, SHARED, VALUE, attach, decode_dtype, should_copy_out, span, view_of
from ndshare._pickling import FILE, Descriptor, Recording, by_value_modules, record, record_alone
from ndshare._transport.advice import note_advice
from ndshare._transport.parcel import (
    ALONE,
    ALONE_HEAD,
    BARE,
    BARE_TAG,
    COPIED_BELOW,
    INLINE,
    INLINE_MAX,
    RAW,
    READ_ONLY,
    STORED,
    STORED_HEAD,
    TABLE,
    TABLE_HEAD,
    Parcel,
    close_all,
    copied,
    handed_out,
    release,
    take_descriptor,
)
from ndshare._transport.settling import Settling, settle_alone, settle_references
from ndshare.errors import CapacityError, NdshareError, SegmentError, TransportError

if TYPE_CHECKING:
    from ndshare._transport.inputs import Inputs

__all__ = ["INLINE_MAX", "Draft", "Parcel", "by_value_modules", "pack", "pack_plain", "unpack"]

_PLAIN = frozenset(map(id, (int, float, complex, bool, str, type(None))))  # a class may have no hash
_PLAIN_MOST = 64  # items that are looked at one by one: beyond, that takes longer than a session of pickling


class Draft:
    """A pickled object whose arrays are noted but not copied yet.

    Attributes
    ----------
    needs : frozenset of str
        Names of the caller's ``__main__`` that the receiver must have.
    delivers : dict or None
        What `mainspace.deliver` sends with this draft; None for others.
    """

    __slots__ = ("_recording", "delivers", "needs")

    def __init__(self, recording: Recording, delivers: dict[str, object] | None = None) -> None:
        self._recording: Recording | None = recording
        self.needs = recording.needs
        self.delivers = delivers

    @property
    def bare(self) -> bytes | None:
        """The pickle, if it is all there is to be sent and fits into a message; only before it is settled."""
        recording = self._recording
        if recording is None or recording.notes or len(recording.parts) != 1:
            return None
        return recording.parts[0] if len(recording.parts[0]) < INLINE_MAX else None

    @property
    def nbytes(self) -> int:
        """Bytes of the pickle and of all arrays it refers to; only before the draft is settled."""
        assert self._recording is not None
        total = sum(map(len, self._recording.parts))
        for note in self._recording.notes:
            total += len(note.raw()) if hasattr(note, "raw") else note.nbytes
        return total

    def detach(self) -> None:
        """Copy what was noted into ordinary memory: the sender may change it, and nothing is kept open."""
        recording = self._recording
        if recording is not None:
            recording.notes = tuple([_detached(note) for note in recording.notes])

    def take(self) -> Recording:
        """Return what was pickled and noted, for somebody who sends it in another way."""
        recording = self._recording
        if recording is None:
            raise ValueError(
                "Draft.settle: this draft is settled already; a parcel may be sent several times"
            )
        self._recording = None
        return recording

    def settle(self, *, broadcast: bool = False, frozen: bool = False) -> Parcel:
        """Copy or lend what was noted.

        Parameters
        ----------
        broadcast : bool
            The parcel goes to several receivers: they map its copies copy-on-write.
        frozen : bool
            Nothing in it is to change: shared arrays that can be written to are copied as others are, and all
            arrays arrive read-only. Implies `broadcast`.

        Raises
        ------
        CapacityError, SegmentError
            If the memory for copies does not fit, or there is no descriptor for it. Nothing is copied, and
            the draft can be settled later.
        """
        recording = self.take()
        parts, notes = recording.parts, recording.notes
        del recording
        if not notes and len(parts) == 1 and len(parts[0]) < INLINE_MAX:
            return Parcel(BARE_TAG + parts[0], (), self.needs)
        try:
            parcel = None
            if frozen:
                return Settling(notes, COPY, frozen=True).finish(parts, self.needs)
            if len(notes) == len(parts) == 1 and not broadcast:
                parcel = settle_alone(notes[0], parts[0], self.needs)
            elif len(parts) == 1:
                parcel = settle_references(notes, parts[0], self.needs)
            if parcel is not None:
                return parcel
            return Settling(notes, COPY if broadcast else VALUE).finish(parts, self.needs)
        except (CapacityError, SegmentError):
            self._recording = Recording(parts, notes, self.needs)
            raise


def _detached(note: Any) -> Any:
    if isinstance(note, np.ndarray):
        return note.copy("K")
    return pickle.PickleBuffer(bytearray(note.raw())) if isinstance(note, pickle.PickleBuffer) else note


def pack(
    obj: object,
    *,
    lend_values: bool = False,
    withheld: frozenset[str] = frozenset(),
    inputs: Inputs | None = None,
) -> Draft:
    """Pickle an object; copy nothing yet.

    Parameters
    ----------
    obj : object
        What to send.
    lend_values : bool
        For a worker's results: by-value memory that nobody here uses when the draft is settled is
        lent instead of copied.
    withheld : frozenset of str
        Names of variables whose values the receiver has; see `ndshare._pickling.pickler.record`.
    inputs : Inputs, optional
        What was sent to other receivers before; see `ndshare._pickling.pickler.record`.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    if lend_values and type(obj) is np.ndarray and (recording := record_alone(obj)) is not None:
        return Draft(recording)
    try:
        return Draft(record(obj, lend=lend_values, withheld=withheld, inputs=inputs))
    except (TypeError, RuntimeError, pickle.PicklingError, AttributeError) as error:
        note_advice(error)
        raise


def pack_plain(obj: object) -> Parcel | None:
    """Pack what has no arrays for certain, in a fraction of the time.

    Parameters
    ----------
    obj : object
        What to send.

    Returns
    -------
    Parcel or None
        None if `obj` is anything else than a number, a string, None, or a short list of these or of tuples of
        them.
    """
    if id(type(obj)) not in _PLAIN:
        if type(obj) is not list or len(obj) > _PLAIN_MOST:
            return None
        for item in obj:
            if id(type(item)) not in _PLAIN and not (
                type(item) is tuple and _PLAIN.issuperset(map(id, map(type, item)))
            ):
                return None
    stream = pickle.dumps(obj, 5)
    if len(stream) < INLINE_MAX:
        return Parcel(BARE_TAG + stream)
    return Draft(Recording((stream,))).settle()


def unpack(data: bytes | bytearray | memoryview, fds: Sequence[int]) -> Any:
    """Rebuild the object of a parcel.

    Parameters
    ----------
    data : bytes-like
        `Parcel.data`; may be reused as soon as this returns.
    fds : sequence of int
        The descriptors of the parcel, in order. They are taken over: on any error, too, none is left.

    Raises
    ------
    TransportError
        If the message is not one of ours or has lost descriptors.
    Exception
        Whatever unpickling raises.
    """
    if len(data) and data[0] == BARE:
        close_all(fds)
        try:
            return pickle.loads(memoryview(data)[1:])
        except _BROKEN as error:
            _refuse_stream(error)
    left = list(reversed(fds))
    try:
        with memoryview(data) as view:
            if len(view) and view[0] == STORED:
                return _rebuild_stored(view, left)
            stream, arrays = _read(view, left)
            return _rebuild(stream, arrays)
    finally:
        close_all(left)


_BROKEN = (pickle.UnpicklingError, EOFError, OverflowError, ValueError)
"""What the unpickler raises of bytes that are no pickle; the objects themselves may raise it as well."""
_MALFORMED = (*_BROKEN, AttributeError, BufferError, IndexError, SegmentError, TypeError, struct.error)
"""What comes of a head or table that nobody has packed."""


def _refuse_stream(error: Exception) -> NoReturn:
    """Raise what an unreadable stream is, or what an object has raised that was rebuilt."""
    deepest = error.__traceback__
    if (
        (deepest is not None and deepest.tb_next is not None)  # code in Python was under way
        or isinstance(error, NdshareError)
        or (type(error) is ValueError and not str(error).startswith("unsupported pickle protocol"))
    ):
        raise error
    _refuse(error)


def _refuse_head(error: Exception) -> NoReturn:
    """Raise what a wrong head or table is, or that there is no room here, which is not its fault."""
    if isinstance(error, SegmentError) and error.number != errno.EINVAL:
        raise error
    _refuse(error)


def _refuse(error: Exception) -> NoReturn:
    got = f"{type(error).__name__}: {error}"
    raise TransportError("a message was refused", got, "send parcels only, as they are") from error


def _read(view: memoryview, fds: list[int]) -> tuple[memoryview, list[Any]]:
    """Return the stream of a message and its arrays, the first one last; take their descriptors."""
    try:
        if view[0] == ALONE:
            return _read_alone(view, fds)
        if view[0] == TABLE:
            _, table_len, stream_len = TABLE_HEAD.unpack_from(view)
            return _read_table(view[TABLE_HEAD.size :], table_len, stream_len, fds)
        raise ValueError(f"its first byte is {view[0]}")
    except _MALFORMED as error:
        _refuse_head(error)


def _rebuild(stream: memoryview, arrays: list[Any]) -> Any:
    if not len(stream):
        return arrays.pop()
    try:
        return pickle.loads(stream, buffers=handed_out(arrays))
    except _BROKEN as error:
        _refuse_stream(error)


def _rebuild_stored(view: memoryview, fds: list[int]) -> Any:
    """Rebuild the object of a message whose body lies in a segment: it is mapped meanwhile."""
    body = None
    try:
        try:
            _, uid, size, offset, kind, table_len, stream_len = STORED_HEAD.unpack_from(view)
            body = attach(uid, size, kind, take_descriptor(fds))
            start = offset - body.offset
            if start < 0:
                raise ValueError(f"its body begins at {start}")
            whole = memoryview(body)
            with whole[start : start + table_len + stream_len] as part:
                stream, arrays = _read_table(part, table_len, stream_len, fds)
        except _MALFORMED as error:
            _refuse_head(error)
        return _rebuild(stream, arrays)
    finally:
        stream = whole = None  # type: ignore[assignment]
        if body is not None:
            release(body)


def _read_alone(view: memoryview, fds: list[int]) -> tuple[memoryview, list[Any]]:
    start = ALONE_HEAD.size
    stop = start + ALONE_HEAD.unpack_from(view)[1]
    uid, size, offset, code, shape, strides = _facts(view[start:stop])
    block = attach(uid, size, VALUE, take_descriptor(fds))
    try:
        offset -= block.offset
        dtype = decode_dtype(code)
        if should_copy_out(block):
            array = _copy_of(block, block.nbytes, offset, dtype, shape, strides)
        else:
            array = block.array(dtype, shape, strides, offset)
    finally:
        release(block)
    return view[stop:], [array]


def _read_table(
    body: memoryview, table_len: int, stream_len: int, fds: list[int]
) -> tuple[memoryview, list[Any]]:
    if table_len + stream_len > len(body):
        raise ValueError(f"it has {len(body)} bytes of {table_len + stream_len}")
    table, pieces = _facts(body[:table_len])
    blocks: list[Any] = []
    try:
        for uid, size, kind in table:
            fd = take_descriptor(fds)
            blocks.append(Descriptor(fd) if kind == FILE else attach(uid, size, kind, fd))
        by_value = [kind not in (SHARED, SEALED, FILE) for _, _, kind in table]
        copy_out = by_value
        if any(by_value):
            copy_out = [v and should_copy_out(b) for v, b in zip(by_value, blocks, strict=True)]
        inline = body[table_len + stream_len :]
        arrays: list[Any] = []
        for segment, offset, code, shape, strides, flags in pieces:
            if segment < INLINE:
                raise IndexError(f"there is no segment {segment}")
            if segment != INLINE and table[segment][2] == FILE:
                arrays.append(blocks[segment])
                continue
            dtype = decode_dtype(code)
            array: Any
            if segment == INLINE:
                array = _copy_of(inline, len(inline), offset, dtype, shape, strides)
            else:
                block = blocks[segment]
                offset -= block.offset
                if by_value[segment] and (copy_out[segment] or _is_small(dtype, shape)):
                    array = _copy_of(block, block.nbytes, offset, dtype, shape, strides)
                else:
                    array = block.array(dtype, shape, strides, offset)
            if flags & READ_ONLY:
                array.flags.writeable = False
            arrays.append(memoryview(array) if flags & RAW else array)
            del array
        arrays.reverse()
        return body[table_len : table_len + stream_len], arrays
    finally:
        for block in blocks:
            release(block)


def _facts(packed: memoryview) -> Any:
    try:
        return marshal.loads(packed)
    except MemoryError as error:  # it names a list that nobody could have sent
        raise ValueError(str(error)) from None


def _copy_of(
    buffer: Any,
    size: int,
    lowest: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
) -> np.ndarray[Any, Any]:
    """Copy an array of a buffer of so many bytes; nobody has looked at the numbers yet."""
    if dtype.hasobject:
        raise ValueError(f"its dtype {dtype} stands for objects of another process")
    if shape is None:  # for NumPy 2.0 an array without dimensions
        raise ValueError("it has no shape")
    if strides is not None and not 0 <= lowest <= size - span(shape, strides, dtype.itemsize):
        raise ValueError(f"an array of shape {shape} and strides {strides} does not lie in {size} bytes")
    return copied(view_of(buffer, lowest, dtype, shape, strides))


def _is_small(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    return nbytes < COPIED_BELOW
