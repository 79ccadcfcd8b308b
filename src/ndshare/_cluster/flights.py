"""What is under way to an engine: who waits for it, which contents it carries to a machine, how many items.

::

    sent ─► lands: lacks contents? ─► `Carriage`: sent again with them; or parked, while another brings them

A share of a map, or a task of an executor's `map`, is large enough that what an engine takes to send one does
not count, and small enough that all groups end together (`ShareSize`).
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Collection
from typing import Any, Generic, TypeVar

LOST_MOST = 4
"""So many nodes may be lost under one flight."""


@dataclasses.dataclass(eq=False, slots=True)
class Flight:
    """A task on its way.

    Attributes
    ----------
    future : object
        Of the engine; None before it is sent.
    lost : int
        Nodes that were lost under it.
    tries : int
        How often it was packed anew, because a node could not import a module.
    carries : (str, frozenset of bytes) or None
        A machine, and hashes of contents for it.
    """

    future: Any = None
    lost: int = 0
    tries: int = 0
    carries: tuple[str, frozenset[bytes]] | None = None


_F = TypeVar("_F", bound=Flight)


class Carriage(Generic[_F]):
    """Contents on their way to machines: each once, however many flights lack it. Not thread-safe."""

    def __init__(self) -> None:
        self.parked: list[_F] = []  # until contents that they lack as well are there
        self._carried: dict[str, set[bytes]] = collections.defaultdict(set)

    def load(self, flight: _F, machine: str, lacks: Collection[bytes]) -> bool:
        """Let a flight carry what it lacks; False if others do that already: it is parked then."""
        wanted = frozenset(lacks)
        if wanted <= self._carried[machine]:
            self.parked.append(flight)
            return False
        self._carried[machine] |= wanted
        flight.carries = machine, wanted
        return True

    def unload(self, flight: _F) -> list[_F]:
        """Note that a flight has landed; returns those that were waiting, to be sent again."""
        if flight.carries is None:
            return []
        machine, contents = flight.carries
        flight.carries = None
        self._carried[machine] -= contents
        parked, self.parked = self.parked, []
        return parked


class Landing:
    """Futures that are done. It is all of a map that these refer to, however long an engine keeps them."""

    def __init__(self) -> None:
        self._done: collections.deque[Any] = collections.deque()
        self._condition = threading.Condition()

    def put(self, future: Any) -> None:
        """Note that a future is done; called in any thread."""
        with self._condition:
            self._done.append(future)
            self._condition.notify_all()

    def take(self, seconds: float | None) -> list[Any]:
        """Wait for the next ones, or so long."""
        with self._condition:
            self._condition.wait_for(lambda: self._done, seconds)
            done = list(self._done)
            self._done.clear()
        return done


#: A share should take about so long: many times what an engine takes to send one.
_SHARE_S = 0.4
#: ... and at least so long, however few items are left.
_SHARE_LEAST_S = 0.02
#: The caller takes about so long for each share. All groups together must not want one more often.
_CALLER_S = 0.001
#: A share is at most this part of what is left, per group.
_PARTS_LEFT = 3
#: How much larger than its predecessor a share may be.
_GROWTH = 16

DEPTH = 8
"""So many shares of a group are under way at most: the next one is there in time."""


class ShareSize:
    """The sizes of the shares of one map; tasks of an executor are shares for one worker.

    Parameters
    ----------
    groups : int
        Shares that run at a time.
    per_group : int
        Workers of each.
    per_item_s : float, optional
        What an item takes one worker, from earlier maps; 0: not known.
    """

    def __init__(self, groups: int, per_group: int, per_item_s: float = 0.0) -> None:
        self._groups = groups
        self._per_group = per_group
        self._size = 0
        self.per_item_s = per_item_s

    @property
    def depth(self) -> int:
        """How many shares of a group may be under way: one, as long as they can only be of the least size."""
        return DEPTH if self.per_item_s else 1

    def next(self, left: int) -> int:
        """Return how many of the items that are left the next share has.

        All workers of a group run a share, and wait for the last of them: long items come one for each, or
        two, not one for each and one more.
        """
        workers = self._per_group
        if not self.per_item_s:
            count = workers
        else:
            per_item_s = self.per_item_s / workers
            fair = left / (_PARTS_LEFT * self._groups)
            usual_s = max(_SHARE_S, 2 * self._groups * _CALLER_S)
            least_s = max(_SHARE_LEAST_S, self._groups * _CALLER_S)
            count = int(max(min(usual_s / per_item_s, fair), min(least_s / per_item_s, left)))
            if self._size:
                count = min(count, self._size * _GROWTH)
            count = max(count // workers, 1) * workers
        self._size = max(1, min(count, left))
        return self._size

    def took(self, items: int, seconds: float) -> None:
        """Note how long workers took for the items of a share."""
        if items:
            per_item_s = seconds / items
            self.per_item_s += (per_item_s - self.per_item_s) * (0.5 if self.per_item_s else 1.0)
