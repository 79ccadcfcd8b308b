"""``ndshare prune``: remove the SharedDicts of this user that nobody uses any more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ndshare._dict import prune


def main(argv: Sequence[str]) -> int:
    """Remove and print what was removed; return the exit status."""
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
    names = prune(arguments.dry_run, persistent=arguments.persistent)
    for name in names:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {name}")
    if not names:
        print("nothing to remove")
    return 0
