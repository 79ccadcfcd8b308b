"""Cases: `SharedDict` against NumPy on private arrays, a manager's dict, and UltraDict."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ndshare.bench.dicts import DICTS, Floats, Manager, Ndshare, NdshareViews, Numpy, average, keep_memory
from ndshare.bench.goal import Goal, Result
from ndshare.bench.team import Team
from ndshare.bench.timing import Contestant, alternate

CASES = ("update", "tiny", "read", "two", "others", "keys")
_ELEMENTS = 100_000
_READ_ELEMENTS = 1_000_000
_KEYS = 10_000
_QUICK_KEYS = 1_000
_REPEATS = 50  # updates per timed run: a run of some milliseconds
_QUICK_REPEATS = 5
_TEAM_S = 0.3  # how long several processes update at once
_QUICK_TEAM_S = 0.05
_TEAM_ROUNDS = 7
_OTHERS_ROUNDS = 7
_LEAST_S = 1e-9  # of a difference of two times


def run(
    cases: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    """Yield the figures of the cases asked for; `workers` processes update one key at once."""
    keep_memory()
    if "update" in cases:
        yield _update(rounds, quick)
    if "tiny" in cases:
        yield _tiny(rounds, quick)
    if "read" in cases:
        yield _read(rounds, quick)
    if "two" in cases:
        yield _two(rounds, quick)
    if "others" in cases:
        yield from _others(versions, rounds, workers, quick)
    if "keys" in cases:
        yield _many_keys(rounds, quick)


def _repeated(function: Callable[[], Any], repeats: int) -> Contestant:
    def repeat() -> Any:
        result = None
        for _ in range(repeats):
            result = function()
        return result

    # A moving average depends on how often it was taken; the tests of SharedDict look at values.
    return Contestant(repeat, lambda _: None, repeats)


def _update(rounds: int, quick: bool) -> Result:
    repeats = _QUICK_REPEATS if quick else _REPEATS
    new = np.random.default_rng(1).random(_ELEMENTS)
    with (
        _opened([Numpy.name, Ndshare.name, NdshareViews.name], ["a"]) as handles,
        contextlib.ExitStack() as stack,
    ):
        contestants = {}
        for name, handle in handles.items():
            update = stack.enter_context(DICTS[name].opened(handle))
            contestants[name] = _repeated(lambda update=update: update("a", new), repeats)  # type: ignore[misc]
        values = alternate(contestants, rounds)
    return Result(
        "update",
        f"update of one array of {_ELEMENTS:,} float64, against the plain expression",
        "s",
        values,
        Numpy.name,
        (Goal(1.7), Goal(1.2, subject=NdshareViews.name)),
    )


def _tiny(rounds: int, quick: bool) -> Result:
    import ndshare

    repeats = 10 * (_QUICK_REPEATS if quick else _REPEATS)
    with ndshare.SharedDict({"a": np.zeros(3)}) as d:
        new = {"a": np.ones(3)}
        values = alternate({"ndshare": _repeated(lambda: d.update(new, average), repeats)}, rounds)
    title = "update of 3 float64, uncontended"
    return Result("tiny update", title, "s", values, None, (Goal(8e-6, "value"),))


def _read(rounds: int, quick: bool) -> Result:
    import ndshare

    repeats = 2 if quick else 20
    array = np.random.default_rng(2).random(_READ_ELEMENTS)
    with ndshare.SharedDict({"a": array}) as d:
        values = alternate(
            {
                "ndarray.copy": _repeated(array.copy, repeats),
                "ndshare": _repeated(lambda: d.read(["a"]), repeats),
            },
            rounds,
        )
    return Result("read", f"read of {_READ_ELEMENTS:,} float64", "s", values, "ndarray.copy", (Goal(1.1),))


@contextlib.contextmanager
def _opened(names: Sequence[str], keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Have one dictionary of each library; yield their handles."""
    rng = np.random.default_rng(3)
    values: dict[str, Floats] = {key: rng.random(_ELEMENTS) for key in keys}
    with contextlib.ExitStack() as stack:
        handles = {}
        for name in names:
            one = DICTS[name](values)
            stack.callback(one.close)
            handles[name] = one.handle
        yield handles


def _in_turn(handles: dict[str, Any], new: Floats, repeats: int, rounds: int) -> dict[str, list[float]]:
    with contextlib.ExitStack() as stack:
        contestants = {}
        for name, handle in handles.items():
            update = stack.enter_context(DICTS[name].opened(handle))
            contestants[name] = _repeated(functools.partial(update, "a", new), repeats)
        return alternate(contestants, rounds)


def _together(teams: dict[str, Team], rounds: int, quick: bool) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(min(rounds, _TEAM_ROUNDS)):
        for name, team in teams.items():
            values[name].append(team.run(_QUICK_TEAM_S if quick else _TEAM_S))
    return values


def _two(rounds: int, quick: bool) -> Result:
    """Time per update of one process, and of two on different keys; how far the machine itself goes."""
    with _opened([Numpy.name, Ndshare.name], ["a", "b"]) as handles, contextlib.ExitStack() as stack:
        teams = {
            f"{name}{label}": stack.enter_context(Team(name, handles[name], keys, _ELEMENTS))
            for name in handles
            for label, keys in ((", 1 process", "a"), ("", "ab"))
        }
        values = _together(teams, rounds, quick)
    ours = _ratio(values, "ndshare, 1 process", "ndshare")
    plain = _ratio(values, "NumPy, 1 process", "NumPy")
    return Result(
        "two processes",
        "update by 2 processes on different keys: time per update, against 1 process",
        "s",
        values,
        "ndshare, 1 process",
        (Goal(1 / 1.8),),
        (
            f"throughput of two: {ours:.2f} times that of one",
            f"the same of the plain expression on private arrays, what the machine gives: {plain:.2f}",
        ),
    )


def _ratio(values: dict[str, list[float]], above: str, below: str) -> float:
    return float(np.median(values[above]) / np.median(values[below]))


def _others(versions: dict[str, str], rounds: int, workers: int, quick: bool) -> Iterator[Result]:
    names = [name for name in DICTS if name in versions]
    repeats = 2 if quick else 10
    new = np.random.default_rng(4).random(_ELEMENTS)
    yield from _access(rounds, quick)
    with _opened(names, ["a"]) as handles:
        values = _in_turn(handles, new, repeats, min(rounds, _OTHERS_ROUNDS))
        yield _against_manager("update by one process", values, ())
        goal = Goal(1 / 30, subject=NdshareViews.name)
        yield _against_manager("update by one process beyond the plain expression", _beyond(values), (goal,))
        with contextlib.ExitStack() as stack:
            teams = {
                name: stack.enter_context(Team(name, handle, "a" * workers, _ELEMENTS))
                for name, handle in handles.items()
                if name != Numpy.name
            }
            title = f"update by {workers} processes of one key, time per completed update"
            goals = Goal(1 / 30), Goal(1 / 30, subject=NdshareViews.name)
            yield _against_manager(title, _together(teams, rounds, quick), goals)


def _access(rounds: int, quick: bool) -> Iterator[Result]:
    """Time what there is to a dict of arrays besides what is computed with them: get one, set one."""
    repeats = _QUICK_REPEATS if quick else _REPEATS
    new = np.random.default_rng(5).random(_ELEMENTS)
    gets, sets = ({"ndarray.copy": _repeated(new.copy, repeats)} for _ in range(2))
    names = [Ndshare.name, NdshareViews.name, Manager.name]
    with _opened(names, ["a"]) as handles, contextlib.ExitStack() as stack:
        for name, handle in handles.items():
            get, put = stack.enter_context(DICTS[name].accessed(handle))
            gets[name] = _repeated(functools.partial(get, "a"), repeats)
            sets[name] = _repeated(functools.partial(put, "a", new), repeats)
        del sets[NdshareViews.name]  # sets as the other one does
        yield _against_manager("get a value", alternate(gets, rounds), ())
        yield _against_manager("set a value", alternate(sets, rounds), ())


def _beyond(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return what each library adds to the expression itself, which no sharing can do without."""
    plain = float(np.median(values[Numpy.name]))
    return {
        name: [max(t - plain, _LEAST_S) for t in times]
        for name, times in values.items()
        if name != Numpy.name
    }


def _against_manager(title: str, values: dict[str, list[float]], goals: tuple[Goal, ...]) -> Result:
    notes = [
        f"{name}: {_ratio(values, Manager.name, name):.1f} times as fast as {Manager.name}"
        for name in values
        if name != Manager.name
    ]
    return Result(
        f"other dicts: {title.partition(',')[0]}",
        f"{title}, {_ELEMENTS:,} float64, against a manager's dict",
        "s",
        values,
        Manager.name,
        goals,
        tuple(notes),
    )


def _many_keys(rounds: int, quick: bool) -> Result:
    import ndshare

    keys = _QUICK_KEYS if quick else _KEYS
    arrays = {number: np.zeros(4) for number in range(keys)}

    def create_and_attach() -> None:
        with ndshare.SharedDict(arrays) as made, ndshare.SharedDict.attach(made.name):
            pass

    values = alternate({"ndshare": Contestant(create_and_attach, lambda _: None)}, rounds)
    return Result(
        "many keys", f"{keys:,} keys: create, attach and close", "s", values, None, (Goal(0.1, "value"),)
    )
