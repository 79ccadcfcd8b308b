"""Functor of generators and other iterators, whose length nobody knows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any, NoReturn, Self

from ndshare.functors.base import Functor

__all__ = ["IteratorFunctor"]

_EVERYTHING = slice(None)  # the one share: what has not been taken yet


class IteratorFunctor(Functor):
    """Functor of an iterator: its values are taken in the caller's process, a bounded batch at a time.

    Parameters
    ----------
    iterator : iterator
        Has ``__next__``; it is used up.

    Attributes
    ----------
    iterator : iterator
        The same.
    taken : int
        How many values have been taken; the index of the next one.

    Notes
    -----
    Thread-safe. It cannot be sent to another process: what `take` returns can.

    Examples
    --------
    >>> from ndshare.functors import IteratorFunctor
    >>> functor = IteratorFunctor(x * x for x in range(5))
    >>> functor.take(3), functor.take(3), functor.take(3)
    ([0, 1, 4], [9, 16], [])
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        if not isinstance(iterator, Iterator):
            raise TypeError(
                f"IteratorFunctor: needs an iterator, got {type(iterator).__name__}; pass iter(...) of it"
            )
        self.iterator = iterator
        self.taken = 0
        self._failure: Exception | None = None
        self._kept: list[Any] = []  # taken, but not handed out
        self._lock = threading.Lock()

    @classmethod
    def wrap(cls, value: Any) -> Self | None:
        """Accept iterators."""
        return cls(value) if isinstance(value, Iterator) else None

    def take(self, count: int) -> list[Any]:
        """Return the next values.

        Parameters
        ----------
        count : int
            How many, at most.

        Returns
        -------
        list
            Fewer than `count` when the iterator has ended or failed, none after its end.

        Raises
        ------
        Exception
            What the iterator raises: by the first call that has no values left from before it.
        """
        if count < 1:
            raise ValueError(f"IteratorFunctor.take: count is {count}; it must be at least 1")
        return self._take(count)[1]

    def _take(self, count: int) -> tuple[int, list[Any]]:
        """Return the index of the next value, and the next values."""
        with self._lock:
            values, self._kept = self._kept[:count], self._kept[count:]
            try:
                if self._failure is None and len(values) < count:
                    values.extend(itertools.islice(self.iterator, count - len(values)))
            except Exception as error:
                self._failure = error  # what came before it is in the list
            except BaseException:  # Ctrl-C: now, and without losing anything
                self._kept = values
                raise
            if self._failure is not None and not values:
                failure, self._failure = self._failure, None
                raise failure
            self.taken += len(values)
            return self.taken - len(values), values

    def split(self, num_workers: int) -> list[slice]:  # noqa: ARG002
        """Return a single share: an iterator cannot be divided."""
        return [_EVERYTHING]

    def iterate(self, share: Any = _EVERYTHING) -> Iterator[tuple[Any, ...]]:
        """Yield all that has not been taken yet."""
        if share != _EVERYTHING:
            raise TypeError(
                f"IteratorFunctor: {share!r} of an iterator cannot be had without what comes before it; "
                "iterate over all of it, or take() batches"
            )
        while True:
            index, values = self._take(1)
            if not values:
                return
            yield index, values[0]

    def __reduce__(self) -> NoReturn:
        kind = type(self.iterator)
        name = getattr(self.iterator, "__qualname__", None)
        what = f"the {kind.__name__} {name!r}" if name else f"a {kind.__name__}"
        raise TypeError(
            f"cannot send {what} to another process: "
            "its values are made here, one after the other; send batches of them, or a list"
        )
