"""What travels and how: an object becomes a message with descriptors, and an object again.

::

    pack(obj) ─► Draft ─► settle() ─► Parcel ─► a socket ─► unpack(data, fds) ─► obj      on this machine
    Manifest.crate(recording) ─► Crate ─► a node ─► open_crate(stream, arrays) ─► obj      to another one
    mainspace.deliver(needs, known) ─► Draft ─► … ─► unpack(update)                        names of __main__
    share(obj) ─► its equal in shared memory                                               to oneself

Guarantees
----------
* Shared memory arrives as the same memory, everything else as the receiver's own; no rule depends on size.
* A failure leaves no memory allocated and no descriptor open, at either end.
* What is not a message of ours is refused with a `TransportError`.

Not guaranteed
--------------
* An ordinary array and a view of it arrive as two arrays, as with pickle.
* Messages are of one version of ndshare: both ends must have the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndshare._system import later
from ndshare._transport import mainspace
from ndshare._transport.failures import pack_failure, portable, traceback_of, with_traceback
from ndshare._transport.inputs import Inputs
from ndshare._transport.parcel import BARE_TAG, READ_ONLY, close_all
from ndshare._transport.sharing import share
from ndshare._transport.staging import aligned
from ndshare._transport.transport import INLINE_MAX, Draft, Parcel, by_value_modules, pack, pack_plain, unpack

if TYPE_CHECKING:
    from ndshare._transport.freight import (
        BLOCK,
        CARRIED_MAX,
        CONTENT,
        Bytes,
        Chunks,
        Content,
        Crate,
        Manifest,
        Piece,
        arrays_of,
        is_zero,
        open_crate,
        open_reply,
        parts_of,
        reply,
    )

__all__ = [
    "BARE_TAG",
    "BLOCK",
    "CARRIED_MAX",
    "CONTENT",
    "INLINE_MAX",
    "READ_ONLY",
    "Bytes",
    "Chunks",
    "Content",
    "Crate",
    "Draft",
    "Inputs",
    "Manifest",
    "Parcel",
    "Piece",
    "aligned",
    "arrays_of",
    "by_value_modules",
    "close_all",
    "is_zero",
    "mainspace",
    "open_crate",
    "open_reply",
    "pack",
    "pack_failure",
    "pack_plain",
    "parts_of",
    "portable",
    "reply",
    "share",
    "traceback_of",
    "unpack",
    "with_traceback",
]

# For nodes of a cluster only.
__getattr__ = later(
    __name__,
    {
        "freight": (
            "BLOCK",
            "CARRIED_MAX",
            "CONTENT",
            "Bytes",
            "Chunks",
            "Content",
            "Crate",
            "Manifest",
            "Piece",
            "arrays_of",
            "is_zero",
            "open_crate",
            "open_reply",
            "parts_of",
            "reply",
        ),
    },
)
