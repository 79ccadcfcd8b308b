"""``ndshare bench growth``: whether one costs the same when there are a hundred of them and a million.

::

    tasks, items, messages, keys, shares    10² … 10⁶ of them
    workers                                 1 … 128
    bytes                                   arrays of 1 KB … 4 GB
      │
    each contestant at each size, smallest first, until it takes too long ──► Curve ──► table, JSON, picture

The standard library runs beside it, in the same turns. A contestant whose next size would take longer than
`_LONGEST_S` stops there, and the curve says so.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import ndshare
from ndshare.bench import links, machine, report
from ndshare.bench.curve import Curve, save_picture
from ndshare.bench.dicts import average
from ndshare.bench.work import add_one
from ndshare.errors import RepeatedCopyWarning

_NUMBERS = tuple(10**power for power in range(2, 7))
_WORKERS = tuple(2**power for power in range(8))
_BYTES = tuple(1000 * 4**power for power in range(12))  # to 4.2 GB
_TASKS_FOR_WORKERS = 10_000
_KEYS_TOUCHED = 100  # of all there are, spread over them
_LONGEST_S = 30.0
_LEAST_S = 0.05  # shorter runs are repeated, and the time divided
_MOST_REPEATS = 50
_MEMORY_PART = 5  # an array and its copies: a fifth of what is free for each

#: Does the work once with what was made for a size.
_Run = Callable[[int], object]


def add_parser(commands: Any) -> None:
    """Add the command to those of ``ndshare bench``."""
    parser = commands.add_parser("growth", help="what one of many costs, over how many there are")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--cases", nargs="+", choices=tuple(_CASES), default=list(_CASES), help="which (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--plot", metavar="FILE", help="write a picture to this file")
    report.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    facts = machine.facts()
    print(", ".join(f"{key}: {value}" for key, value in facts.items()))
    curves = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepeatedCopyWarning)  # to send the same array again is the point
        for name in arguments.cases:
            curve = _CASES[name](arguments.rounds, arguments.quick)
            print("\n" + curve.text(), flush=True)
            curves.append(curve)
    if arguments.json:
        settings = {"rounds": arguments.rounds, "quick": arguments.quick}
        content = {"machine": facts, "settings": settings, "curves": [curve.content() for curve in curves]}
        report.write(arguments.json, content)
    if arguments.plot:
        save_picture(arguments.plot, curves, facts)
    return 0


def _grow(
    curve: Curve,
    contestants: Mapping[str, _Run],
    sizes: Sequence[int],
    rounds: int,
    per: Callable[[int], int] = lambda size: size,
) -> Curve:
    """Time all contestants at all sizes, in turns; a run at a size does `per` of it ones."""
    curve.seconds |= {name: {} for name in contestants}
    slow: set[str] = set()
    for size, larger in zip(sizes, (*sizes[1:], None), strict=True):
        repeats = {}
        for name, do in contestants.items():
            if name not in slow:
                took = _timed(do, size, 1)  # not counted: workers start, memory is touched
                if took < _LEAST_S:
                    took = _timed(do, size, 1)
                repeats[name] = max(1, min(_MOST_REPEATS, int(_LEAST_S / took)))
                curve.seconds[name][size] = []
        for _ in range(rounds):
            for name, times in repeats.items():
                took = _timed(contestants[name], size, times)
                curve.seconds[name][size].append(took / per(size))
                if larger and name not in slow and took * per(larger) / per(size) > _LONGEST_S:
                    slow.add(name)
                    curve.notes.append(
                        f"{name}: {larger:,} {curve.axis} would take more than {_LONGEST_S:g} s"
                    )
    return curve


def _timed(do: _Run, size: int, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        do(size)
    return (time.perf_counter() - start) / repeats


def _numbers(quick: bool) -> Sequence[int]:
    return _NUMBERS[:2] if quick else _NUMBERS


def _submitted(executor: concurrent.futures.Executor) -> _Run:
    def submit(count: int) -> None:
        futures = [executor.submit(add_one, i) for i in range(count)]
        if sum(future.result() for future in futures) != count * (count + 1) // 2:
            raise AssertionError("wrong results of tasks")

    return submit


def _tasks(rounds: int, quick: bool) -> Curve:
    curve = Curve("tasks", "tiny tasks submitted at once, 2 workers", "tasks")
    with ndshare.ProcessPoolExecutor(2) as ours, _standard(2) as theirs:
        return _grow(
            curve, {"ndshare": _submitted(ours), "stdlib": _submitted(theirs)}, _numbers(quick), rounds
        )


def _standard(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)


def _items(rounds: int, quick: bool) -> Curve:
    curve = Curve("items", "tiny items of a map, 2 workers", "items")
    context = ndshare.ProcessContext(2)
    out = context.alloc(_NUMBERS[-1], np.int64)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        out[index] = value + 1

    def ours(count: int) -> None:
        context.map(kernel, range(count))
        if out[:count].sum() != count * (count + 1) // 2:
            raise AssertionError("wrong results of a map")

    def theirs(count: int) -> None:
        if sum(pool.map(add_one, range(count))) != count * (count + 1) // 2:
            raise AssertionError("wrong results of a map")

    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        _grow(curve, {"ndshare": ours, "multiprocessing.Pool": theirs}, _numbers(quick), rounds)
        pool.close()
        pool.join()
    return curve


def _messages(rounds: int, quick: bool) -> Curve:
    curve = Curve("messages", "messages of 1 KB through a queue", "messages")
    ours, theirs = links.Ndshare(1), links.Multiprocessing(1)
    try:
        contestants: dict[str, _Run] = {
            "ndshare": ours.run_messages,
            "ndshare, maxsize=1000": lambda count: ours.run_messages(count, bounded=True),
            "multiprocessing": theirs.run_messages,
            "multiprocessing, maxsize=1000": lambda count: theirs.run_messages(count, bounded=True),
        }
        return _grow(curve, contestants, _numbers(quick), rounds)
    finally:
        ours.close()
        theirs.close()


def _keys(rounds: int, quick: bool) -> Curve:
    curve = Curve("keys", "update of a key of so many; making them, each", "keys")
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(multiprocessing.get_context("forkserver").Manager())
        lock = manager.Lock()
        made: dict[tuple[str, int], Any] = {}

        def dict_of(name: str, count: int) -> Any:
            if (name, count) not in made:
                values = _values(count)
                if name == "ndshare":
                    made[name, count] = stack.enter_context(ndshare.SharedDict(values))
                else:
                    made[name, count] = manager.dict(values)
            return made[name, count]

        def ours(count: int) -> None:
            shared = dict_of("ndshare", count)
            for key in _some(count):
                shared.update({key: _ROW}, average)

        def theirs(count: int) -> None:
            shared = dict_of("manager", count)
            for key in _some(count):
                with lock:
                    shared[key] = average(_ROW, shared[key])

        sizes = _numbers(quick)
        touched = min(_KEYS_TOUCHED, sizes[0])
        _grow(curve, {"ndshare": ours, "manager": theirs}, sizes, rounds, lambda _: touched)
        stack.pop_all().close()  # before others are made
        return _grow(curve, {"ndshare, making it": _make_dict}, sizes, rounds)


_ROW = np.ones(8)


def _values(count: int) -> dict[str, Any]:
    return dict.fromkeys(map(str, range(count)), _ROW)


def _some(count: int) -> Iterator[str]:
    return map(str, range(0, count, max(1, count // _KEYS_TOUCHED)))


def _make_dict(count: int) -> None:
    with ndshare.SharedDict(_values(count)) as shared:
        if len(shared) != count:
            raise AssertionError(f"{len(shared)} keys of {count}")


def _shares(rounds: int, quick: bool) -> Curve:
    curve = Curve("shares", "empty shares on an engine of the standard library, 2 workers", "shares")

    def kernel(*_entry: object) -> None:
        pass

    with _standard(2) as engine:
        context = ndshare.ClusterContext(engine)

        def ours(count: int) -> None:
            if context.map(kernel, range(count), shares=count).items != count:
                raise AssertionError("shares are missing")

        sizes = _numbers(quick)[:3]
        return _grow(curve, {"ndshare": ours, "tasks of the engine": _submitted(engine)}, sizes, rounds)


def _workers(rounds: int, quick: bool) -> Curve:
    count = _TASKS_FOR_WORKERS // 10 if quick else _TASKS_FOR_WORKERS
    curve = Curve("workers", f"{count:,} tiny tasks submitted at once, each", "workers")
    sizes = _WORKERS[:2] if quick else _WORKERS
    kinds: dict[str, Callable[[int], Any]] = {"ndshare": ndshare.ProcessPoolExecutor, "stdlib": _standard}
    for size in sizes:
        with contextlib.ExitStack() as stack:
            at_size: dict[str, _Run] = {}
            for name, make in kinds.items():
                executor = stack.enter_context(make(size))
                submit = _submitted(executor)
                at_size[name] = lambda _, submit=submit: submit(count)  # type: ignore[misc]
            found = _grow(Curve("", "", ""), at_size, [size], rounds, lambda _: count)
        for name, points in found.seconds.items():
            curve.seconds.setdefault(name, {}).update(points)
    return curve


def _arrays(rounds: int, quick: bool) -> Curve:
    curve = Curve("bytes", "x + 1 in a worker: seconds for each byte of x", "bytes")
    most = machine.free_bytes() // _MEMORY_PART
    sizes = [size for size in (_BYTES[:2] if quick else _BYTES) if size <= most]
    with ndshare.ProcessPoolExecutor(2) as ours, _standard(2) as theirs:
        sent: dict[int, Any] = {}

        def through(executor: concurrent.futures.Executor, make: Callable[[int], Any]) -> _Run:
            def add(size: int) -> None:
                if size not in sent:
                    sent.clear()  # no two large ones at once
                    sent[size] = make(size // 8)
                if executor.submit(add_one, sent[size]).result()[-1] != 2.0:
                    raise AssertionError("wrong values")

            return add

        by_value = {"ndshare, by value": through(ours, np.ones), "stdlib": through(theirs, np.ones)}
        _grow(curve, by_value, sizes, rounds)
        sent.clear()
        return _grow(curve, {"ndshare": through(ours, ndshare.ones)}, sizes, rounds)


_CASES: dict[str, Callable[[int, bool], Curve]] = {
    "tasks": _tasks,
    "items": _items,
    "messages": _messages,
    "keys": _keys,
    "shares": _shares,
    "workers": _workers,
    "bytes": _arrays,
}
