"""Futures without callbacks, as those of batch systems: one thread asks whether they are done."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import Any

from ndshare._system import own_thread

#: Between two rounds of asking; longer and longer while nothing is done.
_FIRST_S, _MOST_S = 0.001, 0.2
#: How long the thread stays when there is nothing to ask for.
_LINGER_S = 1.0


class Followed(concurrent.futures.Future[Any]):
    """A future that follows one which has `done` and `result`, and perhaps `cancel`.

    Parameters
    ----------
    theirs : object
        The one that is followed.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self._theirs = theirs

    def cancel(self) -> bool:
        """Ask the other one; what cannot be cancelled goes on."""
        cancel = getattr(self._theirs, "cancel", None)
        if not callable(cancel) or self._theirs.done() or cancel() is False:
            return False
        return super().cancel()

    def look(self) -> bool:
        """Take over what has become of the other one; False if it is not done."""
        if self.done():
            return True
        try:
            if not self._theirs.done():
                return False
            outcome, failed = self._theirs.result(), False
        except (Exception, concurrent.futures.CancelledError) as error:
            outcome, failed = error, True
        if self.set_running_or_notify_cancel():
            (self.set_exception if failed else self.set_result)(outcome)
        return True


class Poller:
    """Asks for futures of an engine, by a thread that is there while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Followed] = []
        self._asks = False

    def follow(self, theirs: Any) -> Followed:
        """Return a future with callbacks."""
        ours = Followed(theirs)
        with self._changed:
            self._waiting.append(ours)
            self._changed.notify()
            if not self._asks:
                own_thread(self._ask, "ndshare-polling").start()
                self._asks = True  # not if no thread could be started
        return ours

    def _ask(self) -> None:
        pause, idle_since = _FIRST_S, time.monotonic()
        while True:
            with self._changed:
                waiting = list(self._waiting)
                if not waiting and time.monotonic() - idle_since > _LINGER_S:
                    self._asks = False
                    return
            done = [future for future in waiting if future.look()]
            with self._changed:
                self._waiting = [future for future in self._waiting if future not in done]
                more = len(self._waiting) > len(waiting) - len(done)
                pause = _FIRST_S if done or more else min(2 * pause, _MOST_S)
                if waiting:
                    idle_since = time.monotonic()
                if not more:
                    self._changed.wait(pause)
