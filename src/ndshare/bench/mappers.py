"""The libraries of ``ndshare bench map``, each behind the same two verbs.

Kernels of ndshare and pasha write to arrays; functions of the others return what the caller then makes an
array of. Both are what their documentation recommends.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Work:
    """What is done with each value, in both forms.

    Parameters
    ----------
    function
        Called with the value, and `constants` as keywords; returns the result.
    kernel
        Called with an array for the results; returns a kernel that writes them there.
    constants
        What the function needs besides.
    """

    function: Callable[..., object]
    kernel: Callable[[Numbers], Callable[..., object]]
    constants: Mapping[str, Any]


class Mapper:
    """The workers of one library.

    Parameters
    ----------
    workers : int
        Number of worker processes.
    """

    name: ClassVar[str]
    module: ClassVar[str]  # what has to be importable

    def __init__(self, workers: int) -> None:
        raise NotImplementedError

    def prepare(self, work: Work, values: Any, dtype: npt.DTypeLike) -> Callable[[], Numbers]:
        """Return a function that maps `work` over the values, and returns the results."""
        raise NotImplementedError

    def close(self) -> None:
        """End the workers."""


class _InPlace(Mapper):
    """Anything with the interface of pasha."""

    context: Any

    def prepare(self, work: Work, values: Any, dtype: npt.DTypeLike) -> Callable[[], Numbers]:
        out: Numbers = self.context.alloc(len(values), dtype)
        kernel = work.kernel(out)

        def run() -> Numbers:
            self.context.map(kernel, values)
            return out

        return run


class Ndshare(_InPlace):
    """The subject: `ndshare.ProcessContext`."""

    name = "ndshare"
    module = "ndshare"

    def __init__(self, workers: int) -> None:
        import ndshare

        self.context = ndshare.ProcessContext(workers)
        self._shutdown = ndshare.shutdown

    def close(self) -> None:
        self._shutdown()


class Pasha(_InPlace):
    """pasha: processes forked for each map."""

    name = "pasha"
    module = "pasha"

    def __init__(self, workers: int) -> None:
        self.context = importlib.import_module("pasha").ProcessContext(num_workers=workers)


class _Returning(Mapper):
    """Anything that maps a function over some values and returns a list."""

    def map(self, function: Callable[..., object], values: Iterable[Any]) -> Iterable[Any]:
        """Return the results in order."""
        raise NotImplementedError

    def prepare(self, work: Work, values: Any, dtype: npt.DTypeLike) -> Callable[[], Numbers]:
        if isinstance(values, np.ndarray):
            values = values.tolist()  # mpire hands slices of an array to the function, not values
        function = partial(work.function, **work.constants) if work.constants else work.function
        return lambda: np.array(self.map(function, values), dtype)


class Joblib(_Returning):
    """joblib: processes that stay; large arguments as memory maps of files in /dev/shm."""

    name = "joblib"
    module = "joblib"

    def __init__(self, workers: int) -> None:
        joblib = importlib.import_module("joblib")
        self._delayed = joblib.delayed
        self._parallel = joblib.Parallel(n_jobs=workers).__enter__()

    def map(self, function: Callable[..., object], values: Iterable[Any]) -> Iterable[Any]:
        results: list[Any] = self._parallel(self._delayed(function)(value) for value in values)
        return results

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


class Mpire(_Returning):
    """mpire: processes that stay, a queue for each."""

    name = "mpire"
    module = "mpire"

    def __init__(self, workers: int) -> None:
        self._pool = importlib.import_module("mpire").WorkerPool(workers, keep_alive=True)

    def map(self, function: Callable[..., object], values: Iterable[Any]) -> Iterable[Any]:
        results: list[Any] = self._pool.map(function, values)
        return results

    def close(self) -> None:
        self._pool.stop_and_join()


class StdlibPool(_Returning):
    """`multiprocessing.Pool`, with the default start method and chunk size."""

    name = "mp.Pool"
    module = "multiprocessing.pool"

    def __init__(self, workers: int) -> None:
        import multiprocessing

        self._pool = multiprocessing.Pool(workers)

    def map(self, function: Callable[..., object], values: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(function, values)

    def close(self) -> None:
        self._pool.close()
        self._pool.join()


MAPPERS: dict[str, type[Mapper]] = {
    mapper.name: mapper for mapper in (Ndshare, StdlibPool, Pasha, Joblib, Mpire)
}
ALWAYS = ("ndshare", "mp.Pool")
