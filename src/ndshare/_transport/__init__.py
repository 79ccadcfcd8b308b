"""Door."""

from __future__ import annotations

from ndshare._transport import mainspace
from ndshare._transport.chunks import Bytes, Chunks, Content, parts_of
from ndshare._transport.failures import RemoteTracebackError, pack_failure, portable, with_traceback
from ndshare._transport.freight import (
    BLOCK,
    CARRIED_MAX,
    CONTENT,
    Crate,
    Manifest,
    Piece,
    arrays_of,
    is_zero,
    open_crate,
    open_reply,
    reply,
)
from ndshare._transport.inputs import Inputs
from ndshare._transport.parcel import BARE_TAG, READ_ONLY, close_all
from ndshare._transport.sharing import share
from ndshare._transport.staging import aligned
from ndshare._transport.transport import INLINE_MAX, Draft, Parcel, by_value_modules, pack, pack_plain, unpack

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
    "RemoteTracebackError",
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
    "unpack",
    "with_traceback",
]
