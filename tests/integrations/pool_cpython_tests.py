"""Runs CPython's own tests of `multiprocessing.Pool` with ndshare's in its place.

They are those of the interpreter that runs this: nothing of them is copied. Usage::

    python pool_cpython_tests.py [-v] [test ...]

Prints a line for each test that failed, its name first, then how many ran.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any

import ndshare

sys.path.insert(0, str(Path(__file__).parents[2]))

MODULE = "test._test_multiprocessing"
#: Those that make a pool of processes. Pools of threads, and of a manager's process, are not ndshare's.
CLASSES = (
    "WithProcessesTestPool",
    "WithProcessesTestPoolWorkerErrors",
    "WithProcessesTestPoolWorkerLifetime",
    "TestInitializers",
)

# What they run in another interpreter begins like this.
_PRELUDE = f"""
import sys; sys.path[:] = {sys.path!r}
import multiprocessing, warnings; warnings.simplefilter('ignore'); import ndshare
multiprocessing.Pool = ndshare.Pool
"""


def cases(names: list[str]) -> unittest.TestSuite:
    """Return their tests that use a pool of processes."""
    multiprocessing.Pool = ndshare.Pool  # type: ignore[misc,assignment]
    theirs = importlib.import_module("tests.integrations.pool_cpython_classes")
    script_helper: Any = importlib.import_module("test.support.script_helper")
    run = script_helper.assert_python_ok
    script_helper.assert_python_ok = lambda option, code, **options: run(option, _PRELUDE + code, **options)
    suite = unittest.TestSuite()
    for name in CLASSES:
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(getattr(theirs, name)):
            if not names or test.id().rpartition(".")[2] in names:
                suite.addTest(test)
    return suite


def main(arguments: list[str]) -> int:
    """Run them; returns the number of those that failed."""
    warnings.simplefilter("ignore")
    names = [name for name in arguments if name != "-v"]
    stream = sys.stderr if "-v" in arguments else io.StringIO()
    result = unittest.TextTestRunner(stream, verbosity=2).run(cases(names))
    ndshare.shutdown()
    for test, text in result.failures + result.errors:
        whole = getattr(test, "test_case", test)  # of a part of a test (`subTest`)
        print(whole.id().split(".")[-1], test.id(), text.strip().splitlines()[-1])
    print(f"{result.testsRun} tests ran, {len(result.skipped)} were skipped")
    return len(result.failures) + len(result.errors)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
