"""Where prints go: what a task prints goes where its caller's standard streams point when it is dispatched.

::

    caller   Streams.look() ── STREAMS, descriptors ──►  worker   Outlets.point()
                                                         worker   Outlets.point((), ()), between two pools

A descriptor may be given another file (``dup2``: pytest's ``capfd``, notebooks, daemons), or ``sys.stdout``
may become another object. One with a file of its own is followed to that file; one without (a ``StringIO``)
stays in the process that has it, and prints of workers go to the descriptor.

Guarantees
----------
- Neither an idle worker nor the process that workers are forked from keeps a file of the caller's open: who
  reads the other end of a pipe sees its end.
- What a task has printed is there before its result, or that of the last task in the same message.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ndshare._system import _wire

_NAMES = ("stdout", "stderr")
_NONE: frozenset[int | str] = frozenset()
_HERE_STREAMS = 16  # in `_wire.here`, behind the directory

#: Where to, in the order of the descriptors: 1 or 2, or a name in `sys` with encoding and errors.
Entries = list[int | tuple[str, str, str | None]]


class Streams:
    """The caller's standard streams."""

    def __init__(self) -> None:
        self._objects: tuple[Any, Any] = (None, None)
        self.files: tuple[tuple[int, int] | None, ...] = (None, None)  # of objects with a file of their own

    def look(self) -> None:
        """See whether ``sys.stdout`` and ``sys.stderr`` have files of their own."""
        if self._objects[0] is not sys.stdout or self._objects[1] is not sys.stderr:
            self._objects = sys.stdout, sys.stderr
            self.files = tuple(_own_file(stream, n) for n, stream in enumerate(self._objects, 1))

    @contextlib.contextmanager
    def lent(self) -> Iterator[tuple[Entries, list[int]]]:
        """Give what they point to as descriptors, which are closed afterwards."""
        entries: Entries = []
        fds: list[int] = []
        try:
            for number in (1, 2):
                if is_open(number):
                    fds.append(os.dup(number))
                    entries.append(number)
            for name, stream, file in zip(_NAMES, self._objects, self.files, strict=True):
                if file is not None:
                    with contextlib.suppress(OSError, ValueError):
                        fds.append(os.dup(stream.fileno()))
                        entries.append((name, stream.encoding, stream.errors))
            yield entries, fds
        finally:
            for fd in fds:
                os.close(fd)


def is_open(number: int) -> bool:
    """Whether a descriptor is that of a standard stream; else anything may have been given its number."""
    if getattr(sys, f"__{_NAMES[number - 1]}__") is None:  # closed when Python started
        return False
    try:
        return os.get_inheritable(number)  # what the program has opened since it closed the stream is not
    except OSError:
        return False


def _own_file(stream: Any, number: int) -> tuple[int, int] | None:
    """Identity of the file of a stream; None if it has none, or that of the descriptor."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        usual = os.fstat(number)
        if (usual.st_dev, usual.st_ino) == (found.st_dev, found.st_ino):
            return None
    return found.st_dev, found.st_ino


# ---------------------------------------------------------------------- in a worker


def flush() -> None:
    """Write what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - after each task: `contextlib.suppress` would take longer than all of it
            stream.flush()
        except Exception:
            pass


class Outlets:
    """Where the standard streams of this process go: nowhere, until it is told."""

    def __init__(self) -> None:
        self._entries: Sequence[Any] = ()
        self._fds: Sequence[int] = ()
        self._made: tuple[Any, ...] = ()

    def point(self, entries: Sequence[Any], fds: Sequence[int], *, keep: bool = False) -> None:
        """Have the standard streams go to these descriptors, which are taken over; the others nowhere.

        With `keep` those stay as they are that an initializer, or a task, has turned somewhere else.
        """
        flush()
        turned = self._turned() if keep and self._made else _NONE
        for fd in self._fds:
            os.close(fd)
        self._entries, self._fds = entries, fds
        self._turn(turned)

    def restore(self) -> bytes:
        """Have them go there again, if a task has turned them somewhere else; return `_wire.here` of then."""
        here = _wire.here()
        if _now(here) == self._made:
            return here
        self._turn(_NONE)
        return _wire.here()

    def _turned(self) -> frozenset[int | str]:
        """Return the descriptors and names of `sys` that somebody else has turned somewhere since."""
        now, made = _now(_wire.here()), self._made
        found: list[int | str] = []
        for number, name in enumerate(_NAMES, 1):
            if _of(now, number) != _of(made, number):
                found += number, name
            elif now[number - 1] is not made[number - 1]:
                found.append(name)
        return frozenset(found)

    def _turn(self, turned: frozenset[int | str]) -> None:
        flush()
        before = self._made
        given = dict(zip(map(_target, self._entries), self._fds, strict=True))
        for number, name in enumerate(_NAMES, 1):
            if number not in turned:
                _point_descriptor(number, given.get(number))
            if name not in turned:
                setattr(sys, name, _usual(name, number))
        for entry in self._entries:
            if not isinstance(entry, int) and entry[0] not in turned:
                name, encoding, errors = entry
                file = io.BufferedWriter(io.FileIO(given[name], "w", closefd=False))
                setattr(sys, name, io.TextIOWrapper(file, encoding, errors, line_buffering=True))
        now = _now(_wire.here())
        streams = [(before if name in turned else now)[number] for number, name in enumerate(_NAMES)]
        files = [_of(before if number in turned else now, number) for number in (1, 2)]
        self._made = (*streams, now[2], b"".join(files))


def _now(here: bytes) -> tuple[Any, ...]:
    closed = getattr(sys.stdout, "closed", True), getattr(sys.stderr, "closed", True)
    return sys.stdout, sys.stderr, closed, here[_HERE_STREAMS:]


def _of(streams: tuple[Any, ...], number: int) -> bytes:
    """Identity of the file of a descriptor, of what `_now` has returned."""
    half = len(streams[3]) // 2
    identity: bytes = streams[3][half * (number - 1) : half * number]
    return identity


def _target(entry: Any) -> Any:
    return entry if isinstance(entry, int) else entry[0]


def _point_descriptor(number: int, fd: int | None) -> None:
    if fd is not None:
        os.dup2(fd, number)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    if nowhere == number:  # a task had closed it
        os.set_inheritable(number, True)
        return
    os.dup2(nowhere, number)
    os.close(nowhere)


def _usual(name: str, number: int) -> Any:
    """Return the stream of a descriptor, as it was at the start of Python; a new one if it was closed."""
    stream = getattr(sys, f"__{name}__")
    if stream is None or stream.closed:
        stream = open(number, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 - it stays
        setattr(sys, f"__{name}__", stream)
    if number == 1:
        with contextlib.suppress(Exception):
            stream.reconfigure(line_buffering=os.isatty(number))
    return stream
