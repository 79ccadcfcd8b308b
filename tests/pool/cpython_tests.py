"""Runs CPython's own tests of `concurrent.futures.ProcessPoolExecutor` with ndshare's in its place.

They are those of the interpreter that runs this: nothing of them is copied. Usage::

    python cpython_tests.py [module ...]

Prints a line for each test that failed, its name first, then how many ran.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import importlib
import io
import multiprocessing
import signal
import sys
import unittest
import warnings
from collections.abc import Callable
from types import FrameType
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

#: They put something in the place of a private function of the standard library which ndshare has no use for.
PRIVATE = (
    "test_python_finalization_error",
    "test_failed_worker_replacement_breaks_pool",
    "test_force_shutdown_during_max_tasks_worker_exit",
)
#: One waits for ever for what ndshare does not do.
LIMIT_S = {"test_broken_process_pool_traceback": 5}

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
        for found in list(vars(module).values()):
            if not (isinstance(found, type) and issubclass(found, unittest.TestCase)):
                continue
            if "Process" in found.__name__ or "Resources" in found.__name__:
                found.run = functools.partialmethod(_run, found.run)  # type: ignore[method-assign,assignment]
                tests = unittest.defaultTestLoader.loadTestsFromTestCase(found)
                suite.addTests(test for test in tests if _name(test) not in PRIVATE)
    return suite


def _name(test: unittest.TestCase) -> str:
    """Return the name of the method; that of a part of a test (`subTest`) is the test's."""
    return getattr(test, "test_case", test).id().split(".")[-1]


def _run(
    test: Any, theirs: Callable[..., unittest.TestResult | None], result: unittest.TestResult | None = None
) -> unittest.TestResult | None:
    """Run one; at its limit it fails, and its workers are killed: its clean-up waits for them."""

    def give_up(number: int, frame: FrameType | None) -> None:
        test.executor.kill_workers()
        raise TimeoutError("it waits for something that does not come")

    own = set(vars(test))
    former = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_S.get(_name(test), 0))
    try:
        return theirs(test, result)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        # The next one may count the semaphores that are left, while this one is kept if it failed.
        for name in set(vars(test)) - own:
            delattr(test, name)
        if _name(test) == "test_initializer":
            ndshare.shutdown()  # workers that are just ending have it
        gc.collect()


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
        print(_name(test), test.id(), text.strip().splitlines()[-1])
    print(f"{result.testsRun} tests ran, {len(result.skipped)} were skipped")
    return len(result.failures) + len(result.errors)


if __name__ == "__main__":
    sys.exit(bool(main(tuple(sys.argv[1:]))))
