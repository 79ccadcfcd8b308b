"""The public names of ndshare: listed, documented, and without effect on import."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import tomllib
import types
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import ndshare

_TOP = Path(__file__).parent.parent
_SOURCE = _TOP / "src" / "ndshare"

_OBSERVE = """
import json, os, sys, threading, warnings
import concurrent.futures, multiprocessing, pickle, subprocess
import numpy
from numpy._core.multiarray import get_handler_name

def observe():
    return {
        "threads": sorted(t.name for t in threading.enumerate()) + [len(sys._current_frames())],
        "tasks": len(os.listdir("/proc/self/task")),
        "children": [open(f"/proc/self/task/{t}/children").read() for t in os.listdir("/proc/self/task")]
                    if os.path.exists("/proc/self/task/%d/children" % os.getpid()) else [],
        "environment": sorted(os.environ.items()),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "handler": get_handler_name(),
        "filters": [str(f) for f in warnings.filters],
        "signals": [str(__import__("signal").getsignal(n)) for n in range(1, 32)],
        "start method": multiprocessing.get_start_method(allow_none=True),
        "names": {m.__name__: {k: id(v) for k, v in vars(m).items() if not k.startswith("__")}
                  for m in (os, pickle, subprocess, multiprocessing, threading, numpy)},
        "pickled": sorted(k.__qualname__ for k in __import__("copyreg").dispatch_table),
    }

before = observe()
import ndshare
after = observe()
# Submodules that an import made visible are no patch.
for names in (before["names"], after["names"]):
    for module, entries in names.items():
        for name in list(entries):
            if module + "." + name in sys.modules:
                del entries[name]
print(json.dumps([key for key in before if before[key] != after[key]]))
print(json.dumps(sorted(m for m in ("cloudpickle", "tqdm", "threadpoolctl") if m in sys.modules)))
"""


def _public() -> dict[str, object]:
    return {name: getattr(ndshare, name) for name in ndshare.__all__}


def test_all_is_sorted_and_without_repetition() -> None:
    """``__all__`` is sorted and names everything once."""
    assert list(ndshare.__all__) == sorted(set(ndshare.__all__))


def test_all_equals_reality() -> None:
    """Every name without a leading underscore that ndshare holds is listed, and the other way round."""
    held = {
        name
        for name, value in vars(ndshare).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name not in ("annotations", "TYPE_CHECKING", "Any")
    }
    listed = {name for name in ndshare.__all__ if not name.startswith("__")}
    held |= {name for name in listed if hasattr(ndshare, name)}  # looked up when first used
    assert held == listed
    for name in ndshare.__all__:
        assert getattr(ndshare, name) is not None


def test_dir_shows_every_public_name() -> None:
    """``dir(ndshare)`` holds the public names, those that are looked up when first used too."""
    assert set(ndshare.__all__) <= set(dir(ndshare))


@pytest.mark.parametrize("name", [name for name in ndshare.__all__ if not name.startswith("__")])
def test_public_name_is_documented(name: str) -> None:
    """Every public name has a summary line and the numpydoc sections that its signature asks for."""
    thing = getattr(ndshare, name)
    if not callable(thing):
        return
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    assert text.splitlines()[0].rstrip().endswith((".", "?")), f"{name}: the summary is not one sentence"
    if isinstance(thing, type) and (issubclass(thing, BaseException) or is_dataclass(thing)):
        return  # made by ndshare, not by its users
    parameters = [p.lstrip("*") for p in _parameters(thing)]
    if parameters:
        assert re.search(r"^Parameters\n-{10}$", text, re.MULTILINE), f"{name}: no Parameters section"
        for parameter in parameters:
            assert re.search(rf"^(.*[\s,*])?{parameter}\b.*$", _section(text, "Parameters"), re.MULTILINE), (
                f"{name}: parameter {parameter} is not described"
            )
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation not in ("None", None):
        assert re.search(r"^(Returns|Yields)\n-+$", text, re.MULTILINE), f"{name}: no Returns section"


def _parameters(thing: object) -> list[str]:
    try:
        signature = inspect.signature(thing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []
    return [name for name in signature.parameters if name not in ("self", "cls")]


def _section(text: str, title: str) -> str:
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n---+$|\Z)", text, re.MULTILINE | re.DOTALL)
    return match.group(1) if match else ""


def test_help_lists_every_public_name() -> None:
    """``help(ndshare)`` begins with the public names by purpose."""
    words = set(re.findall(r"\w+", inspect.getdoc(ndshare) or ""))
    assert set(ndshare.__all__) - words == set()


@pytest.mark.parametrize("name", sorted(set(ndshare.__all__) - {"ShutDown"}))
def test_docstring_names_its_page(name: str) -> None:
    """Where to read on stands in the docstring of every public name, and the page has the name."""
    found = re.search(r"docs/(\w+)\.md", inspect.getdoc(_public()[name]) or "")
    assert found, f"{name}: name a page of docs/ in its docstring"
    page = _SOURCE.parents[1] / "docs" / f"{found[1]}.md"
    assert name in page.read_text()


def test_import_changes_nothing(run_script) -> None:
    """Importing ndshare starts nothing, opens nothing, sets nothing, patches nothing, stays light."""
    changed, heavy = map(json.loads, run_script(_OBSERVE).stdout.splitlines())
    assert changed == []
    assert heavy == []


def test_version_stands_in_one_place() -> None:
    """``ndshare.__version__`` is where pip has it from: meson reads it, and pyproject.toml asks meson."""
    project = tomllib.loads((_TOP / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    build = (_TOP / "meson.build").read_text()
    of_meson = re.search(
        r"^  version: run_command\(\n    'sed', '-n', '(.*)', '(.*)', check: true", build, re.M
    )
    assert of_meson, "meson.build has a version of its own"
    script, file = of_meson[1].replace("\\\\", "\\"), of_meson[2]
    said = subprocess.run(["sed", "-n", script, file], cwd=_TOP, capture_output=True, text=True, check=True)
    assert said.stdout == f"{ndshare.__version__}\n"
    assert "version:" not in (_TOP / "CITATION.cff").read_text().replace("cff-version:", "")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it runs from the source tree
        assert ndshare.__version__ == importlib.metadata.version("ndshare")


def test_what_is_installed_is_what_the_checkout_has() -> None:
    """Every Python file and stub of the checkout, six extensions, and nothing else."""
    try:
        installed = importlib.metadata.files("ndshare") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ndshare runs from its source tree")
    names = {str(file) for file in installed if file.parts[0] == "ndshare" and file.suffix != ".pyc"}
    extensions = {name for name in names if name.endswith(".so")}
    present = {
        str(path.relative_to(_SOURCE.parent))
        for path in _SOURCE.rglob("*")
        if path.suffix in (".py", ".pyi", ".typed")
    }
    assert names - extensions == present
    stubs = {path.with_suffix("") for path in _SOURCE.rglob("*.pyi")}
    assert {name.partition(".")[0] for name in extensions} == {
        str(path.relative_to(_SOURCE.parent)) for path in stubs
    }
