"""Tasks that keep what they got or made in every way Python knows, and others that write over it."""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

import ndshare

KEPT: list[Any] = []


def pattern(nbytes: int, seed: int) -> np.ndarray:
    """Make an array whose content tells the seed."""
    a = np.empty(nbytes // 8, np.int64)
    a.fill(seed)
    a += np.arange(a.size)
    return a


def is_pattern(a: np.ndarray, seed: int, start: int = 0) -> bool:
    """Tell whether an array still holds the pattern of `seed`, from item `start` on."""
    return bool((a == np.arange(start + seed, start + seed + a.size)).all())


def forget() -> None:
    """Drop what was kept."""
    KEPT.clear()


def kept() -> Any:
    """Return a copy of what the last keeping task kept."""
    return np.array(KEPT[-1])


def poke(sizes: tuple[int, ...] = ()) -> int:
    """Write over everything that was kept, and fill memory of these sizes twice; return the bytes poked."""
    poked = sum(_write(thing) for thing in KEPT)
    for _ in range(2):
        filled = []
        for nbytes in sizes:
            a = np.empty(nbytes, np.uint8)
            a.fill(0xEE)
            filled.append(a)
    return poked


def _write(thing: Any) -> int:
    if isinstance(thing, np.ndarray):
        if not thing.flags.writeable or not thing.size:
            return 0
        thing.view(np.uint8)[...] = 0xAA if thing.flags.c_contiguous else 0
        return thing.nbytes
    if isinstance(thing, memoryview):
        thing.cast("B")[:] = b"\xbb" * thing.nbytes
        return thing.nbytes
    if isinstance(thing, ctypes.Array):
        ctypes.memset(thing, 0xCC, ctypes.sizeof(thing))
        return ctypes.sizeof(thing)
    if isinstance(thing, np.flatiter):
        thing[...] = -1
        return thing.base.nbytes
    if isinstance(thing, weakref.ref):
        return _write(thing())
    if isinstance(thing, list | tuple):
        return sum(_write(item) for item in thing)
    if isinstance(thing, dict):
        return sum(_write(item) for item in thing.values())
    if callable(thing):
        return _write(thing())
    if hasattr(thing, "to_numpy"):
        thing[:] = -1
        return len(thing) * 8
    return 0


# ---- the ways to keep an array; each returns what is returned to the caller


def _keep(thing: Any) -> None:
    KEPT.append(thing)


def _itself(a: np.ndarray) -> Any:
    _keep(a)
    return a


def _a_view_and_return_the_array(a: np.ndarray) -> Any:
    _keep(a[:1])
    return a


def _the_array_and_return_a_view(a: np.ndarray) -> Any:
    _keep(a)
    return a[1:]


def _the_array_and_return_every_second(a: np.ndarray) -> Any:
    _keep(a)
    return a[::2]


def _as_base_of_other_dtype(a: np.ndarray) -> Any:
    _keep(a.view(np.uint8))
    return a


def _as_memoryview(a: np.ndarray) -> Any:
    _keep(memoryview(a))
    return a


def _as_ctypes(a: np.ndarray) -> Any:
    if a.size:
        _keep((ctypes.c_char * a.nbytes).from_buffer(a))
    return a


def _as_flatiter(a: np.ndarray) -> Any:
    _keep(a.flat)
    return a


def _as_frombuffer(a: np.ndarray) -> Any:
    _keep(np.frombuffer(a.data, np.uint8) if a.size else a)
    return a


def _in_a_series(a: np.ndarray) -> Any:
    import pandas as pd

    _keep(pd.Series(a, copy=False))
    return a


def _in_a_closure(a: np.ndarray) -> Any:
    _keep(lambda: a)
    return a


def _in_a_partial(a: np.ndarray) -> Any:
    _keep(functools.partial(np.asarray, a))
    return a


def _in_a_generator(a: np.ndarray) -> Any:
    def generate() -> Any:
        while True:
            yield a

    generator = generate()
    next(generator)
    _keep(functools.partial(next, generator))
    return a


def _in_a_traceback(a: np.ndarray) -> Any:
    try:
        _raise(a)
    except ValueError as error:
        saved = error
    _keep(lambda: saved.__traceback__.tb_next.tb_frame.f_locals["a"])
    return a


def _raise(a: np.ndarray) -> None:
    raise ValueError("for the traceback")


def _in_a_thread(a: np.ndarray) -> Any:
    begin, done = threading.Event(), threading.Event()

    def write() -> None:
        begin.wait()
        a[...] = -1
        done.set()

    threading.Thread(target=write, daemon=True).start()

    def let() -> list[np.ndarray]:
        begin.set()
        done.wait()
        return [a]

    _keep(let)
    return a


def _in_a_cycle(a: np.ndarray) -> Any:
    cycle: list[Any] = [a]
    cycle.append(cycle)
    # Nobody keeps it, but only the garbage collector knows.
    return a


def _in_a_kept_cycle(a: np.ndarray) -> Any:
    cycle: dict[str, Any] = {"a": a}
    cycle["me"] = weakref.ref(np.empty(0))
    _keep(cycle)
    return a


def _twice(a: np.ndarray) -> Any:
    _keep(a)
    return [a, a]


def _with_a_view(a: np.ndarray) -> Any:
    _keep(a[1:])
    return [a, a[1:-1]]


def _inside_a_container(a: np.ndarray) -> Any:
    container = {"a": a}
    _keep(container)
    return [container]


def _only_weakly(a: np.ndarray) -> Any:
    reference = weakref.ref(a)
    _keep(lambda: reference() if reference() is not None else np.empty(0))
    return a


@functools.cache
def _cached(nbytes: int, seed: int) -> np.ndarray:
    return pattern(nbytes, seed)


WAYS: dict[str, Callable[[np.ndarray], Any]] = {
    name.strip("_").replace("_", " "): function
    for name, function in list(globals().items())
    if name.startswith(
        ("_itself", "_a_view", "_the_array", "_as_", "_in_a_", "_twice", "_with_a", "_inside", "_only")
    )
}


def keep_argument(way: str, a: np.ndarray) -> Any:
    """Keep an argument and return it."""
    return WAYS[way](a)


def keep_own(way: str, nbytes: int, seed: int) -> Any:
    """Make an array here, keep it and return it."""
    return WAYS[way](pattern(nbytes, seed))


def keep_cached(nbytes: int, seed: int) -> np.ndarray:
    """Return what a cache holds, the same object each time."""
    a = _cached(nbytes, seed)
    if not any(a is b for b in KEPT):
        KEPT.append(a)
    return a


# ---- shared memory


def add_to(a: np.ndarray, start: int, stop: int, times: int, value: int) -> None:
    """Add to a slice of a shared array, many times."""
    for _ in range(times):
        a[start:stop] += value


def total(a: Any) -> Any:
    """Return the sum, of an array or of all in a list or dict."""
    if isinstance(a, dict):
        a = list(a.values())
    return sum(map(total, a)) if isinstance(a, list) else a.sum()


def try_to_write(a: np.ndarray) -> list[str]:
    """Try every polite way to write to a read-only array; return what was refused."""
    refused = []
    attempts: dict[str, Callable[[], object]] = {
        "item": lambda: a.__setitem__(0, 1),
        "ufunc": lambda: np.add(a, 1, out=a),
        "flag": lambda: a.setflags(write=True),
        "flag of a view": lambda: a[:].setflags(write=True),
        "flag of another dtype": lambda: a.view(np.uint8).setflags(write=True),
        "fill": lambda: a.fill(1),
        "memoryview": lambda: memoryview(a).cast("B").__setitem__(0, 1),
        "ctypes": lambda: (ctypes.c_char * a.nbytes).from_buffer(a),
        "base": lambda: a.base.setflags(write=True) if isinstance(a.base, np.ndarray) else _refuse(),
        "base's buffer": lambda: np.frombuffer(a.base, np.uint8).setflags(write=True),
        "resize": lambda: a.resize(1, refcheck=False),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, TypeError, BufferError):
            refused.append(name)
    return sorted(set(attempts) - set(refused))


def _refuse() -> None:
    raise ValueError("no array to change the flag of")


def shared_segments(count: int) -> list[np.ndarray]:
    """Make many shared arrays, each a segment of its own."""
    return [ndshare.share(np.full(3, i), mode="r") for i in range(count)]
