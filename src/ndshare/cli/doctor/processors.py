"""Processors that may be used, how many workers make sense, BLAS and its threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ndshare.cli.doctor.finding import Finding

_PATIENCE_S = 20
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_LOOK = """
import json, numpy, threadpoolctl
numpy.ones((2, 2)) @ numpy.ones((2, 2))
print(json.dumps([[x["user_api"], x["internal_api"], str(x["version"]), x["num_threads"]]
                  for x in threadpoolctl.threadpool_info()]))
"""


def usable() -> int:
    """Return how many workers there are by default."""
    from ndshare._system import default_workers

    return default_workers()


def cpus(workers: int | None) -> Finding:
    """Affinity, quota, and the number of workers that is meant."""
    from ndshare._system import cpu_quota

    allowed, quota = len(os.sched_getaffinity(0)), cpu_quota()
    parts = [f"{os.cpu_count()} in the machine, {allowed} usable here"]
    if quota is not None:
        parts.append(f"quota of the container {quota:g}")
    best = usable()
    parts.append(f"{best} worker{'s' * (best != 1)} by default")
    if workers is not None and workers > best:
        parts.append(f"{workers} workers asked for")
        remedy = (
            f"Use {best}: more take turns on the same processors, and each needs memory. If there should be "
            "more processors, look at taskset, the queue system, or docker run --cpus."
        )
        return Finding("processors", "warn", "; ".join(parts), remedy)
    return Finding("processors", "ok", "; ".join(parts))


def threads(workers: int | None) -> Finding:
    """BLAS and OpenMP: which, how many threads, and whether the environment says too many."""
    best = usable()
    count = workers or best
    try:
        libraries = _libraries()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        found = f"NumPy's own threads could not be looked at: {error}"
        return Finding("BLAS", "warn", found, "See whether python -c 'import numpy, threadpoolctl' works.")
    found = "; ".join(f"{api} {version}, {number} threads" for _, api, version, number in libraries)
    found = (found or "no BLAS with threads").replace(" 1 threads", " 1 thread")
    each = max(1, best // count)
    found += f"; {each} in each of {count} worker{'s' * (count != 1)}"
    many = [
        (name, int(os.environ[name]))
        for name in _VARIABLES
        if (value := os.environ.get(name, "").strip()).isdigit() and int(value) * count > max(best, count)
    ]
    if many:
        said = ", ".join(f"{name}={number}" for name, number in many)
        most = max(number for _, number in many)
        found += f", but {said}: {most * count} threads on {best} processor{'s' * (best != 1)}"
        remedy = (
            f"unset {' '.join(name for name, _ in many)}: each worker then has its part of the processors. "
            "A value that is set is taken as meant."
        )
        return Finding("BLAS", "warn", found, remedy)
    return Finding("BLAS", "ok", found)


def _libraries() -> list[tuple[str, str, str, int]]:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode != 0:
        raise ValueError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return [tuple(row) for row in json.loads(done.stdout)]
