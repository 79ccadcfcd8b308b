"""Interpreters in which warning filters belong to a context, and threads begin with a copy of one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

_FLAGS = ("-X", "context_aware_warnings=1")

_FILTERS = """
import warnings, numpy as np, ndshare

def task(x):
    warnings.warn("careful", RuntimeWarning)
    return x
def kernel(worker_id, index, value): task(value)

def outcome(call):
    try:
        call()
    except RuntimeWarning:
        return "raised"
    except ndshare.MapError as error:
        return "raised"
    return "done"

calls = [lambda: executor.submit(task, 1).result(), lambda: list(executor.map(task, range(3)))]
for context in (ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2, start="fork"),
                ndshare.ProcessContext(2, start="pool")):
    calls.append(lambda context=context: context.map(kernel, range(3)))
with ndshare.ProcessPoolExecutor(1) as executor:
    for action, expected in ("error", "raised"), ("ignore", "done"), ("error", "raised"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            found = [outcome(call) for call in calls]
        assert found == [expected] * len(calls), (action, found)
    warnings.simplefilter("ignore")
    assert [outcome(call) for call in calls] == ["done"] * len(calls)
with warnings.catch_warnings(record=True) as log:
    warnings.simplefilter("always")
    ndshare.ThreadContext(2).map(kernel, range(3))
    assert [str(one.message) for one in log] == ["careful"] * 3
print("fine")
"""


@pytest.mark.parametrize("inherit", ["0", "1"])
def test_filters_of_the_callers_context_hold_for_its_work(run_script: RunScript, inherit: str) -> None:
    """In workers and in threads, for tasks and for items; what is recorded in threads comes back."""
    flags = (*_FLAGS, "-X", f"thread_inherit_context={inherit}")
    done = run_script(_FILTERS, interpreter_args=flags)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_own_threads_have_nothing_of_the_context_they_are_started_in(run_script: RunScript) -> None:
    """The one that serves all callers does not allocate in shared memory because the first one did."""
    done = run_script(
        """
import contextvars, numpy as np, threading, ndshare
from ndshare._system import own_thread
var = contextvars.ContextVar("var", default="unset")
var.set("set")
found = []
with ndshare.shared_memory():
    for thread in own_thread(lambda: found.append(var.get()), "own"), threading.Thread(target=lambda: found.append(var.get())):
        thread.start()
        thread.join()
    executor = ndshare.ProcessPoolExecutor(1)
    assert executor.submit(int, "3").result() == 3
    queue = ndshare.Queue()
    queue.put(np.ones(100_000))
    assert queue.get().sum() == 100_000
executor.shutdown()
assert found == ["unset", "set"], found
print("fine")
""",
        interpreter_args=("-X", "thread_inherit_context=1"),
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
