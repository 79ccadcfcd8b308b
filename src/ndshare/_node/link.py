"""One content, one copy per machine: engine processes of a machine pass each other descriptors.

::

    process A            holder (a thread in one of them)          process B
    find ──────────────► nobody has it: A fetches it
                         B waits ◄──────────────────────────────── find
    offer, descriptor ─► kept while A or B has it ── descriptor ─► maps the same pages

A machine is what has one boot id and one /dev/shm. The holder is whoever could bind the abstract socket of
that name, which belongs to no file: when its process ends, the kernel frees the name, the next one to ask
takes it over, and the others offer anew what they have.

Guarantees
----------
- A content is kept exactly as long as a process has it; nothing has a name in a file system.
- A process that ends, at any instant, leaves nobody waiting: the next one is told to fetch.
- Only processes of the same user are answered, and asked.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Callable, Iterable

from ndshare._system import own_thread

_FIND, _OFFER, _WITHDRAW, _HERE, _FETCH, _TOTAL = range(6)
_MESSAGE = struct.Struct("<B7x16sQQ")  # what, hash, size, uid of the segment
_PEER = struct.Struct("3i")
#: So long a process waits for another one that fetches a content.
_FETCH_S = 20.0
#: Beyond that a holder that does not answer is as good as none.
_ANSWER_S = 5.0

#: Of this process: in the child of a fork they would keep a name, or a content, whose owner has ended.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _begin_in_child() -> None:
    for one in list(_sockets):
        one.close()


os.register_at_fork(after_in_child=_begin_in_child)

Offer = tuple[bytes, int, int, int]  # hash, descriptor, size, uid


def machine_name() -> str:
    """Return the name of this machine's holder, for this user."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"\0ndshare-{os.getuid()}-{boot}-{os.stat('/dev/shm').st_dev}"


def _is_ours(peer: socket.socket) -> bool:
    facts = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(facts)[1]
    return uid == os.getuid()


class _Holder:
    """Keeps descriptors of contents for the processes that have them; a thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._peers: dict[int, socket.socket] = {}
        self._contents: dict[bytes, tuple[int, int, int]] = {}  # descriptor, size, uid
        self._owners: dict[bytes, set[int]] = {}
        self._fetching: dict[bytes, int] = {}  # who fetches it
        self._waiting: list[tuple[int, bytes, float]] = []
        own_thread(self._run, "ndshare-holder").start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            for fd, _ in poll.poll(1000 if self._waiting else None):
                if fd == self._listener.fileno():
                    with contextlib.suppress(OSError):
                        peer, _ = self._listener.accept()
                        if _is_ours(peer):
                            self._peers[peer.fileno()] = peer
                            _sockets.add(peer)
                            poll.register(peer, select.POLLIN)
                        else:
                            peer.close()
                    continue
                if not self._hear(fd):
                    poll.unregister(fd)
                    self._leave(fd)
            self._expire()

    def _hear(self, fd: int) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._peers[fd], _MESSAGE.size, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if len(data) != _MESSAGE.size:
            for one in fds:
                os.close(one)
            return False
        what, digest, size, uid = _MESSAGE.unpack(data)
        if what == _OFFER and fds:
            self._owners.setdefault(digest, set()).add(fd)
            if digest in self._contents:
                os.close(fds[0])
            else:
                self._contents[digest] = fds[0], size, uid
            self._fetching.pop(digest, None)
            self._answer_waiting(digest)
        elif what == _WITHDRAW:
            self._withdraw(fd, digest)
        elif what == _FIND:
            self._find(fd, digest)
        elif what == _TOTAL:
            self._send(fd, _TOTAL, digest)
        return True

    def _find(self, fd: int, digest: bytes) -> None:
        if digest in self._contents:
            self._owners[digest].add(fd)
            self._send(fd, _HERE, digest)
        elif self._fetching.setdefault(digest, fd) == fd:
            self._send(fd, _FETCH, digest)
        else:
            self._waiting.append((fd, digest, time.monotonic() + _FETCH_S))

    def _send(self, fd: int, what: int, digest: bytes) -> None:
        content, size, uid = self._contents.get(digest, (-1, 0, 0))
        if what == _TOTAL:
            size = sum(size for _, size, _ in self._contents.values())
        fds = [content] if what == _HERE else []
        with contextlib.suppress(OSError):  # it has gone; the poll says so
            socket.send_fds(
                self._peers[fd], [_MESSAGE.pack(what, digest, size, uid)], fds, socket.MSG_DONTWAIT
            )

    def _answer_waiting(self, digest: bytes) -> None:
        waiting = [fd for fd, wanted, _ in self._waiting if wanted == digest]
        self._waiting = [entry for entry in self._waiting if entry[1] != digest]
        for fd in waiting:
            self._find(fd, digest)

    def _expire(self) -> None:
        now = time.monotonic()
        late = [entry for entry in self._waiting if entry[2] <= now]
        self._waiting = [entry for entry in self._waiting if entry[2] > now]
        for fd, digest, _ in late:
            self._fetching[digest] = fd
            self._send(fd, _FETCH, digest)

    def _withdraw(self, fd: int, digest: bytes) -> None:
        owners = self._owners.get(digest, set())
        owners.discard(fd)
        if not owners and digest in self._contents:
            os.close(self._contents.pop(digest)[0])
            self._owners.pop(digest, None)

    def _leave(self, fd: int) -> None:
        for digest in list(self._owners):
            self._withdraw(fd, digest)
        self._waiting = [entry for entry in self._waiting if entry[0] != fd]
        orphans = [digest for digest, fetcher in self._fetching.items() if fetcher == fd]
        for digest in orphans:
            del self._fetching[digest]
        self._peers.pop(fd).close()
        for digest in orphans:
            self._answer_waiting(digest)


class Link:
    """One process's connection to the holder of its machine.

    Parameters
    ----------
    mine : callable
        Returns what this process has, for a new holder.
    name : str, optional
        Of the holder; by default that of this machine and user.
    """

    def __init__(self, mine: Callable[[], Iterable[Offer]], name: str | None = None) -> None:
        self._mine = mine
        self._name = name or machine_name()
        self._socket: socket.socket | None = None

    def find(self, digest: bytes) -> tuple[int, int, int] | None:
        """Return descriptor, size and uid of a content; None if this process is to fetch it."""
        what, size, uid, fds = self._ask(_FIND, digest)
        return (fds[0], size, uid) if what == _HERE and fds else None

    def total(self) -> int | None:
        """Return how many bytes the processes of this machine keep together; None if nobody can tell."""
        what, size, _, _ = self._ask(_TOTAL, bytes(16))
        return size if what == _TOTAL else None

    def _ask(self, question: int, digest: bytes) -> tuple[int | None, int, int, list[int]]:
        """Return kind, size, uid and descriptors of the holder's answer; no kind if there is none."""
        for _ in range(3):  # holders may end while they are asked
            link = self._connected()
            if link is None:
                break
            try:
                link.send(_MESSAGE.pack(question, digest, 0, 0))
                link.settimeout(_FETCH_S + _ANSWER_S)
                data, fds, _, _ = socket.recv_fds(link, _MESSAGE.size, 1)
            except OSError:
                self._drop()
                continue
            if len(data) == _MESSAGE.size:
                what, _, size, uid = _MESSAGE.unpack(data)
                return what, size, uid, fds
            self._drop()
        return None, 0, 0, []

    def offer(self, digest: bytes, fd: int, size: int, uid: int) -> None:
        """Let the others of this machine have a content; the descriptor stays the caller's."""
        self._tell(_OFFER, digest, size, uid, [fd])

    def withdraw(self, digest: bytes) -> None:
        """Say that this process has let go of a content."""
        self._tell(_WITHDRAW, digest, 0, 0, [])

    def _tell(self, what: int, digest: bytes, size: int, uid: int, fds: list[int]) -> None:
        link = self._connected()
        if link is not None:
            try:
                socket.send_fds(link, [_MESSAGE.pack(what, digest, size, uid)], fds)
            except OSError:
                self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket | None:
        """Return the connection; made anew, with a new holder, if the last one has ended."""
        if self._socket is not None:
            return self._socket
        for _ in range(3):
            link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                link.settimeout(_ANSWER_S)
                link.connect(self._name)
                if not _is_ours(link):
                    raise PermissionError
                for digest, fd, size, uid in self._mine():
                    try:
                        socket.send_fds(link, [_MESSAGE.pack(_OFFER, digest, size, uid)], [fd])
                    finally:
                        os.close(fd)
            except ConnectionRefusedError:
                link.close()
                self._hold()
                continue
            except OSError:
                link.close()
                return None
            self._socket = link
            _sockets.add(link)
            return link
        return None

    def _hold(self) -> None:
        """Become the holder, unless another process was faster."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(self._name)
            listener.listen(64)
        except OSError:
            listener.close()
            return
        _sockets.add(listener)
        _Holder(listener)
