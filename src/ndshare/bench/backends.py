"""Cases: joblib's backends with a large input, and with large results."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ndshare.bench.goal import Goal, Result
from ndshare.bench.timing import Contestant, alternate
from ndshare.bench.work import filled, slice_sum

Floats = npt.NDArray[np.float64]

_INPUT_BYTES = 1_000_000_000
_QUICK_INPUT_BYTES = 50_000_000
_TASKS = 100
_RESULT_BYTES = 100_000_000
_QUICK_RESULT_BYTES = 5_000_000
_RESULTS = 4  # alive at a time


class Backend:
    """One backend of joblib, warm: its workers stay from call to call."""

    name: ClassVar[str]
    module: ClassVar[str] = "joblib"

    def __init__(self, workers: int) -> None:
        self._joblib = importlib.import_module("joblib")
        self.prepare()
        self._workers = workers
        self.call(abs, [(number,) for number in range(2 * workers)])

    def prepare(self) -> None:
        """Make the backend known, where joblib does not bring it."""

    def call(self, function: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Return the results of the calls."""
        delayed = self._joblib.delayed(function)
        with self._joblib.parallel_config(self.name, n_jobs=self._workers):
            # A new one for each call, as scikit-learn does: nothing is left of the last call's inputs.
            parallel = self._joblib.Parallel(batch_size=1)
            results: list[Any] = parallel(delayed(*args) for args in arguments)
        return results

    def close(self) -> None:
        """End the workers."""


class Ndshare(Backend):
    """ndshare: inputs copied once and mapped copy-on-write, results lent."""

    name = "ndshare"

    def prepare(self) -> None:
        importlib.import_module("ndshare.integrations.joblib").register()


class Loky(Backend):
    """joblib's default: inputs written to a memory-mapped file once, results pickled."""

    name = "loky"

    def close(self) -> None:
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


class Multiprocessing(Backend):
    """joblib's old one: as loky, on a pool of multiprocessing."""

    name = "multiprocessing"


class Threading(Backend):
    """No processes and no copies: the floor for functions that release the interpreter's lock."""

    name = "threading"


BACKENDS: dict[str, type[Backend]] = {
    backend.name: backend for backend in (Ndshare, Loky, Multiprocessing, Threading)
}
ALWAYS = ("ndshare", "loky")


def run(backends: Mapping[str, Backend], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the result of each case.

    Parameters
    ----------
    backends
        What joblib runs on, by name.
    rounds
        How often each contestant is timed.
    quick
        Twenty times smaller arrays, to see that everything works.
    """
    size = (_QUICK_INPUT_BYTES if quick else _INPUT_BYTES) // 8
    x = np.full(size, 0.5)
    expected = [slice_sum(x, number, _TASKS) for number in range(_TASKS)]
    arguments = [(x, number, _TASKS) for number in range(_TASKS)]
    yield Result(
        "joblib-input",
        f"{_TASKS} tasks that sum a part of an ordinary array of {x.nbytes / 1e9:g} GB",
        "s",
        alternate(
            {
                name: Contestant(partial(backend.call, slice_sum, arguments), partial(_check_sums, expected))
                for name, backend in backends.items()
            },
            max(3, rounds // 3),
        ),
        "loky",
        (Goal(1.0),),
    )
    del x, arguments
    length = (_QUICK_RESULT_BYTES if quick else _RESULT_BYTES) // 8
    fills = [(length, float(number)) for number in range(_RESULTS)]
    yield Result(
        "joblib-results",
        f"{_RESULTS} results of {length * 8 / 1e6:g} MB, per result",
        "s",
        alternate(
            {
                name: Contestant(partial(backend.call, filled, fills), _check_filled, _RESULTS)
                for name, backend in backends.items()
            },
            max(3, rounds // 3),
        ),
        "loky",
        (Goal(0.2),),
    )


def _check_sums(expected: list[float], results: list[float]) -> None:
    if results != expected:
        raise AssertionError(f"wrong sums: {results[:3]} ..., expected {expected[:3]} ...")


def _check_filled(results: list[Floats]) -> None:
    for number, result in enumerate(results):
        if not (result[::4099] == number).all():
            raise AssertionError(f"wrong result {number}: {result[:3]} ...")
