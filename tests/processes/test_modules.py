"""Modules of the user's in workers: those that the caller has loaded, whatever is on disk by now."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from ndshare._processes import loaded

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_HEAD = """
import importlib, os, sys, time
import ndshare
from ndshare import ProcessPoolExecutor as Executor

def write(path, text, later=[0]):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    later[0] += 2  # seconds, as time stamps in caches have no more digits
    os.utime(path, (time.time() + later[0],) * 2)
    importlib.invalidate_caches()

write("rates.py", "RATE = 1\\ndef rate(x=0): return RATE\\n")
import rates
def late(x=0):
    import rates
    return rates.RATE
def both(x=0):
    time.sleep(0.02)
    return late(), rates.rate(), rates.RATE
"""


def _check(run_script: RunScript, source: str) -> None:
    done = run_script(_HEAD + source + "\nprint('works')\n", timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_file_that_was_edited_is_not_what_the_caller_has(run_script: RunScript) -> None:
    """Old workers, new ones, and those of a new executor."""
    _check(
        run_script,
        """
with Executor(2) as executor:
    assert executor.submit(both).result() == (1, 1, 1)
    write("rates.py", "RATE = 2\\ndef rate(x=0): return RATE\\n")
    assert set(executor.map(both, range(12))) == {(1, 1, 1)}
    assert executor.submit(rates.rate).result() == 1
with Executor(2, env={"NEW": "1"}) as executor:
    assert set(executor.map(both, range(8))) == {(1, 1, 1)}
out = ndshare.alloc(4)
def kernel(worker_id, index, value): out[index] = late()
ndshare.ProcessContext(2).map(kernel, range(4))
assert list(out) == [1] * 4
os.remove("rates.py")
with Executor(1, env={"NEW": "2"}) as executor:
    assert executor.submit(both).result() == (1, 1, 1)
""",
    )


def test_reloaded_module_reaches_all_workers(run_script: RunScript) -> None:
    """Of the same executor, before its next task; what the initializer has made is made again."""
    _check(
        run_script,
        """
def init():
    global made
    made = late() * 10
def with_state(x):
    time.sleep(0.01)
    return both(), made
with Executor(2, initializer=init) as executor:
    assert set(executor.map(with_state, range(8))) == {((1, 1, 1), 10)}
    for version in (2, 3):
        write("rates.py", f"RATE = {version}\\ndef rate(x=0): return RATE\\n")
        importlib.reload(rates)
        assert rates.RATE == version
        assert set(executor.map(with_state, range(8))) == {((version,) * 3, version * 10)}
        assert executor.submit(rates.rate).result() == version
""",
    )


def test_module_of_the_same_name_from_another_path(run_script: RunScript) -> None:
    """Loaded by the caller, or by workers alone; in one executor, or in the next."""
    _check(
        run_script,
        """
here = [write(f"{d}/settings_of.py", f"RATE = {n}\\n") or os.path.abspath(d) for n, d in ((5, "a"), (66, "b"))]
def own(x=0):
    import settings_of
    return settings_of.RATE
for value, folder in zip((5, 66), here):
    sys.path.insert(0, folder)
    with Executor(2) as executor:
        assert set(executor.map(own, range(6))) == {value}
    sys.path.remove(folder)
with Executor(2) as executor:
    for value, folder in zip((5, 66), here):
        sys.path.insert(0, folder)
        sys.modules.pop("settings_of", None)
        import settings_of
        assert settings_of.RATE == value
        assert set(executor.map(own, range(6))) == {value}, value
        sys.path.remove(folder)
""",
    )


def test_packages_and_their_modules(run_script: RunScript) -> None:
    """Of each the caller's version; relative imports in them as well."""
    _check(
        run_script,
        """
write("kit/__init__.py", "VERSION = 1\\n")
write("kit/deep/__init__.py", "")
write("kit/deep/sums.py", "from .. import VERSION\\nfrom . import parts\\ndef total(x=0): return VERSION, parts.PART\\n")
write("kit/deep/parts.py", "PART = 1\\n")
import kit.deep.sums
write("kit/deep/parts.py", "PART = 2\\n")
write("kit/__init__.py", "VERSION = 2\\n")
with Executor(2) as executor:
    first = set(executor.map(kit.deep.sums.total, range(6)))
    write("kit/deep/parts.py", "PART = 3\\n")
    assert set(executor.map(kit.deep.sums.total, range(6))) == first
    importlib.reload(kit.deep.parts)
    assert {part for _, part in executor.map(kit.deep.sums.total, range(6))} == {3}
""",
    )


def test_module_that_only_workers_import_is_that_on_disk(run_script: RunScript) -> None:
    """As when a process is started now."""
    _check(
        run_script,
        """
write("later.py", "X = 1\\n")
def look():
    import later
    return later.X
for value in (1, 2):
    write("later.py", f"X = {value}\\n")
    with Executor(1) as executor:
        assert executor.submit(look).result() == value
def missing():
    import nowhere_to_be_found
with Executor(1) as executor:
    try: executor.submit(missing).result()
    except ModuleNotFoundError: pass
    else: raise AssertionError
""",
    )


def test_program_that_runs_is_not_run_again_in_workers(run_script: RunScript) -> None:
    """A module that uses workers while it is imported, or that `runpy` runs, has no main guard either."""
    _check(
        run_script,
        """
import runpy
write("at_import.py", '''
import ndshare
def one(): return 1
class Kept: pass
with ndshare.ProcessPoolExecutor(1) as executor:
    result, kept = executor.submit(one).result(), executor.submit(Kept).result()
out = ndshare.alloc(2)
def kernel(worker_id, index, value): out[index] = one()
ndshare.map(kernel, range(2))
''')
sys.path.insert(0, os.getcwd())
import at_import
assert at_import.result == 1 and type(at_import.kept) is at_import.Kept and list(at_import.out) == [1, 1]
write("package/part.py", "from . import other\\ndef value(): return other.V\\n")
write("package/other.py", "V = 5\\n")
write("package/__init__.py", '''
import ndshare
from . import part
with ndshare.ProcessPoolExecutor(1) as executor:
    result = executor.submit(part.value).result()
''')
import package
assert package.result == 5
with Executor(1) as executor:
    assert executor.submit(package.part.value).result() == 5 and executor.submit(at_import.one).result() == 1
for name in ("<run_path>", "__main__", "some_name"):
    assert runpy.run_path("at_import.py", run_name=name)["result"] == 1
""",
    )


def test_module_that_a_notebook_brings_up_to_date_in_place(run_script: RunScript, tmp_path: Path) -> None:
    """IPython's ``%autoreload`` changes its functions and does not load it anew."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from tests.processes.test_starting import _NOTEBOOK

    module = tmp_path / "reloaded_here.py"
    cells = [
        f"""
import os, sys, ndshare
executor = ndshare.ProcessPoolExecutor(2)
def write(value, changed):
    with open({str(module)!r}, "w") as file:
        file.write(f"V = {{value}}\\ndef v(_=None): return {{value}}, V\\n")
    os.utime({str(module)!r}, (changed, changed))
write(1, 10**9)
sys.path.insert(0, {str(tmp_path)!r})
%load_ext autoreload
%autoreload 2
import reloaded_here
assert list(executor.map(reloaded_here.v, range(4))) == [(1, 1)] * 4""",
        "write(22, 10**9 + 100)",
        """
assert reloaded_here.v() == (22, 22)
assert list(executor.map(reloaded_here.v, range(4))) == [(22, 22)] * 4
out = ndshare.alloc(2)
def kernel(worker_id, index, value): out[index] = reloaded_here.v()[0]
ndshare.map(kernel, range(2))
assert list(out) == [22, 22]
executor.shutdown()
print("works")""",
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    assert run_script(_NOTEBOOK, timeout=_TIMEOUT_S).stdout == "works\n"


def test_what_only_workers_have_follows_the_path_and_the_caller(run_script: RunScript) -> None:
    """Also within one executor: where it is found now, and from where the caller imports it later."""
    _check(
        run_script,
        """
import os
for place, value in (("here", 1), ("there", 2), ("elsewhere", 3)):
    os.mkdir(place)
    write(f"{place}/lazily.py", f"W = {value}\\n")
def look(_=None):
    import lazily
    return lazily.W
def by_map():
    out = ndshare.alloc(4)
    def kernel(worker_id, index, value): out[index] = look()
    context.map(kernel, range(4))
    return list(out)
context = ndshare.ProcessContext(2)
with Executor(2) as executor:
    everywhere = lambda: list(executor.map(look, range(6))) + by_map()
    sys.path.insert(0, os.path.abspath("here"))
    assert everywhere() == [1] * 10
    pids = set(executor._processes)
    sys.path.append("/nowhere")
    assert everywhere() == [1] * 10
    assert set(executor._processes) == pids, "warm"
    sys.path[0] = os.path.abspath("there")
    assert everywhere() == [2] * 10
    sys.path[0] = os.path.abspath("elsewhere")
    import lazily
    sys.path[0] = os.path.abspath("there")
    assert look() == 3 and everywhere() == [3] * 10
""",
    )


def test_warm_workers_with_the_same_modules_stay(run_script: RunScript) -> None:
    """Nothing is imported twice where nothing has changed."""
    _check(
        run_script,
        """
pids = set()
for _ in range(3):
    with Executor(1) as executor:
        assert executor.submit(both).result() == (1, 1, 1)
        pids.add(executor.submit(os.getpid).result())
    import json.tool, wsgiref.util
assert len(pids) == 1, pids
""",
    )


def test_edited_module_under_joblib(run_script: RunScript) -> None:
    """Its workers are the same."""
    pytest.importorskip("joblib")
    _check(
        run_script,
        """
import joblib
import ndshare.integrations.joblib as backend
backend.register()
with joblib.parallel_config("ndshare", n_jobs=2):
    assert set(joblib.Parallel()(joblib.delayed(both)(n) for n in range(4))) == {(1, 1, 1)}
    write("rates.py", "RATE = 2\\ndef rate(x=0): return RATE\\n")
    assert set(joblib.Parallel()(joblib.delayed(both)(n) for n in range(4))) == {(1, 1, 1)}
    importlib.reload(rates)
    assert set(joblib.Parallel()(joblib.delayed(both)(n) for n in range(4))) == {(2, 2, 2)}
""",
    )


def test_file_that_was_edited_before_the_first_worker(run_script: RunScript) -> None:
    """The code that Python has kept is that of the module that the caller has."""
    _check(
        run_script,
        """
sys.dont_write_bytecode = False
write("early.py", "RATE = 1\\ndef rate(): return RATE\\n")
import early
write("early.py", "RATE = 2\\n\\n\\ndef rate(): return RATE + 1\\n")
def own():
    import early
    return early.RATE, early.rate()
with Executor(1) as executor:
    assert executor.submit(own).result() == (1, 1)
    assert executor.submit(early.rate).result() == 1
""",
    )


def test_other_threads_may_import_while_modules_are_looked_at() -> None:
    """Without a GIL `sys.modules` changes in the middle of each look."""
    until = time.monotonic() + 0.5

    def come_and_go(name: str) -> None:
        while time.monotonic() < until:
            names = [f"ndshare_test_{name}_{number}" for number in range(30)]
            sys.modules.update((name, types.ModuleType(name)) for name in names)
            for name in names:
                del sys.modules[name]

    threads = [threading.Thread(target=come_and_go, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        while time.monotonic() < until:
            loaded.generation()
    finally:
        for thread in threads:
            thread.join()
    before = loaded.generation()
    assert loaded.generation() == before
