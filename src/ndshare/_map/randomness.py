"""Random numbers in a kernel that depend on the seed and the index of the item, and on nothing else.

One Philox generator per worker thread. Its key is made of the seed, its counter of the index: word 2 of
the four, so that each item has 2**128 blocks of its own before it would come to those of the next. Which
worker has an item, what it drew before and how often a share was begun do not matter.

Philox is a counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1,
2, 3", SC11): to set the counter is all it takes to jump.
"""

from __future__ import annotations

import threading
from typing import Any, Self

import numpy as np

from ndshare._processes import name_items
from ndshare._system import load_u64

__all__ = ["Stream", "item_rng"]

_INDEX_SHIFT = 2  # the low bits of a worker's slot say what it does with the item
_NO_INDEX = -1


class Stream:
    """The random numbers of one worker thread in one map; while it is entered, `item_rng` works there.

    Parameters
    ----------
    seed : int, optional
        The seed of the map; without one `item_rng` says that it needs one.
    board : buffer
        Writable; ``load_u64(board, slot_offset) >> 2`` is the index of the current item.
    slot_offset : int
        Offset of this worker's slot in bytes, a multiple of 8.
    first : int, optional
        Index of the first item on the board, for a map that goes over several boards.

    Notes
    -----
    Contexts nest: a map inside a kernel has a generator of its own, and that of the outer item goes on
    after it.
    """

    __slots__ = (
        "_bits",
        "_board",
        "_counter",
        "_first",
        "_generator",
        "_index",
        "_outer",
        "_seed",
        "_slot_offset",
        "_state",
    )

    def __init__(self, seed: int | None, board: Any, slot_offset: int, first: int = 0) -> None:
        self._first = first
        self._seed = seed
        self._board = board
        self._slot_offset = slot_offset
        self._index = _NO_INDEX
        self._generator: np.random.Generator | None = None

    def __enter__(self) -> Self:
        self._outer = getattr(_local, "stream", None)
        _local.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        _local.stream = self._outer

    def restart(self) -> None:
        """Begin anew at the next call, though it be for the same item: it is tried again."""
        self._index = _NO_INDEX

    @property
    def index(self) -> int:
        """Of the item this worker is at."""
        return self._first + (load_u64(self._board, self._slot_offset) >> _INDEX_SHIFT)

    def generator(self) -> np.random.Generator:
        """Return the generator of the current item; further calls go on where the one before stopped."""
        index = self.index
        generator = self._generator or self._make()
        if index != self._index:
            # The state is set through NumPy's own interface (1.1 us): writing the counter through
            # `ctypes.state_address` would save one of them and depend on the layout of a private structure.
            self._counter[2] = index
            self._bits.state = self._state
            self._index = index
        return generator

    def _make(self) -> np.random.Generator:
        if self._seed is None:
            raise RuntimeError(
                "item_rng: this map was started without a seed, and the generator of an item is made of the "
                "seed and its index; call map(..., seed=0), or any other number"
            )
        key = np.random.SeedSequence(self._seed).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._state: Any = self._bits.state
        self._counter = self._state["state"]["counter"]
        self._generator = np.random.Generator(self._bits)
        return self._generator


_local = threading.local()


def current_item() -> int | None:
    """Return the index of the item that this thread is at; None outside of a kernel."""
    stream: Stream | None = getattr(_local, "stream", None)
    return None if stream is None else stream.index


name_items(current_item)


def item_rng() -> np.random.Generator:
    """Return the random number generator of the item a kernel works on.

    Page: docs/map.md.

    What it draws depends on the ``seed`` of the map and the index of the item only: the same bits in every
    context, with any number of workers, in any order. No two items share a stream.

    Returns
    -------
    numpy.random.Generator
        To be used until the kernel returns. Called again for the same item it is the same generator, which
        goes on where it was.

    Raises
    ------
    RuntimeError
        Outside of a kernel, in a thread that the kernel started, or if the map was given no seed.

    Notes
    -----
    Costs 2 µs per item; a new ``numpy.random.default_rng`` costs 10. The algorithm is Philox, with a key from
    `numpy.random.SeedSequence`.

    Examples
    --------
    A kernel that draws for each item::

        def kernel(worker_id, index, value):
            out[index] = ndshare.item_rng().normal(value)

        ctx.map(kernel, values, seed=1)
    """
    stream = getattr(_local, "stream", None)
    if stream is None:
        raise RuntimeError(
            "item_rng: no item is being mapped in this thread; call it in the kernel of map(..., seed=0), in "
            "the thread that runs the kernel. Elsewhere numpy.random.default_rng(seed) makes a generator"
        )
    generator: np.random.Generator = stream.generator()
    return generator
