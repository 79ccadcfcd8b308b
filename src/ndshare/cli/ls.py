"""``ndshare ls``: the SharedDicts of this user."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ndshare._dict import infos

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def main(argv: Sequence[str]) -> int:
    """Print one line per dict; return the exit status."""
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
