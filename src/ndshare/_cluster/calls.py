"""Calls under way on an engine: sent, loaded with what nodes lack, sent again when lost, merged once.

::

    submit ──► task ──► engine ──► node ──► result ──► what it has written is merged, then its future is done
                 ▲                   │
                 └── with contents ◄─┘ lacks them

Guarantees
----------
- What a call has written is merged at most once, and before its future is done; of a call that was cancelled,
  nothing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any

from ndshare._cluster.engines import Engine
from ndshare._cluster.flights import LOST_MOST, Carriage, Flight
from ndshare._locks import leaving_machine
from ndshare._node import CallTask, TaskResult
from ndshare._pickling import Recording
from ndshare._processes import TaskOptions, options_of, tell_lost
from ndshare._transport import Crate, Manifest, by_value_modules, mainspace, open_reply, pack, with_traceback

Packed = tuple[CallTask, Manifest]
_Future = concurrent.futures.Future[Any]


@dataclasses.dataclass(eq=False, slots=True, kw_only=True)
class _Call(Flight):
    """A call on its way; `future` is the engine's, `answer` the caller's."""

    answer: _Future
    pack: Callable[[], Packed]
    task: CallTask
    manifest: Manifest
    unwanted: bool = False  # given up by the caller, not by the engine

    def let_go(self) -> None:
        """Drop what it has sent: an engine may keep its futures, and so their callbacks, for long."""
        self.pack = _gone
        self.task = CallTask("", "", [], {}, {})
        self.manifest = Manifest()


def _gone() -> Packed:
    raise NotImplementedError


class CallFuture(concurrent.futures.Future[Any]):
    """The future of one call."""

    def kill(self) -> bool:
        """Refuse: engines have no way to end what runs on one of their machines.

        Raises
        ------
        NotImplementedError
            Always. A time limit (`ndshare.options`) is kept by the machine that runs the call.
        """
        raise NotImplementedError(
            "kill() was refused: an engine cannot end one call that runs on another machine. Use cancel() "
            "before it begins, or give the function a time limit, ndshare.options(fn, timeout=...)"
        )


class Calls:
    """Calls of one executor or workspace.

    Parameters
    ----------
    engine : Engine
        Where they run.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.merging = threading.Lock()  # of arrays that results are merged into
        self._lock = threading.Condition()
        self._calls: dict[_Future, _Call] = {}
        self._carriage: Carriage[_Call] = Carriage()
        self._told: set[tuple[str, str]] = set()

    def options_of(self, function: Any) -> TaskOptions:
        """Return how the calls of a function are to be run; refuses what the engine cannot do."""
        asked = options_of(function)
        if asked.priority and not self.engine.ranks:
            raise ValueError(
                f"priority={asked.priority!r} was refused: {type(self.engine).__name__} runs tasks in an "
                "order of its own; with Dask there are priorities"
            )
        return asked

    def submit(self, answer: _Future, pack: Callable[[], Packed]) -> None:
        """Pack a call and send it.

        Parameters
        ----------
        answer : Future
            Gets the result.
        pack : callable
            Returns the task, and the manifest of what it refers to. Called again only if a node cannot import
            a module that is here.

        Raises
        ------
        Exception
            Whatever pickling raises, and the engine.
        """
        task, manifest = pack()
        call = _Call(answer=answer, pack=pack, task=task, manifest=manifest)
        with self._lock:
            self._calls[answer] = call
        try:
            self._send(call)
        except BaseException:
            self._forget(call)
            raise

    def _send(self, call: _Call, contents: Collection[bytes] = (), address: Any = None) -> None:
        if call.answer.done():  # cancelled while it was parked
            self._forget(call)
            return
        call.task.load(call.manifest.contents, contents)
        sent = self.engine.submit(call.task, lambda sent: self._landed(call, sent), address)
        if not sent.done():
            call.future = sent

    def _landed(self, call: _Call, sent: Any) -> None:
        """See to what the engine says; called in a thread of the engine's."""
        try:
            result: TaskResult | BaseException = self.engine.result(sent)
        except BaseException as error:
            result = error
        with self._lock:
            waiting = self._carriage.unload(call)
        for other in waiting:
            self._try(other, self._send, other)
        self._try(call, self._land, call, result)

    def _try(self, call: _Call, action: Callable[..., None], *args: Any) -> None:
        try:
            action(*args)
        except BaseException as error:
            self._end(call, error)

    def _land(self, call: _Call, result: TaskResult | BaseException) -> None:
        if call.answer.done():
            self._forget(call)
        elif isinstance(result, BaseException):
            self._lose(call, result)
        elif result.lacks:
            with self._lock:
                carries = self._carriage.load(call, result.machine, result.lacks)
            if carries:
                self._send(call, result.lacks, result.address)
        elif result.failure is not None:
            self._fail(call, result, *open_reply(result.failure))
        elif self._merge(call, result):
            assert result.outcome is not None
            self._end(call, None, open_reply(result.outcome))

    def _merge(self, call: _Call, result: TaskResult) -> bool:
        """Write what a call has changed into the caller's arrays; False if it was cancelled meanwhile."""
        if not call.answer.running() and not call.answer.set_running_or_notify_cancel():
            self._forget(call)
            return False
        for lost in result.lost:
            if lost not in self._told:
                self._told.add(lost)
                tell_lost(*lost)
        with self.merging:
            for change in result.changes:
                change.merge(call.manifest.blocks[change.block].memory)
        return True

    def _lose(self, call: _Call, error: BaseException) -> None:
        """Send a call again whose node is gone."""
        call.lost += 1
        lost = isinstance(error, (Exception, concurrent.futures.CancelledError)) and not call.unwanted
        if not lost or isinstance(error, concurrent.futures.BrokenExecutor) or call.lost >= LOST_MOST:
            raise error
        self._send(call)

    def _fail(self, call: _Call, result: TaskResult, error: BaseException, text: str) -> None:
        name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        call.tries += 1
        if name in sys.modules and result.unopened and call.tries < LOST_MOST:
            by_value_modules.add(name)
            call.task, call.manifest = call.pack()
            self._send(call)
        elif self._merge(call, result):
            self._end(call, with_traceback(error, text))

    def _end(self, call: _Call, error: BaseException | None, value: Any = None) -> None:
        answer = call.answer
        try:
            if isinstance(error, concurrent.futures.CancelledError):
                answer.cancel()
            if answer.done() or not (answer.running() or answer.set_running_or_notify_cancel()):
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(value)
        finally:  # what its callbacks have sent is under way by now
            self._forget(call)

    def _forget(self, call: _Call) -> None:
        with self._lock:
            self._calls.pop(call.answer, None)
            call.let_go()
            waiting = self._carriage.unload(call)  # if it could not be sent with what others lack as well
            self._lock.notify_all()
        for other in waiting:
            self._try(other, self._send, other)

    # ------------------------------------------------------------------ the end

    def revoke(self, answer: _Future) -> bool:
        """Keep a call from running; False if it has begun, as far as the engine knows, or is done."""
        with self._lock:
            call = self._calls.get(answer)
        if call is None or call.future is None:
            return False
        call.unwanted = True  # before it lands, which may be in the next line
        call.unwanted = self.engine.revoke(call.future)
        return call.unwanted

    def cancel(self) -> None:
        """Give up the calls that have not begun."""
        with self._lock:
            calls = [call for call in self._calls.values() if call.future is not None]
        for call in calls:
            call.unwanted = True
        self.engine.cancel([call.future for call in calls])

    def wait(self) -> None:
        """Wait until all calls are done, and those that these have led to."""
        with self._lock:
            self._lock.wait_for(lambda: not self._calls)


def crates_of(
    content: object, manifest: Manifest, withheld: frozenset[str] = frozenset()
) -> tuple[Crate, Crate]:
    """Pack what a call needs.

    Parameters
    ----------
    content : object
        Function and arguments.
    manifest : Manifest
        Notes the arrays.
    withheld : frozenset of str
        Names whose values the receiver has.

    Returns
    -------
    tuple of Crate
        What functions need of ``__main__``, and the content.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    with leaving_machine():
        packed = pack(content, withheld=withheld).take()
        update = mainspace.deliver(packed.needs, {}, withheld)
    needed = manifest.crate(Recording((b"N.",)) if update is None else update.take())
    return needed, manifest.crate(packed)
