"""Globals that the script has imported from a module of the user's: one object in the worker, too."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90


def test_what_the_script_has_from_a_module_is_the_modules_in_workers(run_script: RunScript) -> None:
    """Marks are themselves, what a task writes to is what the module's functions see, content is the caller's."""
    done = run_script(
        """
import pathlib
import ndshare
pathlib.Path(__file__).with_name("settings.py").write_text('''
import collections
class Mark: pass
MISSING, UNSET = Mark(), object()
TABLE, NAMES, SEEN, COUNTS = {"a": 1}, [1], {1}, collections.Counter()
class Config:
    def __init__(self): self.v, self.table = 1, TABLE
CONFIG = Config()
def is_missing(x): return x is MISSING
def read(): return dict(TABLE), list(NAMES), set(SEEN), dict(COUNTS), CONFIG.v
def handle(): return HANDLE.v, EXTRA["a"]
''')
import settings
from settings import CONFIG, COUNTS, MISSING, NAMES, SEEN, TABLE, UNSET
TABLE["z"], CONFIG.v = 26, 7
class Handle:
    v = 1
handle, extra = Handle(), {"a": 1}
handle.w = 2
settings.HANDLE, settings.EXTRA = handle, extra
def marks(x=MISSING, *, y=UNSET, table=TABLE):
    return (x is MISSING, y is UNSET is settings.UNSET, MISSING is settings.MISSING, settings.is_missing(x),
            CONFIG is settings.CONFIG, table is TABLE is settings.TABLE)
def write():
    TABLE["b"] = 2; NAMES.append(3); SEEN.add(4); COUNTS["x"] += 1; CONFIG.v += 1
    return settings.read()
def put(): return handle.v, handle.w, extra, settings.handle(), settings.HANDLE is handle
with ndshare.ProcessPoolExecutor(1) as executor:
    call = lambda function, *args: executor.submit(function, *args).result(60)
    assert call(marks) == marks() == (True,) * 6, call(marks)
    assert call(write) == ({"a": 1, "z": 26, "b": 2}, [1, 3], {1, 4}, {"x": 1}, 8)
    assert call(settings.read) == ({"a": 1, "z": 26, "b": 2}, [1, 3], {1, 4}, {"x": 1}, 8)
    NAMES[0] = 5
    assert call(write)[1] == [5, 3] and call(settings.read)[0] == {"a": 1, "z": 26, "b": 2}
    assert call(put) == put() == (1, 2, {"a": 1}, (1, 1), True), "what the script has put into the module"
out = ndshare.alloc(2)
ndshare.map(lambda worker_id, index, value: out.__setitem__(index, settings.is_missing(MISSING)), range(2))
assert out.all()
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_module_that_workers_cannot_import(run_script: RunScript) -> None:
    """Then there is nothing to be the same as: objects of it arrive as others do."""
    done = run_script(
        """
import sys, types
import ndshare
made = sys.modules["made"] = types.ModuleType("made")
exec("class Thing:\\n    def __init__(self): self.v = 3\\nTHING, TABLE, MARK = Thing(), {'a': 1}, object()", vars(made))
from made import MARK, TABLE, THING
def use(mark=MARK): return THING.v, TABLE, mark is MARK
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(use).result(60) == (3, {"a": 1}, True)
    THING.v = 4
    assert executor.submit(use).result(60) == (4, {"a": 1}, True)
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
