"""The cells of closures: what they hold, how a message or what a worker was given fills them."""

from __future__ import annotations

import types
from collections.abc import Container, Iterator
from typing import Any

CODE_TYPES = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
"""Types of what is code, not data."""


OF_CLASS = "__classdict__"
"""Variable in which annotations in a class find the ``__dict__`` of the class, which is filled with it."""


def contents(cell: types.CellType) -> tuple[Any, ...]:
    """Return what a cell of a closure holds: one object, or none."""
    try:
        return (cell.cell_contents,)
    except ValueError:  # a variable that is not assigned yet
        return ()


def cell_contents(function: types.FunctionType, given: Container[int] = ()) -> tuple[tuple[Any, ...], ...]:
    """Return what the cells of a closure hold; nothing for those that the receiver fills."""
    cells = function.__closure__
    if cells is None:
        return ()
    names = function.__code__.co_freevars
    if OF_CLASS in names:
        pairs = zip(names, cells, strict=True)
        return tuple(
            [() if name == OF_CLASS or id(cell) in given else contents(cell) for name, cell in pairs]
        )
    if not given:
        return tuple(map(contents, cells))
    return tuple([() if id(cell) in given else contents(cell) for cell in cells])


def make_cell() -> types.CellType:
    """Return an empty cell."""
    return types.CellType()


def cells_given(function: types.FunctionType, names: Container[str]) -> Iterator[tuple[int, str]]:
    """Yield id and name of the cells of a closure that the receiver fills: data under one of the names.

    Functions and classes stay: a decorator's ``function`` is not the value of that name.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in names and not isinstance((*contents(cell), None)[0], CODE_TYPES):
            yield id(cell), name


given: dict[str, Any] = {}
"""What a worker was given by name: see `ndshare._workspace.workspace`."""

# In a worker: cells that have arrived before what they are to hold.
_unfilled: list[tuple[str, types.CellType]] | None = None


def expect_gifts() -> None:
    """Become a worker that may be given something."""
    global _unfilled
    given.clear()
    _unfilled = []


def given_cell(name: str) -> types.CellType:
    """Return a cell with what this worker was given under a name, or will be; elsewhere an empty one."""
    if name in given:
        return types.CellType(given[name])
    cell = types.CellType()
    if _unfilled is not None and not given:
        _unfilled.append((name, cell))
    return cell


def give(values: dict[str, Any]) -> None:
    """Take what this worker is given, once and for all."""
    given.update(values)
    for name, cell in _unfilled or ():
        cell.cell_contents = values[name]
    if _unfilled:
        _unfilled.clear()


def fill_cells(function: types.FunctionType, contents: tuple[tuple[Any, ...], ...]) -> None:
    """Fill the cells of a closure with their `cell_contents`."""
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            cell.cell_contents = content[0]
