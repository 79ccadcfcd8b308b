"""Tasks: what a pool sends to its workers, and what becomes of it.

::

    Task ── TaskFuture   one call; also a `concurrent.futures.Future` (`ndshare._pool.futures`)
       └─── QuietTask    nobody but ndshare sees it, so it costs less
              └── ItemsTask   some items of an executor's `map` (`ndshare._pool.items_tasks`)
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ndshare._system import _wire
from ndshare._transport import Draft, Parcel, pack, unpack
from ndshare.errors import InheritedError

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool


class Task:
    """What all tasks have in common: content, pool, history.

    A pool calls `start`, then `succeed` or `fail`, each once.
    """

    # What most tasks leave as it is lives in the class: a task is made in a microsecond or two.
    token = 0  # of a function that a worker is sent once; 0: the function travels with the arguments
    parcel: Parcel | None = None  # arguments that were read at submit
    dispatched = False  # at least once: it can be cancelled no more
    attempts = 0  # workers that died with it
    on_done: Callable[[], None] | None = None  # called before the callbacks
    brings: frozenset[str] = frozenset()  # names of `__main__` that its parcel defines itself
    modules_tried: frozenset[str] = frozenset()  # sent by value for it
    pool: Pool | None
    function: Callable[..., Any] | None
    content: Any

    def start(self) -> bool:
        """Note that it is being sent to a worker; False if it was cancelled."""
        raise NotImplementedError

    def succeed(self, value: Any) -> None:
        """Give the result to whoever waits."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """Give the error to whoever waits."""
        raise NotImplementedError

    def done(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        raise NotImplementedError

    def cancel(self) -> bool:
        """Cancel it if it has not been sent to a worker; its arguments are let go at once."""
        raise NotImplementedError

    def draft(self) -> Draft:
        """What travels for this task."""
        withheld = self.pool.settings.withheld if self.pool is not None else frozenset[str]()
        return pack(self.content, withheld=withheld)

    def read_now(self, *, private: bool) -> None:
        """Read the arguments at once; `private` if they may be needed again after a worker had them."""
        self.parcel = self.draft().settle()
        if private:
            self.read_again()

    def read_again(self) -> None:
        """Let it be pickled anew when it is sent, from the arguments that were read at once."""
        if self.parcel is not None:
            parcel, self.parcel = self.parcel, None
            try:
                self.content = unpack(parcel.data, parcel.descriptors())
            finally:
                parcel.release()

    def has_callbacks(self) -> bool:
        """Whether code of the user's runs when it is done."""
        return False

    def seal(self) -> bool:
        """Take no callbacks until it is resolved, which is to come at once; False if there are some."""
        return True

    def let_go(self) -> None:
        """Drop the function, its arguments and the pool."""
        self.function = self.content = self.pool = None
        if self.parcel is not None:
            self.parcel.release()
            self.parcel = None

    def describe(self) -> str:
        """Name it for a message."""
        return describe(self.function)

    def _await(self, condition: threading.Condition, timeout: float | None) -> None:
        """Receive until this task is done, or wait while another thread receives."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pool = self.pool
        if pool is None:  # another thread is just resolving it
            with condition:
                condition.wait_for(self.done, timeout)
            return
        if pool.hub.pid != os.getpid():
            raise InheritedError("a future of an executor", pool.hub.pid, os.getpid())
        try:
            _wire.shield()
            try:
                if pool.held:
                    pool.pump()
                likely = pool.roster.busy() if pool.pending == 1 and pool.roster.short else None
                pool.hub.drive(self.done, deadline, likely)
                if not self.done() and (deadline is None or time.monotonic() < deadline):
                    pool.hub.wait(condition, self.done, deadline)
            finally:
                _wire.unshield()
        except KeyboardInterrupt:
            pool.interrupt()
            pool.hub.put_off(pool.pump)  # it may have struck while an argument was pickled
            raise


class QuietTask(Task):
    """A task that nobody but ndshare sees; its outcome lies in plain attributes."""

    finished = False
    cancelled = False
    error: BaseException | None = None
    value: Any = None

    def start(self) -> bool:
        """See `Task.start`."""
        return not self.cancelled

    def succeed(self, value: Any) -> None:
        """See `Task.succeed`."""
        self.value = value
        self._finish()

    def fail(self, error: BaseException) -> None:
        """See `Task.fail`."""
        self.error = error
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for it."""
        raise NotImplementedError

    def done(self) -> bool:
        """See `Task.done`."""
        return self.finished

    def cancel(self) -> bool:
        """See `Task.cancel`."""
        pool = self.pool
        if pool is None or not pool.withdraw(self):
            return False
        self.cancelled = True
        self.fail(concurrent.futures.CancelledError())
        return True


def describe(function: Any) -> str:
    """Readable name of something callable."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}()" if module else f"{name}()"
