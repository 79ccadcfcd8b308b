"""What Python 3.15 has brought: lazy imports, sentinels, frozen dicts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="new in Python 3.15")

_TIMEOUT_S = 90

_PROGRAM = """
lazy import json
lazy from collections import OrderedDict as Ordered
lazy import xml.etree.ElementTree as tree
lazy import nowhere_to_be_found
import sys
import ndshare
from ndshare import ProcessPoolExecutor as Executor

MISSING = sentinel("MISSING")
table = frozendict(a=1, b=[2])

class Holder:
    none = sentinel("none")
    known = frozendict(x=1)
    def get(self, x=MISSING): return x is MISSING, self.none is Holder.none

def uses(x):
    return json.loads(x), Ordered(a=1)["a"], tree.fromstring("<a/>").tag
def is_missing(x=MISSING): return x is MISSING
def make(): return MISSING
def look(): return table["a"], type(table).__name__, hash(frozendict(a=1))
def closure(mark):
    lazy_name = json
    return lambda x: (x is mark, lazy_name.dumps(1))
def main():
    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result(60)
        assert call(uses, "[1]") == ([1], 1, "a")
        assert call(is_missing) is True and call(is_missing, MISSING) is True and call(is_missing, 1) is False
        assert call(make) is MISSING
        assert call(look)[:2] == (1, "frozendict")
        assert call(lambda d: (type(d).__name__, d["k"]), frozendict(k=1)) == ("frozendict", 1)
        assert call(lambda: frozendict(k=[1])) == frozendict(k=[1])
        assert call(Holder().get) == (True, True) and call(lambda: Holder.none) is Holder.none
        assert call(closure(MISSING), MISSING) == (True, "1")
        table["b"].append(3)
        assert call(lambda: table["b"]) == [2, 3]
        def fails(): return nowhere_to_be_found.x
        try: call(fails)
        except (ImportError, NameError): pass
        else: raise AssertionError
    out = ndshare.alloc(2)
    def kernel(worker_id, index, value): out[index] = json.loads("2") + is_missing()
    ndshare.ProcessContext(2).map(kernel, range(2))
    assert list(out) == [3, 3]
main()
print("works")
"""


def test_lazy_imports_sentinels_and_frozen_dicts_are_sent(run_script: RunScript) -> None:
    """A global that is still a lazy import is imported where it is used; a sentinel keeps its identity."""
    done = run_script(_PROGRAM, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_program_runs_with_all_imports_lazy(tmp_path: Path) -> None:
    """``-X lazy_imports=all``: NumPy and ndshare themselves are imported late."""
    path = tmp_path / "program.py"
    path.write_text(_PROGRAM.replace("lazy import", "import").replace("lazy from", "from"))
    done = subprocess.run(
        [sys.executable, "-X", "lazy_imports=all", str(path)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")
