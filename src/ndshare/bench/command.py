"""``ndshare bench``: run the cases of a face, print them, write them down, draw them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ndshare.bench import (
    arrays,
    backends,
    balance,
    cluster,
    compat,
    dicts,
    growth,
    items,
    links,
    machine,
    mappers,
    maps,
    memory,
    peers,
    plan,
    plot,
    queues,
    report,
    shared_dict,
    startup,
    tasks,
)
from ndshare.bench.goal import Result
from ndshare.errors import RepeatedCopyWarning

_ROUNDS = 15
_QUICK_ROUNDS = 3


@dataclass(frozen=True)
class _Face:
    """What is timed.

    Parameters
    ----------
    text
        For the help.
    table
        The peers, by name.
    always
        Those that need no asking.
    cases
        Names of the groups of cases.
    run
        Runs them: cases, versions of the peers by name, rounds, workers, quick.
    """

    text: str
    table: Mapping[str, Any]
    always: tuple[str, ...]
    cases: tuple[str, ...]
    run: Callable[[Sequence[str], dict[str, str], int, int, bool], Iterator[Result]]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.json == report.TO_STDOUT:
        with contextlib.redirect_stdout(sys.stderr):
            return _run(arguments)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    if hasattr(arguments, "run"):
        status: int = arguments.run(arguments)
        return status
    face: _Face = arguments.face
    versions, missing = peers.importable(_names(face, arguments.peers), face.table)
    facts = machine.facts()
    rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    settings = {
        "rounds": rounds,
        "workers": arguments.workers,
        "quick": arguments.quick,
        "cases": arguments.cases,
    }
    print(", ".join(f"{key}: {value}" for key, value in facts.items()))
    print("peers: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    for name, reason in missing.items():
        print(f"left out: {name}, {reason}")
    results = []
    # Sending the same ordinary array again and again is what is timed here.
    warnings.simplefilter("ignore", RepeatedCopyWarning)
    for result in face.run(arguments.cases, versions, rounds, arguments.workers, arguments.quick):
        print("\n" + report.text_of(result), flush=True)
        results.append(result)
    print("\n" + report.summary(results))
    if arguments.quick:
        print("(--quick: sizes and rounds too small for conclusions)")
    if arguments.json:
        report.save(arguments.json, results, facts, settings, versions, missing)
    if arguments.plot:
        plot.save(arguments.plot, results, facts)
    return 0


def _run_executor(
    cases: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    # Fresh interpreters first: afterwards the pools of all peers are running.
    if "startup" in cases:
        yield from startup.run(versions, rounds, quick)
    if "memory" in cases:
        yield from memory.run(quick)
    if "arrays" in cases or "tasks" in cases:
        with peers.opened(versions, workers, peers.PEERS) as pools:
            if "arrays" in cases:
                yield from arrays.run(pools, rounds, quick)
            if "tasks" in cases:
                yield from tasks.run(pools, rounds, quick)


def _run_map(
    cases: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    if "items" in cases:
        yield from items.run(rounds, quick)
    with peers.opened(versions, workers, mappers.MAPPERS) as pools:
        if "tiny" in cases:
            yield from maps.tiny(pools, rounds, quick)
        if "many" in cases:
            yield from maps.many(pools, rounds, quick)
        if "captured" in cases:
            yield from maps.captured(pools, rounds, quick)
        if "balance" in cases:
            yield from balance.run(pools, workers, rounds, quick)


def _run_joblib(
    cases: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    del cases  # there is one group
    with peers.opened(versions, workers, backends.BACKENDS) as opened:
        yield from backends.run(opened, rounds, quick)


def _run_compat(
    cases: Sequence[str], _versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    yield from compat.run(cases, rounds, workers, quick)


def _run_queue(
    cases: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    with peers.opened(versions, workers, links.LINKS) as ends:
        if "frames" in cases:
            yield from queues.frames(ends, rounds, quick)
        if "messages" in cases:
            yield from queues.messages(ends, rounds, quick)


_FACES = {
    "executor": _Face(
        "ProcessPoolExecutor against other pools",
        peers.PEERS,
        peers.ALWAYS,
        ("arrays", "tasks", "startup", "memory"),
        _run_executor,
    ),
    "map": _Face(
        "map against a plain loop, pasha and the maps of other pools",
        mappers.MAPPERS,
        mappers.ALWAYS,
        ("items", "tiny", "many", "captured", "balance"),
        _run_map,
    ),
    "cluster": _Face(
        "map on a local Dask cluster against Dask by hand",
        peers.PEERS,
        (),
        cluster.CASES,
        cluster.run,
    ),
    "compat": _Face(
        "the drop-in modules against their originals",
        {},
        (),
        ("pasha", "npshmex", "contextshare", "shared_numpy", "SHMArrays"),
        _run_compat,
    ),
    "dict": _Face(
        "SharedDict against NumPy on private arrays, a manager's dict and UltraDict",
        dicts.DICTS,
        dicts.ALWAYS,
        shared_dict.CASES,
        shared_dict.run,
    ),
    "joblib": _Face(
        "the joblib backend against those of joblib",
        backends.BACKENDS,
        backends.ALWAYS,
        ("arrays",),
        _run_joblib,
    ),
    "queue": _Face(
        "Queue against multiprocessing.Queue, shared memory by hand, torch and faster-fifo",
        links.LINKS,
        links.ALWAYS,
        ("frames", "messages"),
        _run_queue,
    ),
}


def _names(face: _Face, text: str) -> list[str]:
    wanted = list(face.table) if text == "all" else [name for name in text.split(",") if name]
    return list(dict.fromkeys((*face.always, *wanted)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare bench", description="Time ndshare against other libraries."
    )
    faces = parser.add_subparsers(metavar="face", required=True)
    for name, face in _FACES.items():
        command = faces.add_parser(name, help=face.text)
        command.set_defaults(face=face)
        command.add_argument(
            "--peers",
            default="",
            type=_peers(face),
            help=f"all, or a list with commas of {', '.join(sorted(set(face.table) - set(face.always)))} "
            f"(always there: {', '.join(face.always)})",
        )
        command.add_argument(
            "--cases",
            nargs="+",
            choices=face.cases,
            default=list(face.cases),
            help="which groups of cases (default: all)",
        )
        report.add_json(command)
        command.add_argument("--plot", metavar="FILE", help="write a picture to this file")
        command.add_argument("--rounds", type=int, help=f"how often each is timed (default: {_ROUNDS})")
        command.add_argument(
            "--workers", type=int, default=2, help="worker processes of each pool (default: 2)"
        )
        command.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    growth.add_parser(faces)
    plan.add_parser(faces)
    return parser


def _peers(face: _Face) -> Callable[[str], str]:
    def check(text: str) -> str:
        unknown = [name for name in text.split(",") if name and name != "all" and name not in face.table]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown)}, but the peers are {', '.join(face.table)}, or all"
            )
        return text

    return check
