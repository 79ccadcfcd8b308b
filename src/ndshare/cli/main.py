"""The ``ndshare`` command: finds the sub-command and hands over to it.

What a sub-command needs is imported only when it is asked for: ``ndshare --version`` pays for nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "doctor": (
        "ndshare.cli.doctor",
        "main",
        "say what this machine gives, what is wrong, and what to do",
        "doctor --workers 8",
    ),
    "top": (
        "ndshare.cli.top",
        "main",
        "show what the ndshare processes of this user do",
        "top --once",
    ),
    "ls": ("ndshare.cli.dicts", "ls", "list the SharedDicts of this user", "ls --json"),
    "prune": (
        "ndshare.cli.dicts",
        "prune",
        "remove the SharedDicts that nobody uses any more",
        "prune --dry-run",
    ),
    "demo": (
        "ndshare.demo",
        "main",
        "find the best handwriting classifier of a grid, in parallel",
        "demo --quick",
    ),
    "bench": (
        "ndshare.bench",
        "main",
        "time ndshare against other libraries",
        "bench executor --quick --peers loky",
    ),
}

# What `ndshare.demo` has besides: not asked there, because it needs packages that may be missing.
_DEMOS = {
    "camera": ("frames of a camera through queues to analysts and a recorder", "demo camera --quick"),
    "cluster": ("clean photographs on a cluster of this machine's processes", "demo cluster --quick"),
    "images": ("clean photographs by a map, in every context", "demo images --quick"),
    "sgd": ("train on weights in a SharedDict while learners are killed", "demo sgd --workers 2"),
    "workspace": ("solve linear systems with named arrays", "demo workspace --quick"),
}

_INTERRUPTED = 130  # what a shell reports for a program that ended by Ctrl-C


class _Version(argparse.Action):
    """Print the version; an action of its own because it imports NumPy, which is slow."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import ndshare

        print(f"ndshare {ndshare.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``ndshare``. Default: those of this process.

    Returns
    -------
    int
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in _COMMANDS:
        _parser().parse_args(words or ["--help"])  # help, version or a refusal: each ends here
    module, function, *_ = _COMMANDS[words[0]]
    try:
        status: int = getattr(importlib.import_module(module), function)(words[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "ndshare":
            raise
        print(
            f"ndshare {words[0]} needs the package {error.name!r}: pip install 'ndshare[{words[0]}]'",
            file=sys.stderr,
        )
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    listed = {f"demo {name}": line for name, line in _DEMOS.items()}
    listed |= {name: (text, example) for name, (_, _, text, example) in _COMMANDS.items()}
    lines = []
    for name in _COMMANDS:
        for word in (name, *(word for word in listed if word.startswith(f"{name} "))):
            text, example = listed[word]
            lines += [f"  {word:<16}{text}", f"  {'':<16}  ndshare {example}"]
    parser = argparse.ArgumentParser(
        prog="ndshare",
        usage="ndshare [-h] [--version] command ...",
        description="Shared-memory NumPy arrays for parallel Python.",
        epilog="\n".join(
            [
                "commands, each with an example:",
                *lines,
                "",
                "Each command has --help and --json. Extras: pip install 'ndshare[demo]' (or bench, cli).",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True, help=argparse.SUPPRESS)
    for name in _COMMANDS:
        commands.add_parser(name, add_help=False)
    return parser
