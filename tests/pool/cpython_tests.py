"""Runs CPython's own tests of `concurrent.futures.ProcessPoolExecutor` with ndshare's in its place.

They are those of the interpreter that runs this: nothing of them is copied. Usage::

    python cpython_tests.py [module ...]

Prints a line for each test that failed, its name first, then how many ran.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import io
import multiprocessing
import sys
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import ndshare

PACKAGE = "test.test_concurrent_futures"
MODULES = (
    "test_process_pool",
    "test_shutdown",
    "test_init",
    "test_deadlock",
    "test_wait",
    "test_as_completed",
)

# What they run in another interpreter begins like this.
_PRELUDE = f"""
import sys; sys.path[:] = {sys.path!r}
import concurrent.futures, warnings; warnings.simplefilter('ignore'); import ndshare
concurrent.futures.ProcessPoolExecutor = ndshare.ProcessPoolExecutor
"""


def cases(names: tuple[str, ...]) -> unittest.TestSuite:
    """Return their tests that use an executor with processes."""
    concurrent.futures.ProcessPoolExecutor = ndshare.ProcessPoolExecutor  # type: ignore[misc]
    suite = unittest.TestSuite()
    for name in names:
        module: Any = importlib.import_module(f"{PACKAGE}.{name}")
        module.setUpModule = functools.partial(_set_up, module.setUpModule)
        if hasattr(module, "assert_python_ok"):
            run = module.assert_python_ok
            module.assert_python_ok = lambda option, code, run=run: run(option, _PRELUDE + code)
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, unittest.TestCase):
                suite.addTests(
                    test
                    for test in unittest.defaultTestLoader.loadTestsFromTestCase(found)
                    if "Process" in found.__name__ or "Resources" in found.__name__
                )
    return suite


def _set_up(theirs: Callable[[], None]) -> None:
    theirs()
    unittest.addModuleCleanup(_end_all)


def _end_all() -> None:
    """End everybody who can tell the resource tracker something: their last clean-up waits for that."""
    ndshare.shutdown()
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def main(names: tuple[str, ...]) -> int:
    """Run them; returns the number of those that failed."""
    warnings.simplefilter("ignore")
    result = unittest.TextTestRunner(io.StringIO() if "-v" not in sys.argv else sys.stderr, verbosity=2).run(
        cases(tuple(name for name in names if name != "-v") or MODULES)
    )
    print()  # they print how long each has taken
    for test, text in result.failures + result.errors:
        print(test.id().split(".")[-1], test.id(), text.strip().splitlines()[-1])
    print(f"{result.testsRun} tests ran, {len(result.skipped)} were skipped")
    return len(result.failures) + len(result.errors)


if __name__ == "__main__":
    sys.exit(bool(main(tuple(sys.argv[1:]))))
