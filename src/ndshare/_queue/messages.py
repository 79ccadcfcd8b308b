"""From an object to what goes through the socket of a queue, and back.

A message is one parcel of `ndshare._transport.transport` behind a head. What it names in ``__main__`` is
looked up by name in the receiver, as with `multiprocessing.Queue`. If the queue has been sent to workers of
ndshare, which do not import the program, definitions of those names go with it, and a receiver that lacks one
takes it from there.

A socket message has room for 253 descriptors: more of them travel inside a socket, their envelope.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
import struct
from typing import Any

from ndshare._pickling import main_namespace
from ndshare._queue.memory import HEAD, NAMED, NAMES, PLAIN
from ndshare._system import _wire
from ndshare._transport import BARE_TAG, Draft, Parcel, close_all, mainspace, pack
from ndshare._transport import unpack as unpack_transport
from ndshare.errors import SegmentError, TransportError, UnsendableGlobalError

FDS_MAX = 250  # per message, below the kernel's 253


class Message:
    """An object that was put, until it is in the socket.

    Attributes
    ----------
    nbytes : int
        What it takes: its pickle and its arrays, those that go by reference included.
    charge : int
        For how many bytes its slot of a bounded queue was taken; -1: it has none.
    is_accepted : bool
        Whether it will be sent, so that its slot is not its caller's any more.
    """

    __slots__ = ("charge", "draft", "is_accepted", "names", "parcel")

    def __init__(self, obj: object, *, define: bool) -> None:
        self.draft: Draft | None = pack(obj)
        self.names = _definitions(self.draft.needs) if define and self.draft.needs else ()
        self.parcel: Parcel | None = None
        self.charge = -1
        self.is_accepted = False

    @classmethod
    def of_stream(cls, stream: bytes, charge: int) -> Message:
        """Return the message that is one pickle and nothing else, for which a slot was taken."""
        made = cls.__new__(cls)
        made.draft, made.names, made.parcel = None, (), Parcel(BARE_TAG + stream)
        made.charge = charge
        made.is_accepted = True
        return made

    @property
    def nbytes(self) -> int:
        return self.draft.nbytes if self.draft is not None else 0

    @property
    def bare(self) -> bytes | None:
        """The pickle, if it is all there is to be sent and short."""
        return None if self.names or self.draft is None else self.draft.bare

    def settle(self) -> None:
        """Copy what has to be copied into segments.

        Raises
        ------
        CapacityError, SegmentError
            If the memory or a descriptor cannot be had; the message is as before.
        """
        if self.draft is not None:
            self.parcel = self.draft.settle()
            self.draft = None

    def detach(self) -> None:
        """Copy it into ordinary memory: as many as there may be of them, they take no descriptors."""
        if self.draft is not None:
            self.draft.detach()

    def lend(self) -> tuple[list[bytes], list[int]]:
        """Return the parts to be sent, without the head, and new descriptors for the caller to close."""
        assert self.parcel is not None
        if not self.names:
            return [self.parcel.data], self.parcel.descriptors()
        known, definitions = self.names
        fds = definitions.descriptors()
        lengths = NAMES.pack(len(known), len(definitions.data), len(fds))
        try:
            fds += self.parcel.descriptors()
        except BaseException:
            close_all(fds)
            raise
        return [lengths, known, definitions.data, self.parcel.data], fds

    def head(self, split: bool) -> bytes:
        """Return the bytes before the parts."""
        return HEAD.pack(NAMED if self.names else PLAIN, split, 0, self.charge >= 0, max(0, self.charge))

    def release(self) -> None:
        """Let go of the memory here; what was sent is the receiver's."""
        if self.parcel is not None:
            self.parcel.release()
        if self.names:
            self.names[1].release()


def _definitions(needs: frozenset[str]) -> tuple[bytes, Parcel] | tuple[()]:
    try:
        draft = mainspace.deliver(needs, {})
        return () if draft is None else ("\n".join(sorted(needs)).encode(), draft.settle())
    except UnsendableGlobalError:
        return ()  # then only who has it can read it


def unpack(received: bytes | tuple[bytes, tuple[int, ...]]) -> Any:
    """Rebuild the object of a message.

    Raises
    ------
    TransportError
        If the message is damaged.
    Exception
        Whatever unpickling raises. The descriptors are closed.
    """
    if isinstance(received, bytes):
        return pickle.loads(received)
    data, received_fds = received
    fds = list(received_fds)
    names, definitions, count, body = _parts(data, fds)
    if names:
        namespace = main_namespace()
        if all(name in namespace for name in names if "." not in name):
            close_all(fds[:count])
        else:
            try:
                with mainspace.gently():
                    unpack_transport(definitions, fds[:count])
            except BaseException:
                close_all(fds[count:])
                raise
    return unpack_transport(body, fds[count:])


def _parts(data: bytes, fds: list[int]) -> tuple[list[str], memoryview, int, memoryview]:
    """Take a message apart: names, the parcel that defines them, its descriptors, the parcel of the object.

    Descriptors that came in an envelope replace it in the list. On any error they are closed.
    """
    try:
        kind, split, *_ = HEAD.unpack_from(data)
        if split:
            if len(fds) != 1:
                raise ValueError
            fds[:] = _opened(fds.pop())
        body = memoryview(data)[HEAD.size :]
        names: list[str] = []
        definitions, count = body[:0], 0
        if kind == NAMED:
            names_len, definitions_len, count = NAMES.unpack_from(body)
            start = NAMES.size + names_len
            names = str(body[NAMES.size : start], "utf-8").split("\n")
            definitions, body = body[start : start + definitions_len], body[start + definitions_len :]
        if kind not in (PLAIN, NAMED) or not body or count > len(fds) or (names and not definitions):
            raise ValueError
    except (struct.error, ValueError):
        close_all(fds)
        raise TransportError(
            "a message of a queue was refused",
            f"its {len(data)} bytes with {len(fds)} descriptors were not put by ndshare",
            "let nobody else write to the sockets of a queue",
        ) from None
    return names, definitions, count, body


def envelope(fds: list[int]) -> int:
    """Return a socket with any number of descriptors in it."""
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with inside:
            for start in range(0, len(fds), FDS_MAX):
                if not _wire.send_message(
                    inside.fileno(), (b"+",), fds[start : start + FDS_MAX], socket.MSG_DONTWAIT
                ):
                    raise BlockingIOError("too many descriptors are in flight")
        return outside.detach()
    except BaseException:
        outside.close()
        raise


def _opened(fd: int) -> list[int]:
    """Return the descriptors in an envelope, which is closed."""
    buffer = bytearray(1)
    found: list[int] = []
    try:
        while (received := _wire.recv_message(fd, buffer, socket.MSG_DONTWAIT)) and received[0]:
            found += received[1]
    except OSError as error:
        close_all(found)
        raise TransportError(
            "a message was refused",
            f"its many arrays could not be received ({os.strerror(error.errno or 0)})",
            "raise the limit of open files (ulimit -n) or keep fewer arrays",
        ) from None
    finally:
        os.close(fd)
    return found


def short_of_files(error: SegmentError) -> bool:
    """Tell whether an error goes away when descriptors are closed."""
    return error.number in (errno.EMFILE, errno.ENFILE)
