"""``ndshare bench executor`` and ``ndshare bench dict``: run the cases, print, write down, draw."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence

from ndshare.bench import arrays, machine, memory, peers, plot, report, shared_dict, startup, tasks
from ndshare.bench.goal import Result
from ndshare.errors import RepeatedCopyWarning

_ROUNDS = 15
_QUICK_ROUNDS = 3
_SUITES = ("arrays", "tasks", "startup", "memory")


def main(argv: Sequence[str]) -> int:
    """Run the benchmark with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.face == "dict":
        arguments.peers, arguments.cases, arguments.workers = "", ["dict"], 2
    names = _names(arguments.peers) if arguments.face == "executor" else ["ndshare"]
    versions, missing = peers.importable(names)
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
    for result in _run(arguments.cases, versions, rounds, arguments.workers, arguments.quick):
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


def _run(
    suites: Sequence[str], versions: dict[str, str], rounds: int, workers: int, quick: bool
) -> Iterator[Result]:
    if "dict" in suites:
        yield from shared_dict.run(rounds, quick)
    # Fresh interpreters first: afterwards the pools of all peers are running.
    if "startup" in suites:
        yield from startup.run(versions, rounds, quick)
    if "memory" in suites:
        yield from memory.run(quick)
    if "arrays" in suites or "tasks" in suites:
        with peers.opened(versions, workers) as pools:
            if "arrays" in suites:
                yield from arrays.run(pools, rounds, quick)
            if "tasks" in suites:
                yield from tasks.run(pools, rounds, quick)


def _names(text: str) -> list[str]:
    wanted = list(peers.PEERS) if text == "all" else [name for name in text.split(",") if name]
    return list(dict.fromkeys((*peers.ALWAYS, *wanted)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare bench", description="Time ndshare against other libraries."
    )
    faces = parser.add_subparsers(metavar="face", dest="face", required=True)
    executor = faces.add_parser("executor", help="ProcessPoolExecutor against other pools")
    executor.add_argument(
        "--peers",
        default="",
        type=_peers,
        help=f"all, or a list with commas of {', '.join(sorted(set(peers.PEERS) - set(peers.ALWAYS)))} "
        f"(always there: {', '.join(peers.ALWAYS)})",
    )
    executor.add_argument(
        "--cases",
        nargs="+",
        choices=_SUITES,
        default=list(_SUITES),
        help="which groups of cases (default: all)",
    )
    executor.add_argument("--workers", type=int, default=2, help="worker processes of each pool (default: 2)")
    shared = faces.add_parser("dict", help="SharedDict against NumPy on private arrays, a manager, UltraDict")
    for face in (executor, shared):
        face.add_argument("--json", metavar="FILE", help="write every figure to this file")
        face.add_argument("--plot", metavar="FILE", help="write a picture to this file")
        face.add_argument("--rounds", type=int, help=f"how often each is timed (default: {_ROUNDS})")
        face.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    return parser


def _peers(text: str) -> str:
    unknown = [name for name in text.split(",") if name and name != "all" and name not in peers.PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"got {', '.join(unknown)}, but the peers are {', '.join(peers.PEERS)}, or all"
        )
    return text
