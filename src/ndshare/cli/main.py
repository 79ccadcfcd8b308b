"""The ``ndshare`` command: finds the sub-command and hands over to it.

A sub-command is a package with a function ``main(argv) -> int``. It is imported only when it is
asked for: ``ndshare --version`` pays for nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

_COMMANDS = {
    "bench": ("ndshare.bench", "time ndshare against other libraries"),
    "demo": ("ndshare.demo", "find the best handwriting classifier of a grid, in parallel"),
    "ls": ("ndshare.cli.ls", "list the SharedDicts of this user"),
    "prune": ("ndshare.cli.prune", "remove the SharedDicts that nobody uses any more"),
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
    module, _ = _COMMANDS[words[0]]
    try:
        status: int = importlib.import_module(module).main(words[1:])
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
    for name, (_, text) in _COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser
