"""What is under way to an engine: who waits for it, and which contents it carries to a machine.

::

    sent ─► lands: lacks contents? ─► `Carriage`: sent again with them; or parked, while another brings them
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
