"""Cases: import, and the first result of a new pool. Each measurement is a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from ndshare.bench.goal import Goal, Result
from ndshare.bench.timing import Contestant, alternate

_IMPORTS = {"numpy": "import numpy", "ndshare": "import numpy, ndshare"}

# Prints the seconds until the first result, and until as many results as there are workers.
_FIRST = """
import sys, time
import numpy
from operator import neg
def main(workers):
    start = time.perf_counter()
    {make}
    futures = [executor.submit(neg, i) for i in range(workers)]
    assert futures[0].result() == 0
    first = time.perf_counter() - start
    assert [f.result() for f in futures] == [-i for i in range(workers)]
    print(first, time.perf_counter() - start)
    executor.shutdown()
if __name__ == "__main__":
    main(int(sys.argv[1]))
"""
_MAKERS = {
    "ndshare": "import ndshare; executor = ndshare.ProcessPoolExecutor(workers)",
    "stdlib": "import concurrent.futures as c; executor = c.ProcessPoolExecutor(workers)",
    "loky": "import loky; executor = loky.ProcessPoolExecutor(workers)",
}


def run(peers: Mapping[str, str], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the result of each case.

    Parameters
    ----------
    peers
        The libraries that can be imported (the keys).
    rounds
        How often each is timed.
    quick
        Fewer rounds.
    """
    rounds = max(3, rounds // 3) if quick else rounds
    yield Result(
        "import",
        "import numpy, ndshare against import numpy (whole interpreter)",
        "s",
        alternate(
            {name: Contestant(_interpreter(code), _no_check) for name, code in _IMPORTS.items()}, rounds
        ),
        "numpy",
        (Goal(0.030, "extra"),),
    )
    for workers, limit in ((2, 0.4), (32, 1.5)):
        values: dict[str, list[float]] = {name: [] for name in _MAKERS if name in peers}
        values |= {f"{name}, all": [] for name in values}
        for _ in range(max(3, rounds // 3)):
            for name in _MAKERS:
                if name in peers:
                    first, every = _first_result(_MAKERS[name], workers)
                    values[name].append(first)
                    values[f"{name}, all"].append(every)
        yield Result(
            f"first-result-{workers}",
            f"first result of a new pool of {workers} workers (all: {workers} results)",
            "s",
            values,
            "stdlib",
            (Goal(limit, "value"),),
        )


def _interpreter(code: str) -> Callable[[], int]:
    def start() -> int:
        return subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=True).returncode

    return start


def _first_result(make: str, workers: int) -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _FIRST.format(make=make), str(workers)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    first, every = map(float, done.stdout.split())
    time.sleep(0.05)  # let the workers of this one finish dying before the next is timed
    return first, every


def _no_check(_: int) -> None:
    """Accept: a failing interpreter has raised already."""
