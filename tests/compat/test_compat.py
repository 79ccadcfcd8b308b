"""What all modules of ndshare.compat have in common."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ndshare

_FOLDER = Path(ndshare.__file__).parent / "compat"
_MODULES = sorted(_FOLDER.rglob("*.py"))
_PUBLIC = {"ndshare", "ndshare.functors"}


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: str(path.relative_to(_FOLDER)))
def test_modules_are_thin_and_use_public_names_only(path: Path) -> None:
    """At most 350 lines; from ndshare only what is documented for everybody, and no private attribute of it."""
    source = path.read_text()
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ndshare"):
            public = node.module in _PUBLIC and not any(alias.name.startswith("_") for alias in node.names)
            assert public or node.module.startswith("ndshare.compat"), ast.unparse(node)
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.name.startswith("ndshare")}
            assert names <= _PUBLIC, ast.unparse(node)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "ndshare"
        ):
            assert node.attr in ndshare.__all__, ast.unparse(node)


def test_install_leaves_other_modules_alone(run_script) -> None:
    """Each original by itself; importing ndshare.compat alone changes nothing."""
    run_script(
        "import sys\nimport ndshare.compat\n"
        "names = ['SHMArrays', 'contextshare', 'npshmex', 'pasha', 'shared_numpy']\n"
        "assert not set(names) & set(sys.modules)\n"
        "for number, name in enumerate(names):\n"
        "    module = ndshare.compat.install(name)\n"
        "    assert module is ndshare.compat.install(name) is sys.modules[name]\n"
        "    assert not set(names[number + 1:]) & set(sys.modules)\n"
    )
