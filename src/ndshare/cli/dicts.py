"""``ndshare ls`` and ``ndshare prune``: the SharedDicts of this user."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ls(argv: Sequence[str]) -> int:
    """Print one line per dict; return the exit status."""
    from ndshare._dict import infos

    parser = argparse.ArgumentParser(
        prog="ndshare ls",
        description="List the SharedDicts of this user: name, keys, bytes, users, age.",
        epilog="Example: ndshare ls --json",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per dict")
    arguments = parser.parse_args(argv)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(info) for info in infos()]))
        return 0
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
        epilog="Example: ndshare prune --dry-run",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--persistent", action="store_true", help="remove also those made to outlive their users"
    )
    parser.add_argument("--json", action="store_true", help="print the names as a JSON list")
    arguments = parser.parse_args(argv)
    names = remove_unused(arguments.dry_run, persistent=arguments.persistent)
    if arguments.json:
        print(json.dumps(names))
        return 0
    for name in names:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {name}")
    if not names:
        print("nothing to remove")
    return 0
