"""The worker: receives tasks from one socket, runs them one at a time, answers on the same socket.

::

    TASKS ──► claim (board) ──► unpack ──► call ──► pack ──► drop everything ──► lend or copy ──► RESULT

Guarantees
----------
- Whatever a task raises, returns or fails to return reaches the caller as that task's outcome.
- What a task returns is in shared memory already (NumPy allocates large blocks there) and is lent
  without a copy if nothing in this process can reach it any more.
- SIGINT interrupts a running task once, if its caller has marked it, and whenever it is the task's own;
  otherwise it is ignored.
- A task that its caller has claimed for death is the last one here, and has no answer.
- Directory, environment, ``sys.path``, warning filters and log levels are the caller's as of the task's
  dispatch; log records go to the caller's handlers.

- Between two pools, and after each map, the process is as it was before its first task, but for modules,
  threads and files; if it cannot be, it is not used again.

Not guaranteed: module state that tasks leave behind stays until the worker ends, as under the standard
library.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import importlib
import marshal
import math
import mmap
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from ndshare import errors
from ndshare._memory import install_handler, ledger_attach, owner_prefix, set_idle_limit, trim
from ndshare._pickling import advanced_by, arrived
from ndshare._processes import family, frames, inheritance, injection, records, streams, tenure
from ndshare._processes.asking import Asking
from ndshare._processes.modules import Finder
from ndshare._processes.surroundings import Surroundings
from ndshare._system import _wire, callable_name
from ndshare._transport import (
    Draft,
    Parcel,
    close_all,
    mainspace,
    pack,
    pack_failure,
    pack_plain,
    portable,
    unpack,
)


def main(fds: tuple[int, ...], options: dict[str, Any]) -> None:
    """Serve until told to quit, or until the caller's end of the socket is closed."""
    _Worker(fds, options).serve()


class _Worker:
    def __init__(self, fds: tuple[int, ...], options: dict[str, Any]) -> None:
        self.outlets = streams.Outlets()
        self.outlets.point(options["streams"], fds[frames.WORKER_FDS :])
        self.socket_fd, board_fd, ledger_fd = fds[: frames.WORKER_FDS]
        self.board = mmap.mmap(board_fd, frames.BOARD_ROWS * frames.ROW_BYTES)
        os.close(board_fd)
        self.row = options["row"] * frames.ROW_BYTES
        self.buffer = bytearray(frames.BUFFER_BYTES)
        self.functions: dict[int, Any] = {}
        self.early_fds: tuple[int, ...] = ()
        self.told: set[tuple[str, str]] = set()
        self.main_failure: tuple[BaseException, str] | None = None
        self.interruptible = False
        self.cell = -1  # of the last task on the board; none: before, and in the initializer
        self.named: object = None  # the function whose name is on the board
        self.is_over = False  # what the last tasks belonged to: what they have left is to be put back
        self.spin_us = frames.SPIN_US
        self.waited_us = math.inf
        signal.signal(signal.SIGINT, self._interrupt)
        _wire.watch_sender()
        os.register_at_fork(after_in_child=self._leave_to_parent)
        if (reseed := sys.modules.get("numpy.random")) is not None:
            reseed.seed()  # else all workers draw the numbers of the zygote's generator
        ledger_attach(ledger_fd, options["ledger_slot"])
        os.close(ledger_fd)
        set_idle_limit(options["idle_limit"])
        install_handler()
        _wire.store_u64(self.board, self.row + frames.OWNER_AT, owner_prefix())
        _wire.store_u64(self.board, self.row + frames.PID_AT, os.getpid())
        self.asking = Asking(self.socket_fd, self._send_one)
        self.inherited = options["inherited"]
        self._make_main()
        os.environ.update(options["overlay"])
        family.track_with_caller(self._ask_for_tracker)
        self._preload(options["preload"])
        self.finder = Finder(self._facts)
        sys.meta_path.insert(0, self.finder)
        self.surroundings = Surroundings(options["overlay"], options["threads"], self._send_record)
        self.birth = contextvars.copy_context()  # has NumPy's handler of memory; what tasks set is not in it
        self.context = self.birth.copy()

    def _make_main(self) -> None:
        if self.inherited:
            mainspace.keep()
        else:
            mainspace.install(self._ask)
            family.leave_script_alone()

    def _preload(self, names: tuple[str, ...]) -> None:
        try:
            for name in names:
                importlib.import_module(name)
        except BaseException as error:
            self._answer(frames.INITIALIZED, frames.ERROR, 0, 0.0, pack_failure(error))
            raise SystemExit(1) from None

    # ------------------------------------------------------------------ receiving

    def serve(self) -> None:
        handlers: dict[int, Callable[[int, int, int, memoryview, tuple[int, ...]], None]] = {
            frames.TASKS: self._on_tasks,
            frames.STATE: self._on_state,
            frames.MAIN: self._on_main,
            frames.FUNCTION: self._on_function,
            frames.FORGET: self._on_forget,
            frames.INITIALIZER: self._on_initializer,
            frames.REST: self._on_rest,
            frames.STREAMS: self._on_streams,
            frames.PLACED: self._on_placed,
        }
        view = memoryview(self.buffer)
        while True:
            received = self._receive()
            if received is None or received[0] == 0:
                return
            size, fds = received
            kind, status, count, number, _ = frames.HEAD.unpack_from(self.buffer)
            if kind == frames.FDS:
                self.early_fds += fds
                continue
            if kind == frames.QUIT:
                self._leave()
                return
            fds, self.early_fds = self.early_fds + fds, ()
            self.context.run(handlers[kind], status, count, number, view[frames.HEAD.size : size], fds)
            if self.is_over:
                self._renew()

    def _receive(self) -> tuple[int, tuple[int, ...]] | None:
        if self.asking.waiting:
            message, fds = self.asking.waiting.popleft()
            self.buffer[: len(message)] = message
            return len(message), fds
        began = time.perf_counter()
        _wire.spin(self.socket_fd, self.spin_us)
        while True:
            try:
                received = _wire.recv_message(self.socket_fd, self.buffer, 0)
            except OSError as error:
                if error.errno != errno.EMFILE:  # the message waits in the socket until there is room
                    return None
            else:
                self.waited_us = (time.perf_counter() - began) * 1e6
                return received
            trim()
            time.sleep(0.01)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        # Not every SIGINT is meant for this task: one from the terminal, or a late one, may find the next.
        # What a task sends to itself is its own affair, as a time limit of its own.
        if _wire.sent_by_self():
            if self.interruptible:
                raise KeyboardInterrupt
        elif self.interruptible and (self.cell < 0 or self._is_wanted_to_stop()):
            self.interruptible = False
            raise KeyboardInterrupt

    def _ask(self, name: str) -> None:
        """Ask the caller for a name of ``__main__``."""
        with self._undisturbed():
            self.asking.ask(name)

    def _facts(self, module: str) -> Any:
        """Ask the caller for the file of a module."""
        with self._undisturbed():
            return self.asking.facts(module)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Let Ctrl-C wait: half an answer is none."""
        interruptible, self.interruptible = self.interruptible, False
        try:
            yield
        finally:
            self.interruptible = interruptible
        if interruptible and self.cell >= 0 and self._is_wanted_to_stop():
            self.interruptible = False
            raise KeyboardInterrupt

    def _is_wanted_to_stop(self) -> bool:
        return _wire.load_u8(self.board, self.cell) == frames.INTERRUPTED

    def _leave_to_parent(self) -> None:
        """In a process that a task forked: the socket is the worker's alone."""
        with contextlib.suppress(OSError):
            os.close(self.socket_fd)
        self.socket_fd = -1
        self.asking.leave()

    def _leave(self) -> None:
        import atexit

        self.asking.begin()
        self.context.run(tenure.end)
        self.asking.end()
        streams.flush()

        atexit._run_exitfuncs()

    # ------------------------------------------------------------------ tasks

    def _on_tasks(self, _status: int, count: int, _n: int, body: memoryview, fds: tuple[int, ...]) -> None:
        soon = count == 1 and self.waited_us < frames.SPIN_ALONE_US  # so will be the next, most likely
        self.spin_us = frames.SPIN_ALONE_US if soon else frames.SPIN_US
        at = 0
        used = 0
        for left in reversed(range(count)):
            seq, length, token, nfds, kind = frames.RECORD.unpack_from(body, at)
            at += frames.RECORD.size
            payload = body[at : at + length]
            at += length
            own = fds[used : used + nfds]
            used += nfds
            self.cell = frames.cell(self.row, seq)
            if _wire.claim(self.board, self.cell, self.row + frames.SEEN_AT, seq):
                self._run(seq, kind, token, payload, own, is_last=not left)
            else:
                close_all(own)
                state = _wire.load_u8(self.board, self.cell)
                if state == frames.KILLED:
                    _die()
                if state == frames.INTERRUPTED:  # before it began
                    self._finish()
                    self._answer(frames.RESULT, frames.ERROR, seq, 0.0, pack_failure(KeyboardInterrupt()))
        _wire.store_u64(self.board, self.row + frames.REACHED_AT, seq + 1)  # nobody waits for this

    def _run(
        self, seq: int, kind: int, token: int, payload: memoryview, fds: tuple[int, ...], *, is_last: bool
    ) -> None:
        began = time.perf_counter()
        status = frames.OK
        try:
            try:
                self.asking.begin()
                draft = self._call(kind, token, payload, fds)
            finally:
                self.interruptible = False
                self.asking.end()
            # Here nothing of the task is referenced any more, except by what the task itself kept.
            parcel = draft if isinstance(draft, Parcel) else draft.settle()
            del draft
        except BaseException as error:
            status = frames.ERROR
            if isinstance(error, _UnreadableError):
                status, error = error.status, error.cause
            parcel = pack_failure(error)
            del error
        self.finder.note()
        if is_last:
            streams.flush()
        seconds = time.perf_counter() - began
        self._finish()
        self._answer(frames.RESULT, status, seq, seconds, parcel)

    def _finish(self) -> None:
        """Say that the task has an answer; if it was claimed for death before, there is none."""
        if self.socket_fd >= 0 and not _wire.finish(self.board, self.cell):  # a fork of it has none
            _die()

    def _call(self, kind: int, token: int, payload: memoryview, fds: tuple[int, ...]) -> Draft | Parcel:
        self.interruptible = True
        if self.main_failure is not None:
            close_all(fds)
            error, self.main_failure = self.main_failure, None
            raise _UnreadableError(frames.NO_MAIN, error[0])
        try:
            work = unpack(payload, fds)
        except ModuleNotFoundError as error:
            raise _UnreadableError(frames.NO_MODULE, error) from None
        except SystemExit as error:
            failure = errors.ExitError("", error.code).with_traceback(error.__traceback__)
            raise _UnreadableError(frames.ERROR, failure) from None
        if not token:
            function, args, kwargs = work
            del work
            self.is_over = kind == frames.LAST_CALL
            self._name(_map if self.is_over else function)
            result = function(*args, **kwargs)
            if arrived:
                ran = args[:2] if function is injection.invoke else (function, args)
                self._tell_lost(advanced_by(*ran))
                del ran
            del args, kwargs
        else:
            function = self.functions[token]
            if isinstance(function, _UnreadableError):
                raise function
            self._name(function)
            result = [function(*args) for args in work] if kind == frames.ITEMS else _each(function, work)
            if arrived:
                self._tell_lost(advanced_by(function, ()))
            del work
        self.interruptible = False
        del function
        try:
            return pack_plain(result) or pack(result, lend_values=True)
        except Exception as error:
            if kind != frames.EACH:
                raise
            return _packed(result, error)

    def _name(self, function: Any) -> None:
        """Put on the board what runs now, if it is not there already: who watches may be told half a name."""
        name = callable_name(function)
        if name is not self.named:
            self.named = name
            at = self.row + frames.NAME_AT
            text = name.encode(errors="replace")[: frames.NAME_BYTES]
            self.board[at : at + frames.NAME_BYTES] = text.ljust(frames.NAME_BYTES, b"\0")

    def _tell_lost(self, lost: list[tuple[str, str]]) -> None:
        """Have the caller warn about what a task changed in vain, each of it once."""
        for name, what in lost:
            if (name, what) not in self.told:
                self.told.add((name, what))
                self._send_record(records.lost_write(name, what))

    # ------------------------------------------------------------------ everything else

    def _on_main(self, _status: int, _count: int, _n: int, body: memoryview, fds: tuple[int, ...]) -> None:
        self.asking.begin()
        try:
            unpack(body, fds)
        except BaseException as error:
            self.main_failure = (error, "")
        finally:
            self.asking.end()

    def _on_function(self, _s: int, _count: int, token: int, body: memoryview, fds: tuple[int, ...]) -> None:
        self.asking.begin()
        try:
            if self.main_failure is not None:
                raise self.main_failure[0]
            self.functions[token] = unpack(body, fds)
        except ModuleNotFoundError as error:
            self.functions[token] = _UnreadableError(frames.NO_MODULE, error)
        except BaseException as error:
            self.functions[token] = _UnreadableError(frames.ERROR, error)
        finally:
            self.asking.end()

    def _on_forget(self, _s: int, _count: int, token: int, _body: memoryview, _fds: tuple[int, ...]) -> None:
        self.functions.pop(token, None)

    def _on_initializer(self, _s: int, _c: int, n: int, body: memoryview, fds: tuple[int, ...]) -> None:
        try:
            try:
                self.cell = -1
                self.interruptible = True
                if self.main_failure is not None:
                    raise self.main_failure[0]
                self.asking.begin()
                function, args = inheritance.kept[n] if n else unpack(body, fds)
                function(*args)
                advanced_by(function, ())  # it may have seeded some, for this worker alone
            finally:
                self.interruptible = False
                self.asking.end()
        except BaseException as error:
            self._answer(frames.INITIALIZED, frames.ERROR, 0, 0.0, pack_failure(error))
            raise SystemExit(1) from None
        self._answer(frames.INITIALIZED, frames.OK, 0, 0.0, pack(None).settle())

    def _on_state(self, status: int, _count: int, fresh: int, body: memoryview, fds: tuple[int, ...]) -> None:
        if fresh:
            self.functions.clear()
            self.told.clear()
            arrived.clear()
            tenure.begin()
            self._make_main()  # as for a process forked now: no globals of earlier tasks
            self.main_failure = None
        state = unpack(body, fds) if status == frames.PARCEL else body
        self.surroundings.apply(pickle.loads(state), fresh=bool(fresh))

    def _on_rest(self, _s: int, _c: int, _n: int, _body: memoryview, _fds: tuple[int, ...]) -> None:
        """Be as before the first task; say whether that worked, and which source files are loaded here."""
        self.outlets.point((), ())
        self.context = self.birth.copy()
        content = marshal.dumps((self.surroundings.rest(), self.finder.sources()))
        self._send([frames.HEAD.pack(frames.RESTED, 0, 0, 0, 0.0), content], ())

    def _renew(self) -> None:
        """Be as before the first task, in the middle of a pool."""
        self.is_over = False
        self.context = self.birth.copy()
        if not self.surroundings.renew(self.outlets.restore()):
            raise SystemExit(0)  # what was sent meanwhile is taken back; another worker does it

    def _on_streams(self, _s: int, _c: int, _n: int, body: memoryview, fds: tuple[int, ...]) -> None:
        self.outlets.point(marshal.loads(body), fds, keep=True)

    def _on_placed(self, _s: int, _c: int, _n: int, body: memoryview, _fds: tuple[int, ...]) -> None:
        """Run anywhere again: it was woken on the caller's processor (`Worker.bring_here`)."""
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, marshal.loads(body))

    # ------------------------------------------------------------------ sending

    def _answer(self, kind: int, status: int, seq: int, seconds: float, parcel: Parcel) -> None:
        if self.socket_fd < 0:  # a process that the task forked, and that has come back from it as well
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(0)
        head = frames.HEAD.pack(kind, status, 0, seq, seconds)
        if not parcel.blocks:
            self._send_one((head, parcel.data), ())
            return
        fds = parcel.descriptors()
        try:
            self._send([head, parcel.data], fds)
        finally:
            close_all(fds)
            parcel.release()

    def _send_record(self, data: bytes) -> bool:
        if self.socket_fd < 0:  # a process that a task forked
            return False
        self._send_one((frames.HEAD.pack(frames.LOG, 0, 0, 0, 0.0), data), ())
        return True

    def _ask_for_tracker(self, fd: int) -> None:
        self._send_one((frames.HEAD.pack(frames.TRACKER, 0, 0, 0, 0.0),), (fd,))

    def _send(self, parts: Sequence[bytes], fds: Sequence[int]) -> None:
        while len(fds) > frames.FDS_MAX:
            self._send_one([frames.HEAD.pack(frames.FDS, 0, 0, 0, 0.0)], fds[: frames.FDS_MAX])
            fds = fds[frames.FDS_MAX :]
        self._send_one(parts, fds)

    def _send_one(self, parts: Sequence[bytes], fds: Sequence[int]) -> None:
        while True:
            try:
                if _wire.send_message(self.socket_fd, parts, fds, 0):
                    return
            except OSError:
                os._exit(1)  # the caller's process is gone or has given this worker up
            time.sleep(0.001)  # too many descriptors in flight for this user


def _each(function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the results of the items up to the first that raises; then what that raised, and the seconds."""
    began = time.perf_counter()
    result: list[Any] = []
    failure = None
    try:
        for args in items:
            result.append(function(*args))  # noqa: PERF401 - what was computed before it raised counts
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = portable(error)
    result += (failure, time.perf_counter() - began)
    return result


def _packed(result: list[Any], error: Exception) -> Draft:
    """Pack what `_each` returns up to the first result that cannot be packed, which is that item's error."""
    *values, _, seconds = result
    for number, value in enumerate(values):
        try:
            pack(value)
        except Exception as reason:
            return pack([*values[:number], portable(reason), seconds])
    raise error


def _die() -> None:
    """End here and now: the signal is on its way, and must find no other task."""
    os.kill(os.getpid(), signal.SIGKILL)


def _map() -> None:
    """Stand for what runs a map, on the board."""


_map.__qualname__ = "map"


class _UnreadableError(Exception):
    """What a task needs could not be rebuilt here."""

    def __init__(self, status: int, cause: BaseException) -> None:
        super().__init__(status, cause)
        self.status = status
        self.cause = cause
