"""Segments of shared memory: what lies between the C heap and everything that moves arrays.

A *segment* is one anonymous file (memfd); a `Block` is a counted reference on a range of it::

    sender                                            receiver
    block = stage(n)  fill it                         block = attach(uid, size, kind, fd)
    fd = block.lend()  ── descriptor with its own ──▶  a = block.array(dtype, shape, strides, offset)
    close(fd)             lock, by sendmsg            block.release()   the array keeps the memory
    block.release()
         │                                            del a  ─▶ the hold is closed
         └── reused once no descriptor holds it ◀──────┘

Guarantees
----------
* The kernel counts the users: what was lent is reused only when nobody holds a descriptor of it,
  whatever died in between. Nothing has a name, so nothing can be left behind.
* Memory that a forked child may still see is not reused while the child lives.
* A request that does not fit raises `CapacityError` before anything is taken.

Not guaranteed
--------------
* Arrays made on a block of `stage` are for filling it: while the `Block` lives a fork does not separate the
  child's view of them from the parent's, as it does for every other by-value array.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from numpy._core.multiarray import get_handler_name

from ndshare._memory import _heap
from ndshare._memory._heap import (
    COPY,
    SEALED,
    SHARED,
    VALUE,
    Block,
    attach,
    available,
    block_of,
    forget_owner,
    idle_limit,
    is_shared,
    ledger_attach,
    ledger_clear,
    ledger_create,
    ledger_detach,
    ledger_held,
    owner_prefix,
    seal,
    set_idle_limit,
    should_copy_out,
    stage,
)
from ndshare._system import require_linux
from ndshare.errors import CapacityError, SegmentError, SegmentGoneError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = [
    "COPY",
    "SEALED",
    "SHARED",
    "VALUE",
    "Block",
    "Stats",
    "allocate",
    "attach",
    "attach_file",
    "available",
    "before_trim",
    "block_of",
    "forget_owner",
    "idle_limit",
    "install_handler",
    "is_shared",
    "ledger_attach",
    "ledger_clear",
    "ledger_create",
    "ledger_detach",
    "ledger_held",
    "owner_prefix",
    "parse_size",
    "recycled_memory",
    "seal",
    "set_idle_limit",
    "shared_memory",
    "should_copy_out",
    "sparse",
    "stage",
    "stats",
    "trim",
    "value_handler",
]

_LIMIT = "NDSHARE_MEMORY_LIMIT"
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(?:i?B)?\s*", re.ASCII | re.IGNORECASE)
_POWERS = ("", "K", "M", "G", "T")


def parse_size(text: str, what: str) -> int:
    """Return the bytes of a size like ``300M`` or ``1.5G``; K, M, G and T are powers of 1024.

    Raises
    ------
    ValueError
        If it is none; `what` says whose size it is.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{what} is {text!r}; allowed is a number of bytes, with decimals and K, M, G or T "
            "(powers of 1024), such as 300M or 1.5G; correct it"
        )
    number, unit = found.groups()
    whole, _, part = number.partition(".")
    return (int(whole + part) << 10 * _POWERS.index(unit.upper())) // int("1" + "0" * len(part))


require_linux()
_heap.configure(CapacityError, SegmentError, SegmentGoneError)
# Read once: another thread may be changing the environment when memory is asked for.
if _limit := os.environ.get(_LIMIT, ""):
    _heap.set_memory_limit(parse_size(_limit, _LIMIT))


def allocate(nbytes: int, *, zero: bool = False) -> Block:
    """Make a shared block.

    Parameters
    ----------
    nbytes : int
        Size in bytes. Up to 1 MiB many blocks share one segment.
    zero : bool
        Whether the memory must be zero; fresh pages are anyway, recycled ones are cleared.

    Raises
    ------
    CapacityError
        If it does not fit into the memory this process may use.
    SegmentError
        If the system refuses for another reason, such as too many open files.
    """
    return _heap.allocate(nbytes, zero)


def sparse(nbytes: int, *, filled: bool) -> Block:
    """Make a block of shared memory that takes none until it is written to.

    Parameters
    ----------
    nbytes : int
        Its size.
    filled : bool
        Whether all of it will be.

    Raises
    ------
    CapacityError
        If that does not fit.
    """
    if filled and (room := available())[0] < nbytes:
        raise CapacityError(nbytes, *room)
    fd = os.memfd_create("ndshare-sparse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = max(-(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return attach_file(fd, size)


def attach_file(fd: int, nbytes: int) -> Block:
    """Return a file that no process of ndshare knows yet as shared memory; the descriptor is taken over."""
    return attach(int.from_bytes(os.urandom(8), "little") >> 1, nbytes, SHARED, fd)


before_trim: set[Callable[[], object]] = set()
"""Called by `trim`: whoever keeps memory for others looks whether they have it by now."""


def trim() -> int:
    """Give memory that is kept for the next array back to the system.

    Page: docs/arrays.md.

    Returns
    -------
    int
        How many bytes were given back.

    Notes
    -----
    Never moves or frees memory that an array uses, in any process.
    """
    for look in tuple(before_trim):
        look()
    return _heap.trim()


def install_handler() -> None:
    """Let NumPy take large blocks from by-value segments, in the current context.

    Called once around user code in every worker: what a function returns is then in a segment already
    and can be lent instead of copied. Blocks below 256 KiB come from NumPy's own allocator.
    """
    _heap.set_handler(_heap.make_handler(VALUE))


@functools.cache
def value_handler() -> object:
    """Return NumPy's handler that takes large blocks from by-value segments."""
    return _heap.make_handler(VALUE)


@contextlib.contextmanager
def recycled_memory() -> Iterator[None]:
    """Let NumPy take large blocks from by-value segments for the length of a block.

    Left as it is where memory comes from somewhere else already: in a worker, in `shared_memory`.
    """
    if get_handler_name() != "default_allocator":
        yield
        return
    outer = _heap.set_handler(value_handler())
    try:
        yield
    finally:
        _heap.set_handler(outer)


class shared_memory:  # noqa: N801  -- used like a function, as `contextlib` does
    """Context in which every array NumPy makes is shared, of any size and by whatever code.

    Page: docs/arrays.md.

    Notes
    -----
    The context is that of `contextvars`: a thread started inside does not take part, an asyncio task
    created inside does. (Threads do where the interpreter has them inherit contexts, as without the GIL from
    Python 3.14 on.) Object arrays made inside hold pointers of this process: they travel by value.
    Memory that does not fit is ordinary memory: nothing NumPy asks for is refused.

    Raises
    ------
    RuntimeError
        On leaving it in another order than entered, as two suspended generators can; NumPy's allocator
        is put right all the same once the last of them is left.

    Examples
    --------
    >>> import numpy as np
    >>> import ndshare
    >>> with ndshare.shared_memory():
    ...     a = np.arange(3.0)
    >>> ndshare.is_shared(a), ndshare.is_shared(np.arange(3.0))
    (True, False)
    """

    __slots__ = ("__weakref__", "_entered", "_left", "_outer", "_outer_context", "_own")

    def __init__(self) -> None:
        self._own: object = None
        self._outer: object = None
        self._outer_context: shared_memory | None = None
        self._entered = False
        self._left = False

    def __enter__(self) -> None:
        if self._entered:
            raise RuntimeError("shared_memory(): this object was entered already; make one for each `with`")
        self._entered = True
        self._own = _heap.make_handler(SHARED)
        _contexts[id(self._own)] = self
        self._outer = _heap.set_handler(self._own)
        self._outer_context = _contexts.get(id(self._outer))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        if _heap.current_handler() is not self._own:
            raise RuntimeError(
                "shared_memory() was left in another context than it was entered in, probably by a generator "
                "suspended inside `with`; make the arrays first and yield outside of the `with`"
            )
        # An outer one that was left out of order has put nothing back itself.
        outer, context = self._outer, self._outer_context
        while context is not None and context._left:
            outer, context = context._outer, context._outer_context
        _heap.set_handler(outer)


_contexts: weakref.WeakValueDictionary[int, shared_memory] = weakref.WeakValueDictionary()


_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def readable_bytes(nbytes: int) -> str:
    value = float(nbytes)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


@dataclass(frozen=True, slots=True, repr=False)
class Stats:
    """Shared memory of this process, in bytes and counts.

    Page: docs/arrays.md.

    Attributes
    ----------
    shared_bytes, shared_segments
        Arrays shared by reference that are alive here, read-write.
    sealed_bytes, sealed_segments
        The same, read-only for everybody.
    value_bytes, value_segments
        By-value arrays that lie in segments: arguments and results.
    lent_bytes, lent_segments
        Given up here, and with another process or in flight when last looked at.
    idle_bytes, idle_segments, idle_limit
        Kept warm for the next array, and how much of it is kept at most; `trim` gives it back.
    own_bytes, own_segments
        Pages of all this process made, idle and lent included.
    held_bytes, held_segments
        Pages of other processes' segments in use here, as far as they were looked at.
    cached_bytes, cached_mappings
        The same of segments that are kept mapped though not in use.
    detached_bytes
        Pages of by-value memory that became ordinary memory at a fork, as far as not written to since.
    other_bytes
        Pages of shared memory that is not in segments: SharedDicts, queues, locks, and other libraries'.
    mapped_bytes, proportional_bytes
        All pages of shared memory in the page tables of this process, the five above: each counted whole, or
        divided by the number of processes that have it, as ``Pss_Shmem`` of ``/proc/self/smaps_rollup`` is.
    fresh, recycled, probes
        How many segments were made, how many were reused, how often the kernel was asked.
    available, limit
        How much more fits, and the limit that binds.
    """

    shared_bytes: int
    shared_segments: int
    sealed_bytes: int
    sealed_segments: int
    value_bytes: int
    value_segments: int
    lent_bytes: int
    lent_segments: int
    idle_bytes: int
    idle_segments: int
    idle_limit: int
    own_bytes: int
    own_segments: int
    held_bytes: int
    held_segments: int
    cached_bytes: int
    cached_mappings: int
    detached_bytes: int
    other_bytes: int
    mapped_bytes: int
    proportional_bytes: int
    fresh: int
    recycled: int
    probes: int
    available: int
    limit: str

    def __repr__(self) -> str:
        kept = f"kept warm, at most {readable_bytes(self.idle_limit)}"
        rows = [
            ("shared", self.shared_bytes, self.shared_segments, "read-write"),
            ("sealed", self.sealed_bytes, self.sealed_segments, "read-only for everybody"),
            ("by value", self.value_bytes, self.value_segments, "arguments and results"),
            ("lent", self.lent_bytes, self.lent_segments, "in flight or with another process"),
            ("idle", self.idle_bytes, self.idle_segments, kept),
            ("held", self.held_bytes, self.held_segments, "of other processes, in use here"),
            (
                "kept",
                self.cached_bytes,
                self.cached_mappings,
                "of other processes, for the next message",
            ),
        ]
        lines = [
            f"  {name:<9}{readable_bytes(size):>9} in {count:>5} segment{' ' if count == 1 else 's'}  {note}"
            for name, size, count, note in rows
        ]
        mapped, other = readable_bytes(self.mapped_bytes), readable_bytes(self.other_bytes)
        lines.append(f"  {mapped} are mapped, {other} of them in dicts, queues, locks and by other libraries")
        lines.append(f"  {readable_bytes(self.available)} more would fit; the limit is the {self.limit}")
        return "\n".join(["ndshare, this process:", *lines])


def stats() -> Stats:
    """Say what this process has in shared memory, and which limit binds.

    Page: docs/arrays.md.

    Returns
    -------
    Stats
        Numbers as attributes; its ``repr`` is a short report.

    Notes
    -----
    Every byte that the kernel counts as shared memory of this process is in one of ``own_bytes``,
    ``held_bytes``, ``cached_bytes``, ``detached_bytes`` and ``other_bytes``. The kernel is asked mapping by
    mapping, which takes a few milliseconds.

    Examples
    --------
    >>> import ndshare
    >>> a = ndshare.zeros(1_000_000)
    >>> ndshare.stats().shared_bytes >= a.nbytes
    True
    """
    raw: dict[str, Any] = _heap.stats()
    return Stats(**{field.name: raw[field.name] for field in fields(Stats)})
