"""Imports inside ndshare point downwards only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_SOURCE = Path(__file__).parent.parent / "src" / "ndshare"

# From the top to the ground. A module may import from its own layer and from those below it.
# The package itself, ``ndshare``, only collects names: nothing below the tools may import it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"__main__"}),
    frozenset({"cli", "demo", "bench", "testing", "_command_ls", "_command_prune"}),
    frozenset({"compat"}),
    frozenset({"__init__"}),
    frozenset({"cluster", "cluster_executor", "default_context", "integrations", "workspace"}),
    frozenset({"_cluster_items", "_cluster_workers", "_workspace_cluster", "_workspace_staff"}),
    frozenset({"_cluster_calls"}),
    frozenset({"_cluster_cargo", "_cluster_results", "_workspace_images"}),
    frozenset({"_cluster_traffic"}),
    frozenset({"_engines"}),
    frozenset({"_node"}),
    frozenset({"_node_workspace"}),
    frozenset({"contexts"}),
    frozenset({"executor"}),
    frozenset(
        {
            "_driving",
            "_flights",
            "_forked_workers",
            "_local_workers",
            "_map_workers",
            "_node_crew",
            "_node_link",
            "_node_names",
            "_node_store",
            "_node_worker",
            "_own_state",
            "_pool_workers",
            "_job",
            "_runner",
            "_share_size",
            "_shares",
            "_twins",
            "_contents",
            "_differences",
            "_queue_asyncio",
            "_queue_backlog",
            "_queue_exit",
            "_queue_getting",
            "_queue_handle",
            "_queue_line",
            "_queue_lines",
            "_queue_memory",
            "_queue_messages",
            "_queue_opened",
            "_queue_putting",
            "_queue_slots",
            "_queue_waiting",
            "_queue_wire",
            "captured",
            "functors",
            "locks",
            "mapping",
            "queues",
            "randomness",
            "reduction",
            "rows",
            "report",
            "_report_text",
            "_timeline",
            "watching",
        }
    ),
    frozenset(
        {
            "pool",
            "_placing",
            "_pool_deaths",
            "_pool_end",
            "_pool_interrupts",
            "_pool_results",
            "shared_dict",
            "_dict_directory",
            "_dict_file",
            "_dict_fork",
            "_dict_layout",
            "_dict_life",
            "_dict_list",
            "_dict_locked",
            "_dict_reading",
            "_dict_snapshot",
            "_dict_values",
            "_dict_writing",
            "_delivery",
            "_roster",
            "_settings",
            "_sources",
            "_surroundings",
            "crew",
            "workers",
            "futures",
            "items_tasks",
            "tasks",
            "hub",
            "_zygote",
            "_worker",
            "_launcher",
            "_frames",
            "_caller_state",
            "_errstate",
            "_records",
            "_arguments",
            "_repeats",
            "_calls",
            "_waiting",
            "progress",
            "_injection",
            "_muster",
            "_workspace_values",
        }
    ),
    frozenset({"_freight", "sharing", "mainspace", "failures"}),
    frozenset({"transport"}),
    frozenset(
        {
            "_inputs",
            "_scratch",
            "_session",
            "alone",
            "arrays",
            "cells",
            "cloud",
            "codes",
            "copying",
            "descriptors",
            "_local_functions",
            "functions",
            "layout",
            "memmaps",
            "named",
            "namespace",
            "parcel",
            "pickling",
            "recording",
            "reducers",
            "settling",
            "staging",
            "wrappers",
        }
    ),
    frozenset({"segments", "_chunks"}),
    frozenset({"_board"}),
    frozenset({"_heap", "_loop", "_twin", "_wire", "_platform", "cpus"}),
    frozenset({"_dict", "_heap", "_lock", "_wire", "_platform", "cpus"}),
    frozenset({"errors", "_pool_errors", "_callers"}),
)
_LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules() -> list[Path]:
    return sorted(_SOURCE.rglob("*.py"))


def _unit(path: Path) -> str:
    """Return the module or sub-package directly under ndshare that `path` belongs to."""
    return path.relative_to(_SOURCE).parts[0].removesuffix(".py")


def imported_units(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Yield ``(line, unit)`` for every import of something in ndshare, at any depth.

    Parameters
    ----------
    tree
        A parsed module.
    package
        The names of the package it lies in, such as ``("ndshare", "bench")``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            base = above + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "ndshare":
                known = len(target) > 1 and target[1] in _LEVEL
                yield node.lineno, target[1] if known else "__init__"


def breaches(source: str, unit: str, package: tuple[str, ...] = ("ndshare",)) -> list[str]:
    """Return one sentence per import in `source` that points to a layer above that of `unit`."""
    return [
        f"line {line}: {unit} imports {target}, which lies above it"
        for line, target in imported_units(ast.parse(source), package)
        if _LEVEL[target] < _LEVEL[unit]
    ]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(_SOURCE)))
def test_imports_of_a_module_point_downwards(path: Path) -> None:
    """No module imports, not even inside a function, from a layer above its own."""
    unit = _unit(path)
    assert unit in _LEVEL, f"{unit} has no layer: name one in LAYERS"
    package = ("ndshare", *path.relative_to(_SOURCE).parts[:-1])
    assert breaches(path.read_text(), unit, package) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ndshare._pool import executor",
        "from ndshare._processes.worker_handle import Pool",
        "import ndshare._pool.executor",
        "import ndshare",
        "from ndshare import zeros",
        "from . import workers",
        "from .workers import Pool",
        "def f():\n    if True:\n        from ndshare._processes.worker_handle import Pool",
        "class A:\n    import ndshare.cli as c",
    ],
)
def test_layers_upward_import_is_found(source: str) -> None:
    """An upward import is found in each of its spellings."""
    assert len(breaches(source, "segments")) == 1


def test_layers_downward_import_passes() -> None:
    """Imports of lower layers, of the own layer and of other packages are no breach."""
    source = "import numpy\nfrom ndshare import errors; from ndshare._memory import _heap\nfrom .segments import stage\nimport os.path"
    assert breaches(source, "segments") == []
