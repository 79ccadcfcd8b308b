"""The ``ndshare`` command: finds the sub-command and hands over to it.

What a sub-command needs is imported only when it is asked for: ``ndshare --version`` pays for nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "bench": ("ndshare.bench", "main", "time ndshare against other libraries"),
    "demo": ("ndshare.demo", "main", "find the best handwriting classifier of a grid, in parallel"),
    "doctor": ("ndshare.cli.doctor", "main", "say what this machine gives, what is wrong, and what to do"),
    "ls": (__name__, "ls", "list the SharedDicts of this user"),
    "prune": (__name__, "prune", "remove the SharedDicts that nobody uses any more"),
}

_INTERRUPTED = 130  # what a shell reports for a program that ended by Ctrl-C

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


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
    module, function, _ = _COMMANDS[words[0]]
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
    parser = argparse.ArgumentParser(
        prog="ndshare", description="Shared-memory NumPy arrays for parallel Python."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, (_, _, text) in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def ls(argv: Sequence[str]) -> int:
    """Print one line per dict; return the exit status."""
    from ndshare._dict import infos

    parser = argparse.ArgumentParser(
        prog="ndshare ls", description="List the SharedDicts of this user: name, keys, bytes, users, age."
    )
    parser.parse_args(argv)
    rows = [("name", "keys", "bytes", "users (pids)", "age", "")]
    for info in infos():
        users = " ".join(map(str, info.users)) or "none"
        kept = "persistent" if info.persistent else ""
        rows.append((info.name, str(info.keys), str(info.nbytes), users, _age(info.age), kept))
    if len(rows) == 1:
        print("no SharedDict of this user")
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _age(seconds: float) -> str:
    length, unit = next((step for step in _UNITS if seconds >= step[0]), _UNITS[-1])
    return f"{seconds / length:.0f} {unit}"


def prune(argv: Sequence[str]) -> int:
    """Remove the dicts that nobody uses and print which; return the exit status."""
    from ndshare._dict import prune as remove_unused

    parser = argparse.ArgumentParser(
        prog="ndshare prune",
        description="Remove the SharedDicts of this user that no process uses any more. One in use is never "
        "removed, nor one of another user.",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--persistent", action="store_true", help="remove also those made to outlive their users"
    )
    arguments = parser.parse_args(argv)
    names = remove_unused(arguments.dry_run, persistent=arguments.persistent)
    for name in names:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {name}")
    if not names:
        print("nothing to remove")
    return 0
