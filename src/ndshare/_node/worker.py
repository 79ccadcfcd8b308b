"""What a worker on a node does for a share that came from another machine: open the crates, run the items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ndshare._map import Job, run_in_worker
from ndshare._node.twins import Change
from ndshare._pickling import advanced_by, arrived
from ndshare._system import Board
from ndshare._transport import Crate, open_crate, portable, reply
from ndshare.functors import Functor

Opened = list[tuple[bytes, list[tuple[Any, int]]]]
"""Pickles and their arrays."""


class Part(Functor):
    """Some consecutive items of a functor that is there as a whole.

    Parameters
    ----------
    functor : Functor
        With a length.
    start, end : int
        The items.
    """

    def __init__(self, functor: Functor, start: int, end: int) -> None:
        self._functor = functor
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def iterate(self, share: slice) -> Iterator[tuple[Any, ...]]:
        """Yield entries."""
        start = self._start
        yield from self._functor.iterate(slice(start + share.start, start + share.stop))

    def close(self) -> None:
        """Close the files of the functor, if it has any."""
        if callable(close := getattr(self._functor, "close", None)):
            close()


def run_part(
    board: Board,
    options: dict[str, Any],
    start: int,
    end: int,
    ranges: Sequence[tuple[int, int]],
    crates: Opened,
) -> list[Any]:
    """Run items of a share, with the caller's functions in ``__main__``; returns the facts of the report.

    Parameters
    ----------
    board : Board
        Of the share.
    options : dict
        Fields of the job.
    start, end : int
        Which items of the collection.
    ranges : sequence of (int, int)
        To be run first, counted from the start of the share.
    crates : list of (bytes, list)
        Pickles and their arrays: what functions need; kernel, functor, globals, arrays of modules; and the
        functor of the share if it has one of its own.
    """
    open_crate(*crates[0])  # binds them
    kernel, functor, data, arrays = open_crate(*crates[1])
    functor = open_crate(*crates[2]) if len(crates) > 2 else Part(functor, start, end)
    return run_in_worker(Job(kernel, functor, board, **options), data, arrays, ranges).facts()


class Answer(NamedTuple):
    """What became of calls: what they returned or raised, as crates; whether they were not even tried.

    ``lost`` is what the caller is to be warned of.
    """

    outcome: Crate | None
    failure: Crate | None = None
    unopened: bool = False
    changes: tuple[Change, ...] = ()  # of the values of a workspace
    lost: tuple[tuple[str, str], ...] = ()


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


class Named:
    """Something to call that goes by the name of the user's function in messages.

    Parameters
    ----------
    function : callable
        What is called.
    name : str
        As of `ndshare._pool.tasks.describe`.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        module, _, self.__qualname__ = name.removesuffix("()").rpartition(".")
        self.__module__ = module

    def __call__(self, *args: object) -> Any:
        return self.function(*args)


def call_function(crates: Opened, call: Callable[..., Any] = _call) -> Answer:
    """Call a function of another machine.

    Parameters
    ----------
    crates : list of (bytes, list)
        What functions need; function and arguments.
    call : callable
        Called with function, tuple and dict of arguments.
    """
    try:
        open_crate(*crates[0])  # binds them
        function, args, kwargs = open_crate(*crates[1])
    except BaseException as error:
        return Answer(None, reply(portable(error)), unopened=True)
    try:
        outcome = reply(call(function, args, kwargs))
        return Answer(outcome, lost=tuple(advanced_by(function, args)) if arrived else ())
    except BaseException as error:
        return Answer(None, reply(portable(error)))


def call_items(crates: Opened) -> Answer:
    """Call a function for one item after the other, up to the first error; the seconds are answered, too."""
    try:
        open_crate(*crates[0])  # binds them
        function = open_crate(*crates[1])
        open_crate(*crates[2])  # binds them
        items = open_crate(*crates[3])
    except BaseException as error:
        return Answer(None, reply(portable(error)), unopened=True)
    outcomes: list[tuple[Any, Any]] = []
    began = time.perf_counter()
    for args in items:
        try:
            outcomes.append((function(*args), None))
        except BaseException as error:
            outcomes.append((None, portable(error)))
            break
    seconds = time.perf_counter() - began
    lost = tuple(advanced_by(function, ())) if arrived else ()
    try:
        return Answer(reply((outcomes, seconds)), lost=lost)
    except Exception:  # a result that cannot be sent is an error of its item
        return Answer(reply((_sendable(outcomes), seconds)), lost=lost)


def _sendable(outcomes: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    for number, outcome in enumerate(outcomes):
        try:
            reply(outcome)
        except Exception as error:
            return [*outcomes[:number], (None, portable(error))]
    return outcomes
