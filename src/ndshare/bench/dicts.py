"""The dictionaries of ``ndshare bench dict``, behind one verb: replace a value by a moving average.

A manager's dict and UltraDict have no update of their own: the value is fetched, computed with, and stored,
with the lock that several processes need for that.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_KEPT_BYTES = 16 << 20
Update = Callable[[str, Floats], object]
Access = tuple[Callable[[str], Floats], Callable[[str, Floats], object]]


def average(new: Any, old: Any) -> Any:
    """Return the moving average that SHMArrays has as its default."""
    return 0.1 * new + 0.9 * old


def keep_memory() -> None:
    """Have the C library keep what arrays give back, as it does in programs that have run for a while.

    Otherwise each temporary of the plain expression is made of fresh pages, which takes ten times as long.
    """
    for _ in range(2):
        blocks = [np.ones(_KEPT_BYTES // 320) for _ in range(40)]
        blocks.append(np.ones(_KEPT_BYTES // 8))
        del blocks


class Dict:
    """The values of one library.

    Parameters
    ----------
    values : mapping
        Keys and first values.

    Attributes
    ----------
    handle
        What a process needs to use it; can be pickled.
    """

    name: ClassVar[str]
    module: ClassVar[str]  # what has to be importable
    handle: Any

    def __init__(self, values: Mapping[str, Floats]) -> None:
        raise NotImplementedError

    @classmethod
    def opened(cls, handle: Any) -> AbstractContextManager[Update]:
        """Have, in any process, a function that updates a key once."""
        raise NotImplementedError(f"{cls.name}: {handle}")

    @classmethod
    def accessed(cls, handle: Any) -> AbstractContextManager[Access]:
        """Have two functions: one gets the value of a key, the other one sets it."""
        raise NotImplementedError(f"{cls.name}: {handle}")

    def close(self) -> None:
        """Remove it."""


class Ndshare(Dict):
    """`SharedDict.update`, which returns a private copy of what it stored."""

    name = "ndshare"
    module = "ndshare"
    copy: ClassVar[bool] = True

    def __init__(self, values: Mapping[str, Floats]) -> None:
        import ndshare

        self.shared = ndshare.SharedDict(values)
        self.handle = self.shared.name

    @classmethod
    @contextlib.contextmanager
    def opened(cls, handle: Any) -> Iterator[Update]:
        """Yield a function that updates a key once."""
        import ndshare

        with ndshare.SharedDict.attach(handle) as shared:
            yield lambda key, new: shared.update({key: new}, average, copy=cls.copy)

    @classmethod
    @contextlib.contextmanager
    def accessed(cls, handle: Any) -> Iterator[Access]:
        """Yield two functions: one gets the value of a key, the other one sets it."""
        import ndshare

        with ndshare.SharedDict.attach(handle) as shared:
            yield shared.__getitem__, lambda key, new: shared.write({key: new})

    def close(self) -> None:
        """Remove it."""
        self.shared.close()


class NdshareViews(Ndshare):
    """The same with views instead of private copies."""

    name = "ndshare, copy=False"
    copy = False

    @classmethod
    @contextlib.contextmanager
    def accessed(cls, handle: Any) -> Iterator[Access]:
        """Yield two functions: one gets a view of the value of a key, the other one sets it."""
        import ndshare

        with ndshare.SharedDict.attach(handle) as shared:
            yield shared.view, lambda key, new: shared.write({key: new})


class Numpy(Dict):
    """Private arrays: what the expression itself takes."""

    name = "NumPy"
    module = "numpy"

    def __init__(self, values: Mapping[str, Floats]) -> None:
        self.handle = dict(values)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, handle: Any) -> Iterator[Update]:
        """Yield a function that updates a key once."""

        def update(key: str, new: Floats) -> None:
            handle[key] = average(new, handle[key])

        yield update


class Manager(Dict):
    """`multiprocessing.Manager().dict`."""

    name = "Manager().dict"
    module = "multiprocessing"

    def __init__(self, values: Mapping[str, Floats]) -> None:
        self.manager = multiprocessing.get_context("spawn").Manager()
        self.handle = self.manager.dict(values), self.manager.Lock()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, handle: Any) -> Iterator[Update]:
        """Yield a function that updates a key once."""
        shared, lock = handle

        def update(key: str, new: Floats) -> None:
            with lock:
                shared[key] = average(new, shared[key])

        yield update

    @classmethod
    @contextlib.contextmanager
    def accessed(cls, handle: Any) -> Iterator[Access]:
        """Yield two functions: one gets the value of a key, the other one sets it."""
        shared, _ = handle
        yield shared.__getitem__, shared.__setitem__

    def close(self) -> None:
        """Remove it."""
        self.manager.shutdown()


class Ultra(Dict):
    """UltraDict: a log of pickles in shared memory, and a dict of private values in each process.

    Its own lock between processes needs one package more; one of multiprocessing does the same.
    """

    name = "UltraDict"
    module = "UltraDict"

    def __init__(self, values: Mapping[str, Floats]) -> None:
        from UltraDict import UltraDict

        room = 8 * sum(value.nbytes for value in values.values())
        name = f"ndshare-bench-{os.getpid()}"
        self.shared = UltraDict(dict(values), name=name, buffer_size=room, full_dump_size=room)
        self.handle = name, room, multiprocessing.get_context("spawn").Lock()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, handle: Any) -> Iterator[Update]:
        """Yield a function that updates a key once."""
        from UltraDict import UltraDict

        name, room, lock = handle
        shared = UltraDict(name=name, create=False, buffer_size=room, full_dump_size=room)

        def update(key: str, new: Floats) -> None:
            with lock:
                shared[key] = average(new, shared[key])

        try:
            yield update
        finally:
            shared.close()

    def close(self) -> None:
        """Remove it."""
        self.shared.close(unlink=True)


DICTS: dict[str, type[Dict]] = {one.name: one for one in (Numpy, Ndshare, NdshareViews, Manager, Ultra)}
ALWAYS = tuple(one.name for one in (Numpy, Ndshare, NdshareViews, Manager))
