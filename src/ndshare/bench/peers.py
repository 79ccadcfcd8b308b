"""The libraries, each behind the same three verbs.

A peer that cannot be imported is left out of a run, with the reason in the report.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar


class Peer:
    """A pool of worker processes of one library.

    Parameters
    ----------
    workers : int
        Number of worker processes.
    """

    name: ClassVar[str]
    module: ClassVar[str]  # what has to be importable

    def __init__(self, workers: int) -> None:
        raise NotImplementedError

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one task and return its result."""
        raise NotImplementedError

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        """Submit ``function(0), ..., function(count - 1)`` at once; return the results in order."""
        raise NotImplementedError

    def map(self, function: Callable[[int], Any], count: int) -> list[Any]:
        """Do the same by the library's map, one item per message."""
        raise NotImplementedError

    def close(self) -> None:
        """End the workers."""
        raise NotImplementedError


class _ExecutorPeer(Peer):
    """Anything with the interface of `concurrent.futures`."""

    executor: Any

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.executor.submit(function, *args).result()

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return [future.result() for future in [self.executor.submit(function, i) for i in range(count)]]

    def map(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return list(self.executor.map(function, range(count), chunksize=1))

    def close(self) -> None:
        self.executor.shutdown()


class Ndshare(_ExecutorPeer):
    """The subject: `ndshare.ProcessPoolExecutor`."""

    name = "ndshare"
    module = "ndshare"

    def __init__(self, workers: int) -> None:
        import ndshare

        self.executor = ndshare.ProcessPoolExecutor(workers)


class Stdlib(_ExecutorPeer):
    """`concurrent.futures.ProcessPoolExecutor`, with the default start method."""

    name = "stdlib"
    module = "concurrent.futures"

    def __init__(self, workers: int) -> None:
        self.executor = concurrent.futures.ProcessPoolExecutor(workers)


class StdlibPool(Peer):
    """`multiprocessing.Pool`, with the default start method."""

    name = "mp.Pool"
    module = "multiprocessing.pool"

    def __init__(self, workers: int) -> None:
        import multiprocessing

        self.pool = multiprocessing.Pool(workers)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(function, args)

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return [result.get() for result in [self.pool.apply_async(function, (i,)) for i in range(count)]]

    def map(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return self.pool.map(function, range(count), chunksize=1)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Npshmex(_ExecutorPeer):
    """npshmex: an executor that copies arrays through named shared memory."""

    name = "npshmex"
    module = "npshmex"

    def __init__(self, workers: int) -> None:
        self.executor = importlib.import_module("npshmex").ProcessPoolExecutor(workers)


class Loky(_ExecutorPeer):
    """loky: the robust executor behind joblib."""

    name = "loky"
    module = "loky"

    def __init__(self, workers: int) -> None:
        self.executor = importlib.import_module("loky").ProcessPoolExecutor(workers)


class Joblib(Peer):
    """joblib: large arguments as memory maps of files in /dev/shm, results pickled."""

    name = "joblib"
    module = "joblib"

    def __init__(self, workers: int) -> None:
        joblib = importlib.import_module("joblib")
        self._delayed = joblib.delayed
        self._parallel = joblib.Parallel(n_jobs=workers).__enter__()
        self._single = joblib.Parallel(n_jobs=workers, batch_size=1)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._parallel([self._delayed(function)(*args)])[0]

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        results: list[Any] = self._parallel(self._delayed(function)(i) for i in range(count))
        return results

    def map(self, function: Callable[[int], Any], count: int) -> list[Any]:
        results: list[Any] = self._single(self._delayed(function)(i) for i in range(count))
        return results

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


class Mpire(Peer):
    """mpire: a pool with queues per worker."""

    name = "mpire"
    module = "mpire"

    def __init__(self, workers: int) -> None:
        mpire = importlib.import_module("mpire")
        self.pool = mpire.WorkerPool(workers)
        self._mapper = mpire.WorkerPool(workers)  # a pool that has run apply() cannot run map() (2.10)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.pool.apply(function, args)

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return [result.get() for result in [self.pool.apply_async(function, (i,)) for i in range(count)]]

    def map(self, function: Callable[[int], Any], count: int) -> list[Any]:
        return list(self._mapper.map(function, range(count), chunk_size=1))

    def close(self) -> None:
        self.pool.stop_and_join()
        self._mapper.stop_and_join()


class Ray(Peer):
    """Ray: a cluster of one machine with an object store."""

    name = "ray"
    module = "ray"

    def __init__(self, workers: int) -> None:
        self._ray = importlib.import_module("ray")
        self._ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self._remotes: dict[Callable[..., Any], Any] = {}

    def _remote(self, function: Callable[..., Any]) -> Any:
        if function not in self._remotes:
            self._remotes[function] = self._ray.remote(function)
        return self._remotes[function]

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._ray.get(self._remote(function).remote(*args))

    def many(self, function: Callable[[int], Any], count: int) -> list[Any]:
        remote = self._remote(function)
        results: list[Any] = self._ray.get([remote.remote(i) for i in range(count)])
        return results

    map = many  # Ray has no map of its own for tasks

    def close(self) -> None:
        self._ray.shutdown()


PEERS: dict[str, type[Peer]] = {
    peer.name: peer for peer in (Ndshare, Stdlib, StdlibPool, Npshmex, Joblib, Loky, Mpire, Ray)
}
ALWAYS = ("ndshare", "stdlib", "mp.Pool")  # the goals are set against these


class _Closeable(Protocol):
    module: ClassVar[str]

    def __init__(self, workers: int) -> None: ...

    def close(self) -> None: ...


_Kind = TypeVar("_Kind", bound=_Closeable)


def importable(
    names: Iterable[str], table: Mapping[str, type[_Closeable]] = PEERS
) -> tuple[dict[str, str], dict[str, str]]:
    """Return ``{name: version}`` of the peers that can be imported and ``{name: reason}`` of the others."""
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        module = table[name].module
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing[name] = f"not installed: {error}"
            continue
        try:
            versions[name] = importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "of this Python"
    return versions, missing


@contextlib.contextmanager
def opened(
    names: Iterable[str], workers: int, table: Mapping[str, type[_Kind]]
) -> Iterator[dict[str, _Kind]]:
    """Yield ``{name: peer}`` with the workers of all of them running; end them afterwards."""
    with contextlib.ExitStack() as stack:
        pools: dict[str, _Kind] = {}
        for name in names:
            pools[name] = table[name](workers)
            stack.callback(pools[name].close)
        yield pools
