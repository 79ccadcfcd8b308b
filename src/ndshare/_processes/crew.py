"""All workers and zygotes of this process.

::

    Crew ── zygotes, by what must be set before they start
      └──── workers: leased by a pool, or idle and warm for the next one

Workers without an initializer, environment or task limit of their own are *shared*: a pool that ends
gives them back warm. `shutdown` ends them and the zygotes; the next use starts them again.
"""

from __future__ import annotations

import atexit
import collections
import itertools
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from ndshare._memory import forget_owner, ledger_attach, ledger_clear, ledger_create, ledger_detach
from ndshare._processes import frames, inheritance
from ndshare._processes.hub import Hub, Todo
from ndshare._processes.launcher import Zygote, ZygoteSpec
from ndshare._processes.surroundings import CallerState
from ndshare._processes.worker_handle import LEDGER_SLOTS, Pool, Worker
from ndshare._system import _wire, drop_spares, fork_hazards
from ndshare.errors import WorkerError

#: An idle shared worker ends after this time.
_IDLE_S = 300.0


#: After a zygote has ended before it was ready, none like it is started for this time.
_FAILED_S = 5.0


#: What is needed as Python has it.
_NEEDED = ("thread", "threading", "select", "socket", "subprocess")


class CrewClosedError(Exception):
    """Another thread has ended the crew; the next call of `own_crew` makes a new one."""


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
        self.closed = False
        self.buffer = bytearray(frames.BUFFER_BYTES)
        self.ledger = ledger_create(LEDGER_SLOTS)
        ledger_attach(self.ledger, 0)
        self.hub.flush = self._flush
        self._failed: dict[ZygoteSpec, tuple[float, str]] = {}  # when, and what became of it
        self._boards: list[tuple[int, mmap.mmap]] = []
        self._rows: list[tuple[int, int]] = []
        self._noted: set[int] = set()  # notes of maps that are taken
        self.hub.start()

    def join(self, pool: Pool) -> None:
        """Take a pool on.

        Raises
        ------
        CrewClosedError
            If the crew has just been shut down by another thread.
        """
        with self.hub.lock:
            if self.closed:
                raise CrewClosedError
            self.pools.add(pool)
            self.state.look_closely()

    def _flush(self) -> None:
        for pool in list(self.pools):
            if pool.held:
                pool.pump()

    # ------------------------------------------------------------------ boards

    def row(self) -> tuple[mmap.mmap, int, int, Callable[[], None]]:
        """A free row: its board, its offset there, the board's descriptor, how to give it back."""
        if not self._rows:
            fd = os.memfd_create("ndshare-board", os.MFD_CLOEXEC)
            os.ftruncate(fd, frames.BOARD_BYTES)
            self._boards.append((fd, mmap.mmap(fd, frames.BOARD_BYTES)))
            self._rows = [
                (len(self._boards) - 1, n * frames.ROW_BYTES) for n in reversed(range(frames.BOARD_ROWS))
            ]
        which, offset = self._rows.pop()
        fd, board = self._boards[which]
        _wire.store_u64(board, offset + frames.OWNER_AT, 0)
        _wire.store_u64(board, offset + frames.PID_AT, 0)
        _wire.store_u64(board, offset + frames.SEEN_AT, 0)
        return board, offset, fd, lambda: self._rows.append((which, offset))

    def note_map(self, place: tuple[int, int, int], workers: int, items: int, name: str) -> int:
        """Note a map for whoever watches; returns the number of the note, negative if there is no room.

        Parameters
        ----------
        place
            Device, inode and offset of its board.
        workers, items, name
            How large that is, and whose kernel runs.
        """
        with self.hub.lock:
            number = next((n for n in range(frames.MAP_NOTES) if n not in self._noted), -1)
            if number < 0 or not self._boards:
                return -1
            self._noted.add(number)
            board, at = self._boards[0][1], frames.MAP_NOTES_AT + number * frames.MAP_NOTE.size
            frames.MAP_NOTE.pack_into(board, at, 0, *place, workers, items, name.encode(errors="replace"))
            _wire.store_u64(board, at, time.monotonic_ns())
        return number

    def forget_map(self, number: int) -> None:
        """Take back the note of a map that has ended."""
        if number in self._noted and not self.closed:
            _wire.store_u64(self._boards[0][1], frames.MAP_NOTES_AT + number * frames.MAP_NOTE.size, 0)
        self._noted.discard(number)

    # ------------------------------------------------------------------ leasing

    def lease(self, pool: Pool, number: int, overlay: dict[str, str]) -> Worker:
        """Get a worker for a pool: a warm one, or a new one (under the hub's lock).

        `number` tells it from the others of the pool.
        """
        worker = None
        while not pool.settings.own and self.idle:
            worker = self.idle.pop()
            if worker.is_rested():
                break
            worker.quit()
            worker = None
        if worker is None:
            worker = self._spawn(
                ZygoteSpec.of(overlay, pool.settings.preload, pool.inherited),
                overlay,
                pool.settings.idle_limit,
            )
        worker.pool = pool
        worker.sent = 0
        worker.state_version = None
        worker.known_main.clear()
        worker.asked = frozenset()
        worker.overlay = overlay
        worker.number = number
        return worker

    def release(self, worker: Worker) -> None:
        """Take a worker back from its pool (under the hub's lock)."""
        pool, worker.pool = worker.pool, None
        if worker.leaving:
            return
        # Of a killed pool the signal may be still on its way: it is nobody's next worker.
        if not worker.proved or worker.outdated or (pool is not None and (pool.settings.own or pool.killed)):
            worker.quit()
            return
        worker.idle_since = time.monotonic()
        worker.functions.clear()
        worker.stale.clear()
        worker.rest()
        self.idle.append(worker)
        self.hub.later(_IDLE_S + 1, self._reap)

    def retire(self, inherited: int) -> None:
        """End a process that was forked from this program, after its last worker (under the hub's lock)."""
        inheritance.drop(inherited)
        for ear in [ear for spec, ear in self.zygotes.items() if spec.inherited == inherited]:
            ear.retired = True
            self._end_retired(ear)

    def _end_retired(self, ear: _Ear) -> None:
        if not any(worker.zygote is ear.zygote for worker in self.workers.values()):
            self.hub.ignore(ear)
            self.zygotes.pop(ear.zygote.spec, None)
            ear.zygote.close()

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
                self._bury(ear)
        if spec in self._failed:
            since, why = self._failed.pop(spec)
            if time.monotonic() - since < _FAILED_S:
                raise WorkerError(why)
        ear = self._open(spec)
        try:
            return Worker(self, ear.zygote, overlay, idle_limit)
        except ConnectionError as error:
            self._bury(ear)
            raise WorkerError(ear.zygote.failure) from error

    def _open(self, spec: ZygoteSpec) -> _Ear:
        ear = self.zygotes[spec] = _Ear(self, Zygote(spec))
        self.hub.listen(ear)
        return ear

    def fork_for(self, pool: Pool) -> None:
        """Fork this program for the workers of a pool, if that was not done (under the hub's lock).

        In a thread that submits: what other threads are just doing the I/O thread cannot know.

        Raises
        ------
        RuntimeError
            If the user asked for it, and libraries have threads that a child would wait for.
        """
        spec = ZygoteSpec.of({}, pool.settings.preload, pool.inherited)
        if spec not in self.zygotes:
            if pool.settings.start == "fork" and (hazards := fork_hazards(native_only=True)):
                raise RuntimeError(
                    "workers cannot be forked, because libraries have threads in this process that a child "
                    f"would wait for without end: {', '.join(hazards)}. Submit before they are started, "
                    'or ask for start="clean"'
                )
            self._open(spec)

    def _bury(self, ear: _Ear) -> None:
        """Take a zygote off the books that has been found dead."""
        todo: Todo = collections.deque()
        self.on_zygote_end(ear, todo)
        for action in todo:
            self.hub.put_off(action)

    # ------------------------------------------------------------------ deaths

    def on_exit(self, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
        """A worker's process has ended (under the hub's lock)."""
        worker.exitcode = code
        worker.drain(done)
        del self.workers[worker.id]
        forget_owner(_wire.load_u64(worker.board, worker.row + frames.OWNER_AT))
        ledger_clear(worker.ledger_slot)
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
        if not ear.zygote.ready and ear.zygote.process.returncode > 0:  # not killed: so would the next one
            self._failed[ear.zygote.spec] = time.monotonic(), ear.zygote.failure
        for worker in [w for w in self.workers.values() if w.zygote is ear.zygote]:
            self.on_exit(worker, worker.pid, None, 0, done)

    # ------------------------------------------------------------------ the end

    def close(self, *, ended_by_interrupt: bool = False) -> None:
        """Let all pools finish what they have begun, then end every worker and zygote.

        What Ctrl-C has interrupted is not finished: the interpreter shall end.
        """
        while (pool := self._last_pool()) is not None:
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
            for worker in list(self.workers.values()):  # ended, with their zygotes
                forget_owner(_wire.load_u64(worker.board, worker.row + frames.OWNER_AT))
                worker.close()
            self.workers.clear()
            self.idle.clear()
        self.hub.close()
        self._close_boards()

    def _last_pool(self) -> Pool | None:
        with self.hub.lock:
            for pool in self.pools:
                return pool
            self.closed = True
            return None

    def _close_boards(self) -> None:
        for fd, board in self._boards:
            os.close(fd)
            with suppress(BufferError):
                board.close()
        self._boards.clear()
        os.close(self.ledger)
        ledger_detach()

    def kill(self) -> None:
        """End every worker and zygote now; nothing is waited for."""
        for ear in list(self.zygotes.values()):
            with suppress(OSError):
                os.kill(ear.zygote.process.pid, signal.SIGKILL)  # its workers die with it

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
        self.retired = False  # its pool is over

    def fileno(self) -> int:
        return self.zygote.fileno()

    def on_ready(self, done: Todo) -> None:
        said = self.zygote.read()
        for message in said:
            if not message:
                self.crew.on_zygote_end(self, done)
            elif (worker := self.crew.workers.get(message[1])) is None:
                continue
            elif message[0] == frames.EXITED:
                self.crew.on_exit(worker, message[2], message[3], message[4], done)
            elif message[0] == frames.FAILED:
                self.crew.on_exit(worker, 0, None, 0, done)
        if self.retired and said and said[-1]:
            self.crew._end_retired(self)


_crew: Crew | None = None
_crew_lock = threading.Lock()
_registered = False


def own_crew() -> Crew:
    """The crew of this process, made when first asked for."""
    global _crew, _registered
    _refuse_patched()
    with _crew_lock:
        if _crew is None:
            _crew = Crew()
            if not _registered:
                _registered = True
                os.register_at_fork(after_in_child=_after_fork_in_child)
                atexit.register(_at_exit)
        return _crew


def _patched() -> tuple[str, list[str]]:
    """Return which library has put its own threads and sockets in place of Python's, and which of them."""
    for library, ask in (("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")):
        is_patched = getattr(sys.modules.get(library), ask, lambda _name: False)
        if patched := [name for name in _NEEDED if is_patched(name)]:
            return library.partition(".")[0], patched
    return "", []


def _refuse_patched() -> None:
    """Refuse where threads and waiting are not the system's: nobody would hear the workers."""
    library, patched = _patched()
    if patched:
        raise WorkerError(
            f"workers cannot be used while {library} has its own {', '.join(patched)} in place of Python's: "
            "who waits for a worker would wait for ever. Use ndshare in a process that is not patched, or "
            "leave these modules out, as with monkey.patch_all(thread=False, select=False, socket=False, "
            "subprocess=False)"
        )


def shutdown() -> None:
    """End the shared workers and the process they are forked from.

    Page: docs/executor.md.

    Executors that are still open finish what was submitted to them first, and are shut down. The next
    use of ndshare starts new workers. Arrays stay valid; what was kept of the workers' memory is given
    back, and `trim` gives back what is this process's own.

    Examples
    --------
    >>> import ndshare
    >>> ndshare.shutdown()
    """
    drop_spares()
    _end(ended_by_interrupt=False)


def _at_exit() -> None:
    # Set when an error ends a script: a script that Ctrl-C has ended does not want its queue to be computed.
    _end(ended_by_interrupt=getattr(sys, "last_type", None) is KeyboardInterrupt)


def _end(*, ended_by_interrupt: bool) -> None:
    global _crew
    with _crew_lock:
        crew, _crew = _crew, None
    if crew is not None:
        if _patched()[1]:  # since: its locks and threads may wait for each other for ever
            crew.kill()
        else:
            crew.close(ended_by_interrupt=ended_by_interrupt)


def _after_fork_in_child() -> None:
    global _crew, _crew_lock
    _crew_lock = threading.Lock()
    crew, _crew = _crew, None
    if crew is not None:
        crew.forget()
