"""How tasks get to a worker: everything it lacks first, then as many tasks as one message takes.

::

    batch ─► settings changed? STATE  ─► names of __main__ it lacks? MAIN ─► function of a map? FUNCTION
          ─► pickle, copy or lend     ─► TASKS

Guarantees
----------
- What was not sent stays in `rest`; an error of one task does not touch the others.
- Descriptors are closed and parcels released whatever happens.
- Ctrl-C is let through only while the user's objects are pickled and copied.
"""

from __future__ import annotations

import collections
import threading
import traceback
import weakref
from typing import Any, TypeVar

from ndshare._pool.settings import PoolSettings
from ndshare._pool.tasks import MapRun, Task
from ndshare._processes import Crew, Worker, WorkerGoneError, frames, inheritance, loaded
from ndshare._system import _wire, fork_hazards
from ndshare._transport import (
    INLINE_MAX,
    Inputs,
    Parcel,
    close_all,
    mainspace,
    pack,
    pack_failure,
    pack_plain,
    with_traceback,
)
from ndshare.errors import InitializerError, UnsendableGlobalError, forget_traceback

Rest = collections.deque[Task]
Failures = list[tuple[Task, BaseException]]
_Error = TypeVar("_Error", bound=BaseException)

#: More descriptors than this are not gathered for one message.
_MESSAGE_FDS = 64
#: A worker is sent no more tasks at once than make this much memory: what waits is not copied yet.
_COPIED_BYTES = 4 << 20


def _is_ctrl_c(error: BaseException) -> bool:
    """Tell Ctrl-C of the user from a KeyboardInterrupt or SystemExit that somebody's pickling code raises.

    Python delivers signals to the main thread alone; there, the interrupt wins.
    """
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


def _without_frames(error: _Error) -> _Error:
    """Keep the traceback as text: its frames hold the task, whose outcome the error will be, and the pool."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # from 3.15 on that imports a module: with no descriptor left it cannot
        text = f"{type(error).__name__}: {error}\n"
    last: BaseException = error
    forget_traceback(last)
    while (link := last.__cause__ or last.__context__) is not None:
        last = link
        forget_traceback(last)
    with_traceback(last, text)
    return error


class _RunReference(weakref.ref["MapRun"]):
    """Notices the end of a map."""

    __slots__ = ("token",)
    token: int


class ForkWantedError(Exception):
    """The initializer or an argument of it can only be inherited; nothing was sent."""


class Delivery:
    """Sends the tasks of one pool.

    Parameters
    ----------
    crew : Crew
        Whose workers they are.
    settings : PoolSettings
        What the workers must be like.
    """

    def __init__(self, crew: Crew, settings: PoolSettings) -> None:
        self._crew = crew
        self._settings = settings
        self._lock = crew.hub.lock
        self._state = crew.state
        self._threads = settings.threads_each
        self._threads_asked = settings.threads is not None
        self.withheld = settings.withheld  # variables that the workers have already
        self.inherited = 0  # the number of what they inherit
        self._inherited_names: dict[str, Any] | None = None  # what their initializer has of `__main__`
        self._runs: dict[int, _RunReference] = {}  # maps whose function workers may have
        self._runs_over: collections.deque[_RunReference] = collections.deque()
        self.inputs: Inputs | None = None  # arrays that many tasks have in common are copied once
        self.looked_at: mainspace.LookedAt = {}  # names of `__main__`, since the last task was taken on
        self.bytes_copied = 0
        self.bytes_sent = 0

    def send(self, worker: Worker, rest: Rest, failed: Failures) -> None:
        """Send tasks to a worker.

        Parameters
        ----------
        worker : Worker
            No other thread may be sending to it.
        rest : deque of Task
            What to send; what is sent, or has failed, is taken out. What would hold too much memory at
            once stays.
        failed : list of (Task, BaseException)
            Where tasks are put that cannot be sent, with the reason.

        Raises
        ------
        WorkerGoneError
            If the worker has ended.
        """
        parcels: list[Parcel] = []
        try:
            self._prepare(worker, rest, failed)
            copied = 0
            while rest and copied < _COPIED_BYTES:
                copied += self._send_some(worker, rest, failed, parcels)
        finally:
            for parcel in parcels:
                parcel.release()

    def _send_some(self, worker: Worker, rest: Rest, failed: Failures, parcels: list[Parcel]) -> int:
        """Send as many of the rest as one message takes; in `rest` remains what was not sent.

        Returns how many bytes of arrays were copied for them.
        """
        records: list[tuple[Task, Parcel, int]] = []
        fds: list[int] = []
        size = copied = 0
        room = frames.MESSAGE_MAX_BYTES - INLINE_MAX
        try:
            while rest and size < room and len(fds) < _MESSAGE_FDS and copied < _COPIED_BYTES:
                task = rest[0]
                if task.pool is None:
                    rest.popleft().let_go()  # cancelled
                    continue
                try:
                    parcel = self._parcel(worker, task)
                    own = parcel.descriptors() if parcel.blocks else ()
                except WorkerGoneError:
                    raise
                except BaseException as error:
                    if _is_ctrl_c(error):
                        raise
                    if records and isinstance(error, OSError | MemoryError):
                        break  # what the others hold may be what is missing: they go first
                    failed.append((task, _without_frames(error)))
                    rest.popleft()
                    continue
                fds += own
                records.append((task, parcel, len(own)))
                rest.popleft()
                size += len(parcel.data)
                copied += parcel.nbytes_copied
                if parcel.blocks and task.parcel is None:
                    parcels.append(parcel)
            if records:
                self._send_records(worker, records, fds)
        except BaseException:  # the worker is gone; Ctrl-C while an argument was pickled
            rest.extendleft(task for task, _, _ in reversed(records))
            raise
        finally:
            close_all(fds)
        return copied

    def _prepare(self, worker: Worker, rest: Rest, failed: Failures) -> None:
        """Bring a worker to the caller's directory, environment and so on; run the initializer first."""
        self._forget_functions(worker)
        state = self._state.refresh()
        version = (state.version, self._threads, self._threads_asked)
        if worker.state_version == version:
            return
        fresh = worker.state_version is None
        try:
            worker.send_streams()
            message = state.message(
                overlay=worker.overlay,
                number=worker.number,
                threads=self._threads,
                threads_asked=self._threads_asked,
                **self._settings.pinned(worker.number),
            )
            if len(message) < frames.MESSAGE_MAX_BYTES:
                self._send_bytes(worker, frames.STATE, int(fresh), message)
            else:  # a large environment
                self._send_parcel(worker, frames.STATE, int(fresh), self._pack(message), frames.PARCEL)
            if fresh and self._settings.initializer is not None:
                self._send_initializer(worker)
            worker.state_version = version
        except (WorkerGoneError, ForkWantedError):
            raise
        except Exception as error:  # the initializer cannot be pickled: nothing can run
            error = _without_frames(error)
            failed.extend((task, error) for task in rest)
            rest.clear()

    def look_before_fork(self) -> None:
        """Note which names the initializer has where workers are forked: what it makes of them is to stay."""
        if self._inherited_names is None:
            initializer, initargs = self._settings.initializer, self._settings.initargs
            function = getattr(initializer, "func", getattr(initializer, "__func__", initializer))
            kinds = map(type, (initializer, getattr(initializer, "__self__", None), *initargs))
            self._inherited_names = mainspace.inherited((initializer, function, *kinds), self.withheld)

    def _send_initializer(self, worker: Worker) -> None:
        if self.inherited:
            worker.known_main.update(self._inherited_names or {})
            self._send_bytes(worker, frames.INITIALIZER, self.inherited, b"")
            return
        initargs = self._settings.initargs
        is_lost = self._settings.start == "auto" and inheritance.is_lost_on_copies(initargs)
        if is_lost and not fork_hazards(parked=False):
            raise ForkWantedError("arguments of the initializer lie in memory that forked workers share")
        try:
            parcel = self._pack((self._settings.initializer, initargs))
            self._send_names(worker, parcel.needs)
        except WorkerGoneError:
            raise
        except Exception as error:
            text = f"it cannot be sent to a worker: {type(error).__name__}: {error}"
            if self._settings.start == "auto" and inheritance.is_wanted(error):
                if not (hazards := fork_hazards(parked=False)):
                    raise ForkWantedError(text) from error
                text += (
                    "; workers cannot be forked from this program either, because other threads run in it: "
                    f"{', '.join(hazards)}. Submit before they are started"
                )
                if not fork_hazards(native_only=True):
                    text += ', or ask for start="fork" if they hold no locks'
            raise InitializerError(self._settings.setup, text) from error
        self._send_parcel(worker, frames.INITIALIZER, 0, parcel)

    def follow(self, run: MapRun) -> None:
        """Have the workers forget the function of a map once it is over.

        What the garbage collector calls is a method in C: it may run anywhere, so it must take no
        lock, and Ctrl-C in a finalizer would be lost.
        """
        reference = _RunReference(run, self._runs_over.append)
        reference.token = run.token
        self._runs[run.token] = reference

    def _forget_functions(self, worker: Worker) -> None:
        if self._runs_over:
            with self._lock:
                while self._runs_over:
                    token = self._runs_over.popleft().token
                    del self._runs[token]
                    for other in self._crew.workers.values():
                        if token in other.functions:
                            other.stale.append(token)
        while worker.stale:
            worker.functions.discard(token := worker.stale.pop())
            self._send_bytes(worker, frames.FORGET, token, b"")

    def _pack(self, content: Any) -> Parcel:
        """Pickle and copy; Ctrl-C is let through, as this may take long."""
        if (parcel := pack_plain(content)) is not None:
            return parcel
        opening = _wire.window()
        try:
            return pack(content, withheld=self.withheld, inputs=self.inputs).settle()
        finally:
            _wire.curtain(opening)

    def _parcel(self, worker: Worker, task: Task) -> Parcel:
        """What a task sends to this worker; sends first what the worker lacks for it."""
        parcel = task.parcel or self._pack(task.content)
        if task.token and task.token not in worker.functions:
            function = self._pack(task.function)
            self._send_names(worker, function.needs)
            self._send_parcel(worker, frames.FUNCTION, task.token, function)
            worker.functions.add(task.token)
        if parcel.needs or worker.asked:
            self._send_names(worker, parcel.needs, task.brings)
        self.bytes_copied += parcel.nbytes_copied
        return parcel

    def _send_names(
        self, worker: Worker, needs: frozenset[str], brought: frozenset[str] = frozenset()
    ) -> None:
        if not needs and not worker.asked:
            return
        known, withheld, seen = worker.known_main, self.withheld, self.looked_at
        wanted = needs | worker.asked if worker.asked else needs
        if not withheld and mainspace.knows(known, wanted, brought):  # most often
            return
        try:
            draft = mainspace.deliver(wanted, known, withheld, brought, seen, stand_in=True)
        except UnsendableGlobalError:
            if not worker.asked:
                raise
            worker.asked = frozenset()  # it can ask again
            draft = mainspace.deliver(needs, known, withheld, brought, seen, stand_in=True)
        if draft is not None:
            self._send_parcel(worker, frames.MAIN, 0, draft.settle())
            worker.known_main.update(draft.delivers or {})

    def answer(self, worker: Worker, name: str) -> None:
        """Send what a worker asks for: a name of ``__main__``, or which file a module is."""
        known = {other: value for other, value in list(worker.known_main.items()) if other != name}
        status, parcel = frames.OK, None
        try:
            if name.startswith(frames.IMPORT):
                module = name.removeprefix(frames.IMPORT)
                self._send_answer(worker, status, pack({module: loaded.facts(module)}).settle())
                return
            draft = mainspace.deliver(frozenset((name,)), known, self.withheld)
            if draft is not None:
                parcel = draft.settle()
                worker.known_main.update(draft.delivers or {})
                worker.asked |= {name}
        except Exception as error:
            status, parcel = frames.ERROR, pack_failure(error)
        self._send_answer(worker, status, parcel)

    def _send_answer(self, worker: Worker, status: int, parcel: Parcel | None) -> None:
        head = frames.HEAD.pack(frames.MAIN, status, 1, 0, 0.0)
        if parcel is None:
            worker.send([head])
            return
        fds = parcel.descriptors()
        try:
            worker.send([head, parcel.data], fds)
        finally:
            close_all(fds)
            parcel.release()

    def _send_parcel(self, worker: Worker, kind: int, number: int, parcel: Parcel, status: int = 0) -> None:
        fds = parcel.descriptors()
        try:
            worker.send([frames.HEAD.pack(kind, status, 0, number, 0.0), parcel.data], fds)
            self.bytes_sent += len(parcel.data)
        finally:
            close_all(fds)
            parcel.release()

    def _send_bytes(self, worker: Worker, kind: int, number: int, content: bytes) -> None:
        worker.send([frames.HEAD.pack(kind, 0, 0, number, 0.0), content])
        self.bytes_sent += len(content)

    def _send_records(self, worker: Worker, records: list[tuple[Task, Parcel, int]], fds: list[int]) -> None:
        """Send tasks; from the moment they are on the worker's books, `records` is empty."""
        parts: list[bytes] = []
        used = 0
        with self._lock:
            for task, parcel, nfds in records:
                if task.pool is None:  # cancelled while others were pickled
                    close_all(fds[used : used + nfds])
                    del fds[used : used + nfds]
                    task.let_go()
                    continue
                used += nfds
                task.worker = worker
                task.seq = seq = worker.next_task()
                worker.inflight[seq] = task
                data = parcel.data
                parts += (frames.RECORD.pack(seq, len(data), task.token, nfds, task.record), data)
            count = len(parts) // 2
            worker.sent += count
            records.clear()
        if not count:
            return
        message = b"".join((frames.HEAD.pack(frames.TASKS, 0, count, 0, 0.0), *parts))
        self.bytes_sent += len(message)
        worker.send((message,), fds)
