"""What a worker on a node does for a share that came from another machine: open the crates, run the items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ndshare import failures, mainspace
from ndshare._board import Board
from ndshare._freight import Crate, open_crate, reply
from ndshare._runner import Job, WorkerReport, run_in_worker
from ndshare.functors import Functor


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
    crates: list[tuple[bytes, list[tuple[Any, int]]]],
) -> WorkerReport:
    """Run items of a share, with the caller's functions in ``__main__``.

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
    mainspace.apply(open_crate(*crates[0]) or {})
    kernel, functor, data, arrays = open_crate(*crates[1])
    functor = open_crate(*crates[2]) if len(crates) > 2 else Part(functor, start, end)
    return run_in_worker(Job(kernel, functor, board, **options), data, arrays, ranges)


def call_function(crates: list[tuple[bytes, list[tuple[Any, int]]]]) -> tuple[Crate | None, Crate | None]:
    """Call a function of another machine; returns what it returns, or exception and traceback."""
    try:
        mainspace.apply(open_crate(*crates[0]) or {})
        function, args, kwargs = open_crate(*crates[1])
        return reply(function(*args, **kwargs)), None
    except BaseException as error:
        return None, reply(failures.portable(error))
