"""Tables on a terminal: as plain text, or by rich if it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

from ndshare.cli.top.tables import Table

_CLEAR = "\033[H\033[J"
_CUT = "…"
_FLEXIBLE = 34  # characters of a column of words, at most
_NAMES, _NAMES_LEAST = 1, 10  # the column that is cut where a terminal is narrow, and to how much


def plain(tables: Sequence[Table], width: int | None = None) -> str:
    """Return tables as text, no wider than a terminal."""
    if not tables:
        return "no process of this user uses ndshare"
    parts = []
    for table in tables:
        table = table if width is None else _fitted(table, width, 2)
        heads = [column.lstrip(">") for column in table.columns]
        cells = [tuple(heads), *table.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
        lines = [
            "  ".join(
                cell.rjust(size) if column.startswith(">") else cell.ljust(size)
                for cell, size, column in zip(row, widths, table.columns, strict=True)
            ).rstrip()
            for row in cells
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _fitted(table: Table, width: int, gap: int) -> Table:
    """Leave columns out and cut names until the table has room."""
    for column in table.spare:
        sizes = _sizes(table)
        sizes[_NAMES] = min(sizes[_NAMES], 2 * _NAMES_LEAST)
        if sum(sizes) + gap * len(sizes) <= width:
            break
        table = table.without(column) if column in table.columns else table
    sizes = _sizes(table)
    for at in (_NAMES, len(sizes) - 1):
        over = max(0, sum(sizes) + gap * len(sizes) - width)
        sizes[at] = max(min(sizes[at], _NAMES_LEAST), sizes[at] - over)
    rows = [tuple(map(_cut, row, sizes)) for row in table.rows]
    return Table(table.title, table.columns, rows)


def _sizes(table: Table) -> list[int]:
    rows = ([name.lstrip(">") for name in table.columns], *table.rows)
    last = len(table.columns) - 1
    return [
        max(len(row[at]) if at == last else min(_FLEXIBLE, len(row[at])) for row in rows)
        for at in range(last + 1)
    ]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + _CUT


def has_rich() -> bool:
    """Whether rich is installed."""
    try:
        import rich.live
    except ImportError:
        return False
    return rich.live is not None


def rich_group(tables: Sequence[Table], width: int) -> Any:
    """Return tables as rich shows them."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    if not tables:
        return Text(plain(()))
    shown: list[Any] = []
    for table in (_fitted(table, width, 3) for table in tables):
        made = RichTable(
            box=box.SIMPLE_HEAD, title=table.title, title_justify="left", title_style="bold", pad_edge=False
        )
        for column in table.columns:
            is_number = column.startswith(">")
            made.add_column(column.lstrip(">"), justify="right" if is_number else "left", no_wrap=True)
        for row in table.rows:
            made.add_row(*(Text(cell) for cell in row))
        shown.append(made)
    return Group(*shown)


def follow(next_tables: Callable[[], Sequence[Table]], *, use_rich: bool) -> None:
    """Show tables again and again until Ctrl-C; `next_tables` takes its time."""
    if not use_rich:
        while True:
            made = next_tables()
            print(_CLEAR + plain(made, shutil.get_terminal_size((100, 24)).columns), flush=True)
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(
        rich_group(next_tables(), console.width), console=console, screen=True, auto_refresh=False
    ) as live:
        while True:
            live.update(rich_group(next_tables(), console.width), refresh=True)
