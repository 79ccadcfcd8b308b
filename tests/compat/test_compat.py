"""What all modules of ndshare.compat have in common."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ndshare

_FOLDER = Path(ndshare.__file__).parent / "compat"
_MODULES = sorted(_FOLDER.rglob("*.py"))
_PUBLIC = {"ndshare", "ndshare.functors"}
#: What no public name does.
_BEYOND = {
    ("ndshare._map", "drop_result"),
    ("ndshare._map", "resolved_layout"),
    ("ndshare._memory", "idle_bytes"),
    ("ndshare._memory", "sparse"),
    ("ndshare._processes", "add_aliases"),
}


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: str(path.relative_to(_FOLDER)))
def test_modules_are_thin_and_use_public_names_only(path: Path) -> None:
    """At most 350 lines; from ndshare only what is documented for everybody, and no private attribute of it."""
    source = path.read_text()
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ndshare"):
            public = node.module in _PUBLIC and not any(alias.name.startswith("_") for alias in node.names)
            beyond = {(node.module, alias.name) for alias in node.names} <= _BEYOND
            assert public or beyond or node.module.startswith("ndshare.compat"), ast.unparse(node)
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


_WARM = """
import os, sys
import ndshare, ndshare.compat

def look(*names):
    import importlib
    return os.getpid(), [importlib.import_module(name).__spec__.name for name in names]

with ndshare.ProcessPoolExecutor(1) as executor:
    pid, _ = executor.submit(look).result()
    for name in ("npshmex", "pasha", "contextshare", "shared_numpy", "SHMArrays"):
        ndshare.compat.install(name)
    import contextshare, npshmex, pasha
    assert executor.submit(look, "pasha.functor", "shared_numpy.shared_numpy").result() == (
        pid, ["ndshare.compat.pasha.functor", "ndshare.compat.shared_numpy.shared_numpy"]
    )
for _ in range(2):
    with npshmex.ProcessPoolExecutor(1) as executor:
        assert executor.submit(look, "npshmex", "SHMArrays").result() == (
            pid, ["ndshare.compat.npshmex", "ndshare.compat.SHMArrays"]
        )
pids = pasha.alloc(3, int)
def kernel(worker_id, index, value):
    import user_of_pasha
    pids[index] = user_of_pasha.pid()
ndshare.ProcessContext(1).map(kernel, range(3))
assert set(pids) == {pid}, (pid, pids)
with contextshare.SharedMemory({}, 1) as sm:  # which has workers of its own, for its names
    sm.register(look)("contextshare.contextshare")
    assert sm.evaluate()[0][1] == ["ndshare.compat.contextshare.contextshare"]
"""


def test_warm_workers_know_what_is_installed(run_script, tmp_path: Path) -> None:
    """Those that run already; whoever uses them; no executor or context has new ones for that."""
    (tmp_path / "user_of_pasha.py").write_text(
        "import os, sys\nimport pasha\nfrom pasha.functor import Functor\n"
        "assert sys.modules['pasha'].ProcessContext.__module__ == 'ndshare.compat.pasha.context'\n"
        "def pid():\n    return os.getpid()\n"
    )
    run_script(_WARM)


def test_install_serves_every_module_of_the_originals(run_script) -> None:
    """By every way to import them."""
    run_script(
        "import ndshare.compat\n"
        "for name in ('contextshare', 'npshmex', 'pasha', 'shared_numpy', 'SHMArrays'):\n"
        "    ndshare.compat.install(name)\n"
        "import contextshare.contextshare, pasha.context, pasha.functor, shared_numpy.shared_numpy\n"
        "from contextshare.contextshare import SharedMemory\n"
        "from shared_numpy.shared_numpy import SharedNDArray, array, from_array, ndarray\n"
        "from shared_numpy.queue import Queue\n"
        "from shared_numpy.reduction import init_reduction\n"
        "from shared_numpy.shared_memory import ShareableList, SharedMemory as Memory\n"
        "from shared_numpy import shared_memory\n"
        "assert SharedMemory is contextshare.SharedMemory\n"
        "assert type(shared_numpy.array([1])) is shared_numpy.shared_numpy.SharedNDArray\n"
        "from pasha import context, functor\n"
        "assert pasha.context is context and pasha.functor is functor\n"
    )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("npshmex", "ProcessPoolExecutor Future np pickle random string concurrent shm_put unshm"),
        ("contextshare", "SharedMemory np mp mpshm cloudpickle"),
        ("pasha", "map alloc context functor wraps ProcessContext set_default_context"),
        ("SHMArrays", "SHMArrays np OrderedDict mem_keys var_spec partition_sizes split_dicts"),
        ("shared_numpy", "Queue array ndarray from_array SharedMemory ShareableList"),
    ],
)
def test_import_star_gives_what_the_original_gave(name: str, given: str) -> None:
    """The modules that it had imported itself among them: programs use them."""
    space: dict[str, object] = {}
    exec(f"from ndshare.compat.{name} import *", space)
    assert set(given.split()) <= space.keys()
