"""What the demos have in common on the command line."""

from __future__ import annotations

import argparse


def add_workers(
    parser: argparse.ArgumentParser, text: str = "worker processes (default: usable CPUs)"
) -> None:
    """Add ``--workers``."""
    parser.add_argument("--workers", type=positive, help=f"number of {text}")


def add_size_and_place(parser: argparse.ArgumentParser, quick: str) -> None:
    """Add ``--quick``, with the text that says what it does, and ``--out``."""
    parser.add_argument("--quick", action="store_true", help=quick)
    add_json(parser)
    parser.add_argument("--out", default=".", metavar="DIR", help="where the picture goes (default: here)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which `ndshare.demo.main` sees to."""
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, the text to stderr")


#: What the demo that runs has found.
figures: dict[str, object] = {}


def note(**found: object) -> None:
    """Note figures of a demo, for ``--json``: numbers, texts, lists of these."""
    figures.update(found)


def positive(text: str) -> int:
    """Return a number of workers from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, but at least 1 worker is needed")
    return number
