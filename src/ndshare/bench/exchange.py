"""The case of shared_numpy: its timing comparison, with frames that are filled here and read there.

The original does not build for the Pythons of today; what it does is done here by hand: a segment per frame,
whose name goes through a queue of multiprocessing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import shared_memory
from typing import Any

import numpy as np

from ndshare.bench.goal import Result
from ndshare.bench.timing import Contestant, alternate
from ndshare.compat import shared_numpy as snp

_FRAMES = 10
_END_S = 10.0
_SIDE, _QUICK_SIDE = 3000, 300


def _pickled(queue: Any, shape: tuple[int, int], value: int) -> None:
    frame = np.ndarray(shape, dtype=np.float32)
    frame[:] = value
    queue.put(frame)


def _read_pickled(frame: Any) -> float:
    return float(frame.max())


def _by_hand(queue: Any, shape: tuple[int, int], value: int) -> None:
    memory = shared_memory.SharedMemory(create=True, size=4 * shape[0] * shape[1])
    frame: Any = np.ndarray(shape, np.float32, memory.buf)
    frame[:] = value
    queue.put((memory.name, shape))
    del frame
    memory.close()


def _read_by_hand(message: Any) -> float:
    memory = shared_memory.SharedMemory(message[0])
    frame: Any = np.ndarray(message[1], np.float32, memory.buf)
    value = float(frame.max())
    del frame
    memory.close()
    memory.unlink()
    return value


def _shared(queue: Any, shape: tuple[int, int], value: int) -> None:
    frame = snp.ndarray(shape, dtype=np.float32)
    frame[:] = value
    queue.put(frame)
    frame.close()


def _read_shared(frame: Any) -> float:
    value = float(frame.max())
    frame.close()
    frame.unlink()
    return value


_KINDS: dict[str, tuple[Callable[..., None], Callable[[Any], float]]] = {
    "not shared": (_pickled, _read_pickled),
    "by hand": (_by_hand, _read_by_hand),
    "ndshare": (_shared, _read_shared),
}


def _produce(name: str, queue: Any, orders: Any, shape: tuple[int, int]) -> None:
    put, _ = _KINDS[name]
    while orders.recv():
        for value in range(_FRAMES):
            put(queue, shape, value)
        queue.put(None)


@contextmanager
def _exchange(name: str, shape: tuple[int, int]) -> Iterator[Callable[[], list[float]]]:
    """Yield a function that has all frames made and returns what was read from them."""
    context = multiprocessing.get_context("spawn")
    queue: Any = snp.Queue() if name == "ndshare" else context.Queue()
    orders, theirs = context.Pipe()
    producer = context.Process(target=_produce, args=(name, queue, theirs, shape))
    producer.start()
    theirs.close()

    def run() -> list[float]:
        orders.send(True)
        values = []
        while (item := queue.get()) is not None:
            values.append(_KINDS[name][1](item))
        return values

    try:
        yield run
    finally:
        orders.send(False)
        producer.join(_END_S)
        if producer.exitcode is None:  # it waits for somebody to take what is in its queue
            producer.kill()
            producer.join()
        queue.close()


def _check(values: list[float]) -> None:
    if values != list(range(_FRAMES)):
        raise AssertionError(f"wrong frames: {values}")


def frames(rounds: int, quick: bool) -> Result:
    """Return the figures of all contestants."""
    shape = (_QUICK_SIDE, _QUICK_SIDE) if quick else (_SIDE, _SIDE)
    with ExitStack() as stack:
        runs = {name: stack.enter_context(_exchange(name, shape)) for name in _KINDS}
        values = alternate({name: Contestant(partial(run), _check) for name, run in runs.items()}, rounds)
    return Result(
        "shared_numpy",
        f"shared_numpy: {_FRAMES} frames of {4 * shape[0] * shape[1] / 1e6:.1f} MB, filled and read",
        "s",
        values,
        "by hand",
        notes=("by hand: a new segment for each frame, as shared_numpy makes it",),
    )
