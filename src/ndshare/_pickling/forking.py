"""What the picklers of `multiprocessing` can send, and plain pickle cannot: pipes, sockets, registered types.

A program may have registered types of its own with `multiprocessing.reduction.ForkingPickler`; the standard
library's executor sends them so. The ends of pipes and sockets go as open files beside the message, without
the server thread that `multiprocessing` starts for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Container
from typing import Any

from ndshare._pickling.recording import Descriptor

Reduce = Callable[[Any], Any]

_ITS_OWN = frozenset(("multiprocessing.reduction", "multiprocessing.connection", "multiprocessing.managers"))

known: dict[type, Reduce] = {}
"""Its reducers, live, once something has imported it."""


def look() -> None:
    """Find its reducers, if they are there by now."""
    global known
    pickler = getattr(sys.modules.get("multiprocessing.reduction"), "ForkingPickler", None)
    known = getattr(pickler, "_extra_reducers", known)


def reducers(others: Container[type]) -> dict[type, Reduce]:
    """Return the reducers for types that have no other ones.

    Those of torch are left out: they move what is sent into memory that sender and receiver have in common.
    """
    found: dict[type, Reduce] = {}
    for cls, reduce in list(known.items()):
        module = getattr(reduce, "__module__", None)
        if cls not in others and module not in _ITS_OWN and not str(module).startswith("torch."):
            found[cls] = _reduce_ctype if module == "multiprocessing.sharedctypes" else reduce
    for name, kind, of_file in _OF_FILES:
        opened = getattr(sys.modules.get(name), kind, None)
        if opened is not None and opened not in others:
            found[opened] = of_file
    return found


def _reduce_connection(connection: Any) -> Any:
    file = Descriptor(os.dup(connection.fileno()))
    return _make_connection, (type(connection), file, connection.readable, connection.writable)


def _make_connection(cls: Any, file: Descriptor, readable: bool, writable: bool) -> Any:
    return cls(file.take(), readable, writable)


def _reduce_socket(opened: Any) -> Any:
    facts = opened.family, opened.type, opened.proto, opened.gettimeout()
    return _make_socket, (Descriptor(os.dup(opened.fileno())), *facts)


def _make_socket(file: Descriptor, family: int, kind: int, protocol: int, timeout: float | None) -> Any:
    import socket

    made = socket.socket(family, kind, protocol, file.take())
    made.settimeout(timeout)
    return made


def _reduce_ctype(value: Any) -> Any:
    # `multiprocessing` registers the types of ctypes objects that it shares, and refuses all of these types.
    if hasattr(value, "_wrapper"):
        from multiprocessing.context import assert_spawning

        assert_spawning(value)
    return value.__reduce_ex__(5)


_OF_FILES = (
    ("multiprocessing.connection", "Connection", _reduce_connection),
    ("socket", "socket", _reduce_socket),
)
