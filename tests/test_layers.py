"""The house stands: imports point downwards, in no circle, through the doors, in Python and in C."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_SOURCE = Path(__file__).parents[1] / "src" / "ndshare"

#: From the roof to the ground. A room uses those on lower floors, and those to its right on its own floor.
FLOORS = """
    bench demo cli testing compat
    ndshare default_context
    _workspace
    _cluster _node
    _map integrations
    _pool _queue
    _processes
    _transport _dict
    _locks _arrays _pickling
    _memory _system functors errors
"""
_FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
_ORDER = {room: number for number, room in enumerate(FLOORS.split())}
_PUBLIC = {
    "bench",
    "cli",
    "compat",
    "default_context",
    "demo",
    "errors",
    "functors",
    "integrations",
    "ndshare",
    "testing",
}


def _name(path: Path, top: Path = _SOURCE) -> str:
    parts = path.relative_to(top.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """Return the room of a module; the package itself only collects names."""
    return [*module.split("."), "ndshare"][1] if module != "ndshare.__main__" else "cli"


def _imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(module, name)`` of every import, at any depth; an empty name for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield from (
                (".".join([*above, *filter(None, [node.module])]), alias.name) for alias in node.names
            )


class House:
    """Modules, and who imports what of whom."""

    def __init__(self, top: Path = _SOURCE) -> None:
        paths = {_name(path, top): path for pattern in ("*.pyi", "*.py") for path in top.rglob(pattern)}
        self.uses: dict[str, set[tuple[str, str]]] = {name: set() for name in paths}
        self.arrows: dict[str, set[str]] = {name: set() for name in paths}
        for name, path in paths.items():
            package = name.split(".")[: None if path.stem == "__init__" else -1]
            for module, thing in _imports(ast.parse(path.read_text()), package):
                if f"{module}.{thing}" in paths and f"{module}.{thing}" != name:
                    self.arrows[name].add(f"{module}.{thing}")
                elif module in paths and module != name:
                    self.arrows[name].add(module)
                if module in paths:
                    self.uses[name].add((module, thing))


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return a chain of imports that leads back to where it began, or an empty list."""
    done: set[str] = set()
    for start in sorted(arrows):
        chain, ahead = [start], [iter(sorted(arrows[start]))]
        while chain:
            following = next(ahead[-1], None)
            if following is None:
                done.add(chain.pop())
                ahead.pop()
            elif following in chain:
                return [*chain[chain.index(following) :], following]
            elif following not in done:
                chain.append(following)
                ahead.append(iter(sorted(arrows.get(following, ()))))
    return []


def breaches(house: House) -> list[str]:
    """Return a line for each import that does not lead down, or passes a door by."""
    found = []
    for name, targets in house.arrows.items():
        for target in targets:
            here, there = _room(name), _room(target)
            if here != there and _ORDER[there] < _ORDER[here]:
                found.append(f"{name} -> {target}: {there} lies above {here}")
    for name, uses in house.uses.items():
        for module, _ in uses:
            if _room(module) not in {_room(name), *_PUBLIC} and module.count(".") > 1:
                found.append(f"{name} -> {module}: passes the door of {_room(module)} by")
    return sorted(found)


@pytest.fixture(scope="module")
def house() -> House:
    """The modules of ndshare."""
    return House()


def test_floors_are_few_and_name_every_room() -> None:
    """At most ten floors, and twenty-two rooms."""
    rooms = {path.parent.name for path in _SOURCE.glob("*/__init__.py")}
    assert rooms == set(_ORDER) - {"ndshare", "default_context"}
    assert len(rooms) <= 22
    assert len(set(_FLOOR.values())) <= 10
    loose = {path.name for path in _SOURCE.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "__main__.py", "default_context.py", "py.typed"}


def test_imports_point_downwards_and_through_doors(house: House) -> None:
    """No import, not even inside a function or for types only, leads up or to a file behind a door."""
    assert breaches(house) == []


def test_no_circle_between_files(house: House) -> None:
    """No chain of imports leads back to where it began."""
    lazy_door = {
        name: set() if name in {"ndshare", "ndshare.errors"} else to for name, to in house.arrows.items()
    }
    assert " -> ".join(circle(lazy_door)) == ""


def _doors() -> list[str]:
    return sorted(set(_ORDER) - _PUBLIC)


@pytest.mark.parametrize("room", _doors())
def test_door_offers_what_other_rooms_use(house: House, room: str) -> None:
    """``__all__`` of a private room is what other rooms use of it: no more, no less."""
    tree = ast.parse((_SOURCE / room / "__init__.py").read_text())
    offered = next(
        {constant.value for constant in node.value.elts}
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    door = f"ndshare.{room}"
    used = {
        thing
        for name, uses in house.uses.items()
        if _room(name) != room
        for module, thing in uses
        if module == door
    }
    lazily = re.findall(rf'"(\w+)": "{re.escape(door)}"', (_SOURCE / "__init__.py").read_text())
    assert offered == used | set(lazily)


def _includes(folder: Path) -> dict[str, set[str]]:
    found = {}
    for path in folder.rglob("*.[ch]"):
        names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
        found[path.name] = {Path(name).name for name in names}
    return found


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in _SOURCE.rglob("*.c")}), ids=lambda path: path.name
)
def test_no_circle_between_c_files(folder: Path) -> None:
    """A C file and its header are one; what each includes of the others leads back to none."""
    arrows: dict[str, set[str]] = {}
    for name, included in _includes(folder).items():
        arrows.setdefault(Path(name).stem, set()).update(Path(other).stem for other in included)
    for stem, targets in arrows.items():
        targets.discard(stem)
    assert " -> ".join(circle(arrows)) == ""
    headers = {path.stem for path in folder.glob("*.h")}
    loners = {path.stem for path in folder.glob("*.c")} - headers - {"module"}
    assert not loners, "files in C without a header that says what others may call"


@pytest.mark.parametrize(
    "source",
    [
        "from ndshare import executor",
        "from ndshare.top import Pool",
        "import ndshare.top",
        "import ndshare.top.file",
        "from . import top",
        "from ..top.file import Pool",
        "def f():\n    if True:\n        from ndshare.top import Pool",
        "if TYPE_CHECKING:\n    from ndshare.top import Pool",
        "class A:\n    import ndshare.top as c",
    ],
)
def test_every_spelling_of_an_import_is_seen(source: str) -> None:
    """Imports at any depth, absolute and relative."""
    found = list(
        _imports(
            ast.parse(source), ["ndshare", "room"] if "from ." in source and ".." in source else ["ndshare"]
        )
    )
    assert found, source
    assert all(module.startswith("ndshare") for module, _ in found)


def test_circles_are_found_and_printed() -> None:
    """The chain is what is printed; no circle, no chain."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
