"""Which processors a worker may use: sets of numbers, or NUMA nodes by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

_NODES = "/sys/devices/system/node"
_NODE = re.compile(r"node\d+")


def cpu_sets(value: Any) -> tuple[tuple[int, ...], ...]:
    """Return one set of processors per worker.

    Parameters
    ----------
    value : iterable
        Of what each worker gets, in the order of their numbers: a number, an iterable of numbers, or the
        name of a NUMA node such as "node0".

    Raises
    ------
    TypeError, ValueError
        For what is none, and for processors that this process may not use.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(
            "cpus must be a sequence with one entry per worker (a set of processors, a number, or the name "
            f"of a NUMA node), got {value!r}; for all workers the same one is written [{value!r}]"
        )
    sets = tuple(_one_set(entry) for entry in value)
    if not sets:
        raise ValueError("cpus must have at least one entry, got an empty sequence; None pins nothing")
    return sets


def _one_set(entry: Any) -> tuple[int, ...]:
    allowed = os.sched_getaffinity(0)
    if isinstance(entry, str):
        numbers = _node_cpus(entry) & allowed
        if not numbers:
            raise ValueError(f"cpus names {entry!r}, of which this process may use no processor")
        return tuple(sorted(numbers))
    entries = list(entry) if isinstance(entry, Iterable) else [entry]
    for number in entries:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise TypeError(f"cpus must hold numbers of processors or names like 'node0', got {number!r}")
    wanted = {int(number) for number in entries}
    if not wanted or wanted - allowed:
        raise ValueError(
            f"cpus has the entry {entry!r}; allowed are the processors of this process, {sorted(allowed)}, "
            "at least one for each worker"
        )
    return tuple(sorted(wanted))


def _node_cpus(name: str) -> set[int]:
    """Return the processors of a NUMA node."""
    try:
        if not _NODE.fullmatch(name):
            raise OSError
        with open(f"{_NODES}/{name}/cpulist") as file:
            text = file.read()
    except OSError:
        there = sorted(filter(_NODE.fullmatch, os.listdir(_NODES))) if os.path.isdir(_NODES) else []
        raise ValueError(
            f"cpus names {name!r}; this machine has {', '.join(there) or 'no NUMA nodes that it names'}"
        ) from None
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers
