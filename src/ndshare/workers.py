"""Worker processes as their caller sees them, and the set of them that a process has.

::

    Crew ── zygotes, by what must be set before they start
      └──── workers: leased by a pool, or idle and warm for the next one

Workers without an initializer, environment or task limit of their own are *shared*: a pool that ends
gives them back warm. `shutdown` ends them and the zygotes; the next use starts them again.
"""

from __future__ import annotations

import atexit
import collections
import errno
import functools
import itertools
import marshal
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ndshare import _frames as frames
from ndshare import _wire, _zygote, segments
from ndshare._caller_state import CallerState
from ndshare._launcher import Zygote, ZygoteSpec
from ndshare.hub import Hub, Todo

if TYPE_CHECKING:
    from ndshare.pool import Pool
    from ndshare.tasks import Task

#: An idle shared worker ends after this time.
_IDLE_S = 300.0
#: Slots in the ledger of memory that is about to be allocated.
_LEDGER_SLOTS = 1024
#: How often to try and make room for the last words of a dead worker.
_DRAIN_TRIES = 20
#: What the socket buffers are set to where the system allows; the usual default is 208 kB.
_SOCKET_BYTES = 1 << 20


#: A task, the status, the payload and the descriptors of its result.
Answer = tuple["Task", int, bytes, tuple[int, ...]]


class WorkerGoneError(Exception):
    """A message could not be sent because the worker has ended; its death is reported by the zygote."""


class Worker:
    """One worker process: its socket, its row on a board, what it was sent and has not answered."""

    def __init__(self, crew: Crew, zygote: Zygote, overlay: dict[str, str], idle_limit: int) -> None:
        self.crew = crew
        self.zygote = zygote
        self.id = next(crew.ids)
        self.pool: Pool | None = None
        self.inflight: dict[int, Task] = {}
        self.next_seq = 0
        self.sending = False
        self.batch = 1  # tasks in the last message
        self.sent = 0  # tasks in all
        self.proved = False  # it has answered something
        self.leaving = False
        self.gone = False
        self.known_main: dict[str, object] = {}
        self.functions: set[int] = set()  # tokens of what it has been sent
        self.stale: list[int] = []  # those it can forget
        self.state_version: tuple[int, int, bool] | None = None
        self.overlay = overlay
        self.sources: list[tuple[str, int]] = []
        self.idle_since = 0.0
        self._early_fds: tuple[int, ...] = ()
        self._heard: list[Any] = []
        self.board, self.row, board_fd, self._give_row_back = crew.row()
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (self.socket, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            options = {
                "row": self.row // frames.ROW_BYTES,
                "ledger_slot": self.id % (_LEDGER_SLOTS - 1) + 1,
                "overlay": overlay,
                "idle_limit": idle_limit,
            }
            try:
                zygote.spawn(self.id, options, (theirs.fileno(), board_fd, crew.ledger))
            except BaseException:
                self.socket.close()
                self._give_row_back()
                raise
        crew.workers[self.id] = self
        crew.hub.listen(self)

    def fileno(self) -> int:
        """Descriptor of its socket."""
        return self.socket.fileno()

    @property
    def pid(self) -> int:
        """Its process number; 0 before it runs."""
        return _wire.load_u64(self.board, self.row + frames.PID_AT)

    # ------------------------------------------------------------------ sending

    def send(self, parts: Sequence[bytes], fds: Sequence[int] = ()) -> None:
        """Send one message; descriptors stay the caller's. Waits while the socket is full."""
        while len(fds) > frames.FDS_MAX:
            self.send([frames.HEAD.pack(frames.FDS, 0, 0, 0, 0.0)], fds[: frames.FDS_MAX])
            fds = fds[frames.FDS_MAX :]
        try:
            while not _wire.send_message(self.socket.fileno(), parts, fds, socket.MSG_DONTWAIT):
                self._wait_for_room()
        except (OSError, ValueError) as error:
            self.leaving = True
            raise WorkerGoneError(str(error)) from error

    def _wait_for_room(self) -> None:
        """Wait until the socket takes more; read meanwhile, as the worker may be waiting for that."""
        opening = _wire.window()
        try:
            poll = select.poll()
            poll.register(self.socket, select.POLLOUT | select.POLLIN)
            events = poll.poll(20)
            if not events or not events[0][1] & select.POLLIN:
                time.sleep(0.0005)  # there is room, but too many descriptors are in flight
        except BaseException:  # Ctrl-C: half of a message may be in the socket
            self.leaving = True
            self.signal(signal.SIGKILL)
            raise
        finally:
            _wire.curtain(opening)
        if self.crew.hub.hears(self):
            self.crew.hub.read(self)

    def next_task(self) -> int:
        """Number of a new task; its byte on the board says that nobody has taken it."""
        seq = self.next_seq
        self.next_seq = (seq + 1) & 0xFFFFFFFF
        self.board[frames.cell(self.row, seq)] = frames.PENDING
        return seq

    def take_back(self, seq: int) -> bool:
        """Take a task back that the worker has not begun."""
        return _wire.cas_u8(self.board, frames.cell(self.row, seq), frames.PENDING, frames.REVOKED)

    def signal(self, number: int) -> None:
        """Send it a signal, through the zygote that knows whether it is still there."""
        self.zygote.kill(self.id, number)

    # ------------------------------------------------------------------ receiving

    def on_ready(self, done: Todo) -> None:
        """Read its messages (under the hub's lock)."""
        heard = self._heard
        ended = _wire.recv_answers(self.socket.fileno(), self.crew.buffer, 64, heard)
        answers: collections.deque[Answer] = collections.deque()
        for kind, status, seq, seconds, body, fds in heard:
            if self._early_fds:
                fds, self._early_fds = self._early_fds + fds, ()
            if kind == frames.RESULT:
                # Appended before it is taken off the books, and looked for first: Ctrl-C may strike anywhere
                # here, and then all of this is done again.
                if (task := self.inflight.get(seq)) is not None:
                    answers.append((task, status, body, fds))
                    self.pool.took(seconds)  # type: ignore[union-attr]  # it has one as long as tasks are in flight
                    del self.inflight[seq]
            elif kind == frames.FDS:
                self._early_fds = fds
            elif kind == frames.INITIALIZED:
                self.pool.on_initialized(self, status, body, fds, done)  # type: ignore[union-attr]  # the same
            elif kind == frames.SOURCES:
                self.sources = marshal.loads(body)
            self.proved = True
        if answers and self.pool is not None:
            self.pool.offer(self)
            done.append(self.pool.pump)  # first the next task, then the last results
            done.append(functools.partial(self.pool.resolve, self, answers))
        heard.clear()
        if ended == errno.EMFILE:  # the next message waits in the socket until there is room
            done.append(_make_room)
        elif ended not in {0, errno.EAGAIN}:  # it ended, or closed its socket: then it is of no use
            self.crew.hub.ignore(self)
            self.signal(signal.SIGKILL)

    def drain(self, done: Todo) -> None:
        """Read all that a dead worker left in its socket (under the hub's lock)."""
        patience = _DRAIN_TRIES
        while self.crew.hub.hears(self):
            before = len(done)
            self.on_ready(done)
            if len(done) == before:
                return
            if done[-1] is _make_room:  # what is left needs descriptors that this process lacks
                done.pop()
                _make_room()
                patience -= 1
                if not patience:
                    return  # lost: the tasks fail with the worker

    def close(self) -> None:
        """Give its descriptors and its row back; put off while a thread is sending to it."""
        if self.sending:
            self.gone = True
            return
        self.crew.hub.ignore(self)
        self.socket.close()
        self._give_row_back()
        for fd in self._early_fds:
            os.close(fd)

    # ------------------------------------------------------------------ between pools

    def quit(self) -> None:
        """Ask it to end after what it has been sent."""
        self.leaving = True
        with suppress(WorkerGoneError):
            self.send([frames.HEAD.pack(frames.QUIT, 0, 0, 0, 0.0)])

    def outdated(self) -> bool:
        """Whether a source file that it has imported has changed since."""
        for path, mtime in self.sources:
            try:
                if os.stat(path).st_mtime_ns != mtime:
                    return True
            except OSError:
                return True
        return False


def _make_room() -> None:
    segments.trim()
    time.sleep(0.005)


class Crew:
    """All workers and zygotes of this process."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.ids: Iterator[int] = itertools.count(1)
        self.tokens: Iterator[int] = itertools.count(1)
        self.state = CallerState()
        self.zygotes: dict[ZygoteSpec, _Ear] = {}
        self.workers: dict[int, Worker] = {}
        self.idle: list[Worker] = []
        self.pools: set[Pool] = set()
        self.buffer = bytearray(frames.BUFFER_BYTES)
        self.ledger = segments.ledger_create(_LEDGER_SLOTS)
        segments.ledger_attach(self.ledger, 0)
        self.hub.flush = self._flush
        self._boards: list[tuple[int, mmap.mmap]] = []
        self._rows: list[tuple[int, int]] = []
        self.hub.start()

    def _flush(self) -> None:
        for pool in list(self.pools):
            if pool.held:
                pool.pump()

    # ------------------------------------------------------------------ boards

    def row(self) -> tuple[mmap.mmap, int, int, Callable[[], None]]:
        """A free row: its board, its offset there, the board's descriptor, how to give it back."""
        if not self._rows:
            fd = os.memfd_create("ndshare-board", os.MFD_CLOEXEC)
            os.ftruncate(fd, frames.BOARD_ROWS * frames.ROW_BYTES)
            self._boards.append((fd, mmap.mmap(fd, frames.BOARD_ROWS * frames.ROW_BYTES)))
            self._rows = [
                (len(self._boards) - 1, n * frames.ROW_BYTES) for n in reversed(range(frames.BOARD_ROWS))
            ]
        which, offset = self._rows.pop()
        fd, board = self._boards[which]
        _wire.store_u64(board, offset + frames.OWNER_AT, 0)
        _wire.store_u64(board, offset + frames.PID_AT, 0)
        return board, offset, fd, lambda: self._rows.append((which, offset))

    # ------------------------------------------------------------------ leasing

    def lease(self, pool: Pool, overlay: dict[str, str]) -> Worker:
        """Get a worker for a pool: a warm one, or a new one (under the hub's lock)."""
        worker = None
        while not pool.own and self.idle:
            worker = self.idle.pop()
            if not worker.outdated():
                break
            worker.quit()
            worker = None
        if worker is None:
            worker = self._spawn(ZygoteSpec.of(overlay, pool.preload), overlay, pool.idle_limit)
        worker.pool = pool
        worker.sent = 0
        worker.state_version = None
        worker.overlay = overlay
        return worker

    def release(self, worker: Worker) -> None:
        """Take a worker back from its pool (under the hub's lock)."""
        own = worker.pool is not None and worker.pool.own
        worker.pool = None
        if worker.leaving:
            return
        if own or not worker.proved:
            worker.quit()
            return
        worker.idle_since = time.monotonic()
        worker.functions.clear()
        worker.stale.clear()
        with suppress(WorkerGoneError):
            worker.send([frames.HEAD.pack(frames.SOURCES, 0, 0, 0, 0.0)])
        self.idle.append(worker)
        self.hub.later(_IDLE_S + 1, self._reap)

    def _reap(self) -> None:
        limit = time.monotonic() - _IDLE_S
        with self.hub.lock:
            for worker in [w for w in self.idle if w.idle_since < limit]:
                self.idle.remove(worker)
                worker.quit()

    def _spawn(self, spec: ZygoteSpec, overlay: dict[str, str], idle_limit: int) -> Worker:
        """Start a worker, and its zygote if there is none or somebody has just killed it."""
        ear = self.zygotes.get(spec)
        if ear is not None:
            try:
                return Worker(self, ear.zygote, overlay, idle_limit)
            except ConnectionError:
                todo: Todo = collections.deque()
                self.on_zygote_end(ear, todo)
                for action in todo:
                    self.hub.put_off(action)
        ear = self.zygotes[spec] = _Ear(self, Zygote(spec))
        self.hub.listen(ear)
        return Worker(self, ear.zygote, overlay, idle_limit)

    # ------------------------------------------------------------------ deaths

    def on_exit(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """A worker's process has ended (under the hub's lock)."""
        worker.drain(done)
        del self.workers[worker.id]
        segments.forget_owner(_wire.load_u64(worker.board, worker.row + frames.OWNER_AT))
        segments.ledger_clear(worker.id % (_LEDGER_SLOTS - 1) + 1)
        if worker in self.idle:
            self.idle.remove(worker)
        if worker.pool is not None:
            worker.pool.on_death(worker, pid, code, peak, done)
        worker.close()

    def on_zygote_end(self, ear: _Ear, done: Todo) -> None:
        """A zygote has ended, and its workers with it (under the hub's lock)."""
        self.hub.ignore(ear)
        if self.zygotes.get(ear.zygote.spec) is ear:
            del self.zygotes[ear.zygote.spec]
        ear.zygote.close()
        for worker in [w for w in self.workers.values() if w.zygote is ear.zygote]:
            self.on_exit(worker, worker.pid, None, 0, done)

    # ------------------------------------------------------------------ the end

    def close(self, *, ended_by_interrupt: bool = False) -> None:
        """Let all pools finish what they have begun, then end every worker and zygote.

        What Ctrl-C has interrupted is not finished: the interpreter shall end.
        """
        for pool in list(self.pools):
            interrupted = pool.interrupted or ended_by_interrupt
            if interrupted:
                pool.interrupt()
            pool.shutdown(wait=True, cancel=interrupted)
        with self.hub.lock:
            for worker in self.workers.values():
                self.hub.ignore(worker)
                worker.quit()
            ears = list(self.zygotes.values())
            self.zygotes.clear()
            for ear in ears:
                self.hub.ignore(ear)
        for ear in ears:
            ear.zygote.close()
        with self.hub.lock:
            for worker in list(self.workers.values()):
                worker.close()
            self.workers.clear()
            self.idle.clear()
        self.hub.close()
        self._close_boards()

    def _close_boards(self) -> None:
        for fd, board in self._boards:
            os.close(fd)
            with suppress(BufferError):
                board.close()
        self._boards.clear()
        os.close(self.ledger)
        segments.ledger_detach()

    def forget(self) -> None:
        """In a forked child: close what belongs to the parent, without a word to anybody."""
        for ear in self.zygotes.values():
            ear.zygote.forget()
        for worker in self.workers.values():
            worker.socket.close()
        self._close_boards()
        self.hub.forget()


class _Ear:
    """Hears a zygote for the crew."""

    def __init__(self, crew: Crew, zygote: Zygote) -> None:
        self.crew = crew
        self.zygote = zygote

    def fileno(self) -> int:
        return self.zygote.fileno()

    def on_ready(self, done: Todo) -> None:
        for message in self.zygote.read():
            if not message:
                self.crew.on_zygote_end(self, done)
            elif (worker := self.crew.workers.get(message[1])) is None:
                continue
            elif message[0] == _zygote.EXITED:
                self.crew.on_exit(worker, message[2], message[3], message[4], done)
            elif message[0] == _zygote.FAILED:
                self.crew.on_exit(worker, 0, None, 0, done)


_crew: Crew | None = None
_crew_lock = threading.Lock()
_registered = False


def crew() -> Crew:
    """The crew of this process, made when first asked for."""
    global _crew, _registered
    with _crew_lock:
        if _crew is None:
            _crew = Crew()
            if not _registered:
                _registered = True
                os.register_at_fork(after_in_child=_after_fork_in_child)
                atexit.register(_at_exit)
        return _crew


def shutdown() -> None:
    """End the shared workers and the process they are forked from.

    Executors that are still open finish what was submitted to them first, and are shut down. The next
    use of ndshare starts new workers. Without effect if none are running. Arrays stay valid.

    Examples
    --------
    >>> import ndshare
    >>> ndshare.shutdown()
    """
    _end(ended_by_interrupt=False)


def _at_exit() -> None:
    # Set when an error ends a script: a script that Ctrl-C has ended does not want its queue to be computed.
    _end(ended_by_interrupt=getattr(sys, "last_type", None) is KeyboardInterrupt)


def _end(*, ended_by_interrupt: bool) -> None:
    global _crew
    with _crew_lock:
        crew, _crew = _crew, None
    if crew is not None:
        crew.close(ended_by_interrupt=ended_by_interrupt)


def _after_fork_in_child() -> None:
    global _crew, _crew_lock
    _crew_lock = threading.Lock()
    crew, _crew = _crew, None
    if crew is not None:
        crew.forget()
