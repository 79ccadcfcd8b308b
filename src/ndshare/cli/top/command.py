"""``ndshare top``: look, wait, look again, show."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence

from ndshare.cli.top.look import Look, look
from ndshare.cli.top.show import follow, has_rich, plain, rich_group
from ndshare.cli.top.tables import Table, facts, tables

_ONCE_S = 0.5


def main(argv: Sequence[str]) -> int:
    """Show what runs; return the exit status."""
    arguments = _parser().parse_args(argv)
    interval = arguments.interval or (_ONCE_S if arguments.once else 1.0)
    watcher = _Watcher(interval)
    if arguments.json:
        while True:
            print(json.dumps(facts(*watcher.next())), flush=True)
            if arguments.once:
                return 0
    use_rich = has_rich() and not arguments.plain
    if not arguments.once:
        try:
            follow(watcher.tables, use_rich=use_rich)
        except KeyboardInterrupt:
            return 0
    elif use_rich:
        from rich.console import Console

        console = Console()
        console.print(rich_group(watcher.tables(), console.width))
    else:
        width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
        print(plain(watcher.tables(), width))
    return 0


class _Watcher:
    """Two looks at a time, some seconds apart."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = look()

    def next(self) -> tuple[Look, Look]:
        time.sleep(self._interval)
        before, self._last = self._last, look()
        return before, self._last

    def tables(self) -> list[Table]:
        return tables(facts(*self.next()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare top",
        description="Show this user's ndshare processes: workers and what they run, maps, queues, "
        "SharedDicts, memory. It reads what is in shared memory anyway. Ctrl-C ends it.",
        epilog="Example: ndshare top --once. With rich (pip install 'ndshare[cli]') tables fit any width.",
    )
    parser.add_argument("--once", action="store_true", help="look for half a second, print, and end")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each look, a line each")
    parser.add_argument("--plain", action="store_true", help="plain text, although rich is installed")
    parser.add_argument(
        "--interval", type=_seconds, metavar="S", help="seconds between two looks (default: 1)"
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"got {text}, but 0.01 to 3600 seconds are allowed")
    return value
