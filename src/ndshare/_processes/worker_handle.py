"""A worker process as its caller sees it: socket, row on a board, what it was sent and has not answered.

A worker is leased by a `Pool`, and one of many at a `Home`; both are known here by what is asked of them.
Nothing here looks into a task.
"""

from __future__ import annotations

import collections
import errno
import functools
import marshal
import mmap
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from typing import Any, Protocol

from ndshare._memory import trim
from ndshare._processes import family, frames, records
from ndshare._processes.hub import Hub, Todo
from ndshare._processes.launcher import Zygote
from ndshare._processes.modules import Source, loaded
from ndshare._processes.surroundings import CallerState
from ndshare._system import _wire
from ndshare._transport import close_all

#: Slots in the ledger of memory that is about to be allocated.
LEDGER_SLOTS = 1024
#: A warm worker that does not say within this time that it is as a new one would be is not used again.
_REST_MS = 200
#: How often to try and make room for the last words of a dead worker.
_DRAIN_TRIES = 20
#: What the socket buffers are set to where the system allows; the usual default is 208 kB.
_SOCKET_BYTES = 1 << 20
_SEQ_MASK = 0xFFFFFFFF  # of the numbers of tasks
_SPARE_CELLS = 128  # of the board, for what is sent to a worker that has tasks unread which were taken back
_BEGUN = frozenset({frames.STARTED, frames.INTERRUPTED, frames.ANSWERED, frames.KILLED})


#: A task, the status, the payload and the descriptors of its result.
Answer = tuple[Any, int, bytes, tuple[int, ...]]


class Settings(Protocol):
    """What a pool wants its workers to be like."""

    @property
    def own(self) -> bool:
        """Whether they are of no use to other pools."""

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that they import before the first task."""

    @property
    def idle_limit(self) -> int:
        """Bytes of idle memory that each may keep."""

    @property
    def start(self) -> str:
        """Where they come from: "clean", "fork" or "auto"."""


class Roster(Protocol):
    """Who works for a pool."""

    def took(self, seconds: float) -> None:
        """Note how long a task took."""

    def offer(self, worker: Worker) -> None:
        """Note that a worker can take more."""


class Recorder(Protocol):
    """Who notes what tasks took."""

    def note(self, worker: Worker, task: Any, seconds: float, *, ok: bool) -> None:
        """Note that a task has been answered."""


class Pool(Protocol):
    """Who leases workers, and hears what they say."""

    @property
    def recorder(self) -> Recorder | None:
        """Who notes what tasks took; None: nobody."""

    closed: bool
    told: set[bytes]
    interrupted: bool
    held: bool
    killed: int
    pending: int

    @property
    def settings(self) -> Settings:
        """What its workers must be like."""

    @property
    def inherited(self) -> int:
        """The number of what its workers inherit from the program; 0 if they come from a clean process."""

    @property
    def roster(self) -> Roster:
        """Its workers."""

    @property
    def queue(self) -> Sized:
        """Tasks that wait."""

    def pump(self) -> None:
        """Send as much as the workers can take."""

    def resolve(self, worker: Worker, answers: collections.deque[Answer]) -> None:
        """Take results, in their order, out of `answers`."""

    def answer(self, worker: Worker, name: str) -> None:
        """Send a worker a name of ``__main__`` that its task looks up."""

    def on_initialized(
        self, worker: Worker, status: int, body: bytes, fds: tuple[int, ...], done: Todo
    ) -> None:
        """Hear how a worker's initializer went (under the hub's lock)."""

    def on_death(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """Hear that a worker has ended (under the hub's lock)."""

    def interrupt(self) -> None:
        """Stop what runs."""

    def shutdown(self, *, wait: bool, cancel: bool) -> bool:
        """Take no more tasks, and let the workers go after the last one; returns whether they have gone."""


class Home(Protocol):
    """Where a worker belongs, whoever leases it."""

    @property
    def hub(self) -> Hub:
        """Hears it."""

    @property
    def state(self) -> CallerState:
        """What workers are to be like."""

    @property
    def ids(self) -> Iterator[int]:
        """Gives it its number."""

    @property
    def workers(self) -> dict[int, Worker]:
        """All that are there, by number."""

    @property
    def buffer(self) -> bytearray:
        """Takes messages, under the hub's lock."""

    @property
    def ledger(self) -> int:
        """Descriptor of the ledger of memory that is about to be allocated."""

    def row(self) -> tuple[mmap.mmap, int, int, Callable[[], None]]:
        """Return a free row: its board, its offset there, the board's descriptor, how to give it back."""


class WorkerGoneError(Exception):
    """A message could not be sent because the worker has ended; its death is reported by the zygote."""


class Worker:
    """One worker process: its socket, its row on a board, what it was sent and has not answered."""

    def __init__(self, crew: Home, zygote: Zygote, overlay: dict[str, str], idle_limit: int) -> None:
        self.crew = crew
        self.zygote = zygote
        self.id = next(crew.ids)
        self.pool: Pool | None = None
        self.inflight: dict[int, Any] = {}  # tasks by their number
        self.next_seq = 0
        self.sending = False
        self.batch = 1  # tasks in the last message
        self.sent = 0  # tasks in all
        self.proved = False  # it has answered something
        self.leaving = False
        self.gone = False
        self.exitcode: int | None = None  # once it has ended, if that is known
        self.known_main: dict[str, object] = {}
        self.asked: frozenset[str] = frozenset()  # names of `__main__` that its tasks have looked up
        self.functions: set[int] = set()  # tokens of what it has been sent
        self.stale: list[int] = []  # those it can forget
        self.state_version: tuple[int, int, bool] | None = None
        self.overlay = overlay
        self.number = 0  # among those of its pool
        self.sources: list[Source] = []
        self.generation = loaded.generation()  # of the caller's modules when it was started or looked at
        self.outdated = False  # it is to end after what it has begun
        self.resting = False  # it has been asked to, and has not answered
        self.as_new = True  # what its tasks have left could be put back
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
                "ledger_slot": self.ledger_slot,
                "overlay": overlay,
                "idle_limit": idle_limit,
                "threads": zygote.threads,
                "inherited": zygote.spec.inherited,
                "description": family.described(),
            }
            try:
                with crew.state.streams.lent() as (entries, fds):
                    options["streams"] = entries
                    zygote.spawn(self.id, options, (theirs.fileno(), board_fd, crew.ledger, *fds))
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

    @property
    def ledger_slot(self) -> int:
        """Its line in the ledger of memory; the first one is this process's own."""
        return self.id % (LEDGER_SLOTS - 1) + 1

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
        self.next_seq = (seq + 1) & _SEQ_MASK
        self.board[frames.cell(self.row, seq)] = frames.PENDING
        return seq

    def take_back(self, seq: int) -> bool:
        """Take a task back that the worker has not begun."""
        return _wire.cas_u8(self.board, frames.cell(self.row, seq), frames.PENDING, frames.REVOKED)

    def recall(self, seq: int) -> bool:
        """Take a task back to give it to another worker, or to nobody.

        Refused while so many lie in its socket, unread, that their bytes on the board would be needed again:
        of a worker that has begun something else the roster sees to it that it does not come so far.
        """
        return self.unread < frames.CELLS - _SPARE_CELLS and self.take_back(seq)

    @property
    def unread(self) -> int:
        """How many tasks it was sent that it has not looked at, those included that were taken back."""
        return (self.next_seq - _wire.load_u64(self.board, self.row + frames.SEEN_AT)) & _SEQ_MASK

    def runs(self, seq: int) -> bool:
        """Whether it has begun a task that it has not answered."""
        return self.board[frames.cell(self.row, seq)] in _BEGUN

    def began(self, seq: int) -> float | None:
        """When it began a task that it has not answered, as of `time.monotonic`; None if it has not."""
        if not self.runs(seq) or _wire.load_u64(self.board, self.row + frames.SEEN_AT) != seq + 1:
            return None
        return _wire.load_u64(self.board, self.row + frames.BEGAN_AT) / 1e9

    def kill(self, seq: int) -> bool:
        """End it by SIGKILL, if it still is at that task (under the hub's lock); False if it is not.

        What else it was sent it does not begin any more.
        """
        cell = frames.cell(self.row, seq)
        for state in (frames.STARTED, frames.INTERRUPTED):  # in the order in which it changes
            if _wire.cas_u8(self.board, cell, state, frames.KILLED):
                self.leaving = True
                self.signal(signal.SIGKILL)
                return True
        return False

    def interrupt(self, seq: int) -> None:
        """Stop a task that the worker has begun or is to begin; another one is not hit."""
        cell = frames.cell(self.row, seq)
        for state in (frames.PENDING, frames.STARTED):  # in the order in which it changes
            _wire.cas_u8(self.board, cell, state, frames.INTERRUPTED)
        self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """Send it a signal, through the zygote that knows whether it is still there."""
        self.zygote.kill(self.id, number)

    def bring_here(self) -> None:
        """Have it begin on the processor of the calling thread, which is the one that sends to it.

        The kernel looks for an idle processor when it wakes a process. The one of a caller that is about to
        wait is not idle yet, so the worker is put behind another one, and stays there for up to some ticks of
        4 ms: the first half of a short map. To the caller's processor it goes if it may go nowhere else at
        that moment::

            caller: narrow its affinity, send PLACED ──► worker wakes here, widens it again ──► TASKS

        The worker has its affinity back before it looks at a task: no code of a user's, nor a thread or a
        process that this starts, ever has the narrow one. A worker that may not run here, or nowhere else, is
        left alone.
        """
        pid = self.pid
        if not pid or not self.proved:  # it may still be importing what starts threads
            return
        processor = _wire.processor()
        with suppress(OSError, WorkerGoneError):  # it has ended; the system does not allow it
            allowed = os.sched_getaffinity(pid)
            if len(allowed) < 2 or processor not in allowed:
                return
            os.sched_setaffinity(pid, {processor})
            self.send([frames.HEAD.pack(frames.PLACED, 0, 0, 0, 0.0), marshal.dumps(sorted(allowed))])

    # ------------------------------------------------------------------ receiving

    def on_ready(self, done: Todo) -> None:
        """Read its messages (under the hub's lock)."""
        heard = self._heard
        ended = _wire.recv_answers(self.socket.fileno(), self.crew.buffer, 64, heard)
        answers: collections.deque[Answer] = collections.deque()
        for kind, status, seq, seconds, body, fds in heard:
            if kind == frames.LOG:  # may come between descriptors and the message they belong to
                if self.pool is None or records.is_news(body, self.pool.told):
                    records.waiting.append(body)
                    done.append(records.handle_waiting)
                continue
            if kind == frames.ASK:
                pool = self.pool
                question = bytes(body).decode()
                done.append(
                    self._say_nothing if pool is None else functools.partial(pool.answer, self, question)
                )
                continue
            if kind == frames.TRACKER:
                done.append(functools.partial(family.lend_tracker, *fds))
                continue
            if self._early_fds:
                fds, self._early_fds = self._early_fds + fds, ()
            if kind == frames.RESULT:
                if (task := self.inflight.get(seq)) is not None:
                    answers.append((task, status, body, fds))
                    mine: Pool = self.pool  # type: ignore[assignment]  # it has one as long as tasks are in flight
                    mine.roster.took(seconds)
                    if mine.recorder is not None:
                        mine.recorder.note(self, task, seconds, ok=status == frames.OK)
                    del self.inflight[seq]
            elif kind == frames.FDS:
                self._early_fds = fds
            elif kind == frames.INITIALIZED:
                if self.pool is None:  # which did not wait for it
                    close_all(fds)
                else:
                    self.pool.on_initialized(self, status, body, fds, done)
            elif kind == frames.RESTED:
                self.as_new, self.sources = marshal.loads(body)
                self.resting = False
            self.proved = True
        if answers and (pool := self.pool) is not None:
            pool.roster.offer(self)
            if pool.queue or pool.pending - len(answers) > 1 or pool.closed:
                done.append(pool.pump)  # first the next task, then the last results
            done.append(functools.partial(pool.resolve, self, answers))
        heard.clear()
        if ended == errno.EMFILE:  # the next message waits in the socket until there is room
            done.append(_make_room)
        elif ended not in {0, errno.EAGAIN}:  # it ended, or closed its socket: then it is of no use
            self.crew.hub.ignore(self)
            self.signal(signal.SIGKILL)

    def _say_nothing(self) -> None:
        """Answer that there is no such name: whose it was does not wait for the worker any more."""
        with suppress(WorkerGoneError):
            self.send([frames.HEAD.pack(frames.MAIN, 0, 1, 0, 0.0)])

    def drain(self, done: Todo) -> None:
        """Read all that a dead worker left in its socket (under the hub's lock)."""
        patience = _DRAIN_TRIES
        while self.crew.hub.hears(self):
            heard: Todo = collections.deque()  # of its own: other threads empty the hub's without the lock
            self.on_ready(heard)
            if heard and heard[-1] is _make_room:  # what is left needs descriptors that this process lacks
                heard.pop()
                _make_room()
                patience -= 1
            elif not heard:
                return
            done.extend(heard)
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

    def rest(self) -> None:
        """Have it put back what tasks have left, and say which source files it has loaded."""
        self.resting = True
        with suppress(WorkerGoneError):
            self.send([frames.HEAD.pack(frames.REST, 0, 0, 0, 0.0)])

    def is_rested(self) -> bool:
        """Whether it is as a new one would be (under the hub's lock)."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        done: Todo = collections.deque()
        while self.resting and self.crew.hub.hears(self) and poll.poll(_REST_MS):
            self.on_ready(done)
        for action in done:
            self.crew.hub.put_off(action)
        self.generation = loaded.generation()
        return not self.resting and self.as_new and not loaded.is_outdated(self.sources)

    def send_streams(self) -> None:
        """Have its prints go where those of this process go now."""
        with self.crew.state.streams.lent() as (entries, fds):
            self.send([frames.HEAD.pack(frames.STREAMS, 0, 0, 0, 0.0), marshal.dumps(entries)], fds)


def _make_room() -> None:
    trim()
    time.sleep(0.005)
