"""Cases: the headline example of each library that `ndshare.compat` stands in for, old import and new.

An original takes part where it can be imported. Each is run as its own documents run it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ndshare.bench import exchange
from ndshare.bench.goal import Goal, Result
from ndshare.bench.timing import Contestant, alternate
from ndshare.bench.work import add_one

_LARGE = 20_000_000  # elements: 160 MB, npshmex's own example
_QUICK_LARGE = 1_000_000
_MANY, _FEW = 1_000_000, 1_000  # items of triple_it
# Maps per round: the first ones find cold caches, and pages as the forks of others leave them.
_FEW_MAPS = {"pasha": 10, "ndshare": 200}
_KERNEL_SIDE = 1000  # contextshare's example has 2000, which takes a minute
_QUICK_KERNEL_SIDE = 100
_STATE = {"weights": (1000, 100), "bias": (100,)}  # SHMArrays' update loop
_SIGMAS = 2.0 ** np.arange(1, 12)

Floats = npt.NDArray[np.float64]

_TRIPLE_IT = """
def triple_it_of_{name}(worker_id, index, value):
    outp_of_{name}[index] = 3 * value
"""
_ONE_SIGMA = """
def one_sigma(sigma):
    K = np.exp(-0.5 * D / (sigma * sigma))
    return np.linalg.solve(K, b)
"""


def _of_script(source: str, name: str, **variables: Any) -> Any:
    """Return a function as a script has it: what belongs to a module is sent to workers in another way."""
    space = vars(sys.modules["__main__"])
    space.update(variables)
    exec(source, space)
    return space[name]


def originals() -> dict[str, str]:
    """Return which of the originals can be imported, and why not otherwise."""
    reasons = {}
    for name in ("pasha", "npshmex", "contextshare"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            reasons[name] = str(error)
    # contextshare sets this for the whole program when it is imported.
    multiprocessing.set_start_method(None, force=True)
    return reasons


def run(cases: Sequence[str], rounds: int, workers: int, quick: bool) -> Iterator[Result]:
    """Yield the result of each case."""
    missing = originals()
    if "pasha" in cases:
        yield from _maps(rounds, workers, quick, missing)
    if "npshmex" in cases:
        yield _executor(rounds, workers, quick, missing)
    if "contextshare" in cases:
        yield _kernels(rounds, workers, quick, missing)
    if "shared_numpy" in cases:
        yield exchange.frames(rounds, quick)
    if "SHMArrays" in cases:
        yield _updates(rounds, quick)


def _notes(name: str, missing: Mapping[str, str]) -> tuple[str, ...]:
    return (f"{name} left out: {missing[name]}",) if name in missing else ()


def _modules(name: str, missing: Mapping[str, str]) -> dict[str, Any]:
    """Return the original, if it is there, and what stands in for it."""
    modules = {} if name in missing else {name: importlib.import_module(name)}
    return modules | {"ndshare": importlib.import_module(f"ndshare.compat.{name}")}


# ---------------------------------------------------------------------- pasha


def _maps(rounds: int, workers: int, quick: bool, missing: Mapping[str, str]) -> Iterator[Result]:
    modules = _modules("pasha", missing)
    for count, least in ((_FEW, 20.0), (_MANY // 10 if quick else _MANY, 1.6)):
        inp = np.random.default_rng(1).random(count)
        contestants = {
            name: _triple(name, module.ProcessContext(workers), inp, _FEW_MAPS[name] if count == _FEW else 1)
            for name, module in modules.items()
        }
        yield Result(
            f"pasha-{count}",
            f"pasha: triple_it over an array of {count:,} items",
            "s",
            alternate(contestants, rounds),
            "pasha",
            (Goal(1 / least),),
            _notes("pasha", missing),
        )


def _triple(name: str, context: Any, inp: Floats, maps: int) -> Contestant:
    outp = context.alloc(like=inp)
    source = _TRIPLE_IT.format(name=name)
    triple_it = _of_script(source, f"triple_it_of_{name}", **{f"outp_of_{name}": outp})

    def check(_: Any) -> None:
        np.testing.assert_array_equal(outp, 3 * inp)
        outp[:] = 0

    def run() -> None:
        for _ in range(maps):
            context.map(triple_it, inp)

    return Contestant(run, check, maps)


# ---------------------------------------------------------------------- npshmex


def _executor(rounds: int, workers: int, quick: bool, missing: Mapping[str, str]) -> Result:
    big_data = np.ones(_QUICK_LARGE if quick else _LARGE)

    def check(result: Floats) -> None:
        if result.shape != big_data.shape or not (result[::4099] == 2.0).all():
            raise AssertionError("wrong result")

    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, module in _modules("npshmex", missing).items():
            executor = stack.enter_context(module.ProcessPoolExecutor(workers))
            call = partial(_call, executor.submit, big_data)
            contestants[name] = Contestant(call, check)
        values = alternate(contestants, rounds)
    return Result(
        "npshmex",
        f"npshmex: submit(add_one, big_data).result(), {big_data.nbytes / 1e6:.0f} MB",
        "s",
        values,
        "npshmex",
        (Goal(1 / 10),),
        _notes("npshmex", missing),
    )


def _call(submit: Callable[..., Any], big_data: Floats) -> Any:
    return submit(add_one, big_data).result()


# ---------------------------------------------------------------------- contextshare


def _kernels(rounds: int, workers: int, quick: bool, missing: Mapping[str, str]) -> Result:
    side = _QUICK_KERNEL_SIDE if quick else _KERNEL_SIDE
    rng = np.random.default_rng(1)
    values = {"D": rng.random((side, side)), "b": rng.random(side)}

    def check(results: list[Floats]) -> None:
        if len(results) != len(_SIGMAS) or any(result.shape != (side,) for result in results):
            raise AssertionError("wrong results")

    contestants = {
        name: Contestant(partial(_parallel, module.SharedMemory, values, workers), check)
        for name, module in _modules("contextshare", missing).items()
    }
    return Result(
        "contextshare",
        f"contextshare: its README's parallel(), N = {side}, {workers} workers",
        "s",
        alternate(contestants, max(3, rounds // 5)),
        "contextshare",
        notes=_notes("contextshare", missing),
    )


def _parallel(shared_memory: Any, values: dict[str, Floats], workers: int) -> Any:
    with shared_memory(values, nworkers=workers) as sm:
        one_sigma = sm.register(_of_script(_ONE_SIGMA, "one_sigma", np=np, **values))
        for sigma in _SIGMAS:
            one_sigma(sigma)
        return sm.evaluate()


# ---------------------------------------------------------------------- SHMArrays


class _Mechanism:
    """What SHMArrays does, which runs on Python 2 only: one lock, and every array through bytes and back."""

    def __init__(self, arrays: Mapping[str, Floats]) -> None:
        self._lock = multiprocessing.Lock()
        self._memory = memoryview(bytearray(sum(array.nbytes for array in arrays.values())))
        self.update_arrays(arrays, lambda new, _: new)

    def update_arrays(self, news: Mapping[str, Floats], function: Callable[[Any, Any], Any]) -> Any:
        with self._lock:
            content, offset, output = bytes(self._memory), 0, {}
            for key, new in news.items():
                old = np.frombuffer(content, new.dtype, new.size, offset).astype(new.dtype).reshape(new.shape)
                output[key] = function(new, old).astype(new.dtype)
                offset += new.nbytes
            self._memory[:] = b"".join(array.astype("f8").tobytes() for array in output.values())
        return output


def _updates(rounds: int, quick: bool) -> Result:
    from ndshare.compat.SHMArrays import SHMArrays

    rng = np.random.default_rng(1)
    state = {key: rng.random(shape) for key, shape in _STATE.items()}
    repeats = 5 if quick else 50
    with SHMArrays(state) as shared:
        updates: dict[str, Callable[..., Any]] = {
            "mechanism": _Mechanism(state).update_arrays,
            "ndshare": shared.update_arrays,
        }
        contestants = {
            name: Contestant(partial(_descend, update, state, repeats), _check_state, repeats)
            for name, update in updates.items()
        }
        values = alternate(contestants, rounds)
    return Result(
        "SHMArrays",
        "SHMArrays: state = update_arrays(gradient, ...), 0.8 MB",
        "s",
        values,
        "mechanism",
        notes=("mechanism: a lock, and the copies that SHMArrays makes, in private memory",),
    )


def _descend(update_arrays: Callable[..., Any], state: Mapping[str, Floats], repeats: int) -> Any:
    for _ in range(repeats):
        gradient = state
        state = update_arrays(gradient, lambda grad, state: state - 0.001 * grad)
    return state


def _check_state(state: Mapping[str, Floats]) -> None:
    for key, shape in _STATE.items():
        if state[key].shape != shape or not np.isfinite(state[key]).all():
            raise AssertionError(f"wrong state of {key}")
