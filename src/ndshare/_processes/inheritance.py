"""What can only be inherited, kept for workers that are forked from this program.

::

    this program: keep(initializer, initargs) ──fork──► zygote ──fork──► worker: kept[number]
                  its `__main__`              ──────────────────────────► where its tasks look up names

Locks, Values, Arrays, Events, Barriers and Queues of `multiprocessing` are not pickled but to a process that
`multiprocessing` itself is starting. A fork has them. So it has memory that is mapped as shared, of which
others get a copy at best.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable
from typing import Any

from ndshare._pickling import held, is_foreign

Content = tuple[Any, tuple[Any, ...]]

_numbers = itertools.count(1)
#: Initializers and their arguments, by the number of what was kept.
kept: dict[int, Content] = {}


def keep(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> int:
    """Keep them for processes that are forked from now on; returns the number to ask for them there."""
    number = next(_numbers)
    kept[number] = initializer, initargs
    return number


def drop(number: int) -> None:
    """Let go of what was kept."""
    kept.pop(number, None)


def is_wanted(error: BaseException | None) -> bool:
    """Whether this is what `multiprocessing` says about something that can only be inherited."""
    while error is not None:
        words = f"{error} {getattr(error, 'reason', '')}"
        if "through inheritance" in words or "SemLock created in a fork context" in words:
            return True
        error = error.__cause__ or error.__context__
    return False


def is_lost_on_copies(initargs: tuple[Any, ...]) -> bool:
    """Whether some of these lie in memory that forked workers share: what is written to a copy is lost."""
    return any(is_foreign(value) for _, value in held(("", value) for value in initargs))


def names_of_main() -> frozenset[str]:
    """Return the names of ``__main__`` that stand for something that can only be inherited."""
    found = set()
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if is_foreign(value):
            found.add(name)
        elif type(value).__module__.startswith("multiprocessing."):
            try:
                pickle.dumps(value)
            except Exception as error:
                if is_wanted(error):
                    found.add(name)
    return frozenset(found)
