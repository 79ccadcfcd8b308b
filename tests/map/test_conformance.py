"""Every context passes the conformance suite, from a parent of each start method too."""

from __future__ import annotations

import pytest

import ndshare
from ndshare.testing import ContextConformance


class TestSerial(ContextConformance):
    """In the calling thread."""

    def make_context(self) -> ndshare.MapContext:
        """One worker."""
        return ndshare.SerialContext()


class TestThreads(ContextConformance):
    """In threads."""

    def make_context(self) -> ndshare.MapContext:
        """More workers than processors."""
        return ndshare.ThreadContext(3)


class TestPool(ContextConformance):
    """In warm workers."""

    def make_context(self) -> ndshare.MapContext:
        """As usual."""
        return ndshare.ProcessContext(2)


class TestPoolOfOne(ContextConformance):
    """In one warm worker."""

    def make_context(self) -> ndshare.MapContext:
        """Not the caller."""
        return ndshare.ProcessContext(1)


class TestForked(ContextConformance):
    """In forked workers."""

    def make_context(self) -> ndshare.MapContext:
        """As pasha does it."""
        return ndshare.ProcessContext(2, start="fork")


_SCRIPT = """
import multiprocessing, sys
import ndshare
from ndshare.testing import ContextConformance

def suite(make):
    class Suite(ContextConformance):
        def make_context(self):
            return make()
    suite = Suite()
    for name in sorted(dir(suite)):
        if name.startswith("test_"):
            getattr(suite, name)()

def main():
    suite(lambda: ndshare.ProcessContext(2))
    suite(lambda: ndshare.ProcessContext(2, start="fork"))
    ndshare.shutdown()
    print("ok", flush=True)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=main)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_contexts_conform_inside_a_process_of_multiprocessing(method: str, run_script) -> None:
    """Whatever the program's own start method is."""
    assert run_script(_SCRIPT, method).stdout == "ok\n"
