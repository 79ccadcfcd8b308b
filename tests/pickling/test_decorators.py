"""Decorators of modules on functions of the script: what they keep is in their module, in workers as well."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90


def test_decorators_of_the_users_modules_use_their_module(run_script: RunScript) -> None:
    """Its locks, counters and switches are the worker's module's, not copies; closures of modules bring theirs."""
    done = run_script(
        """
import pathlib, warnings
import ndshare
pathlib.Path(__file__).with_name("decorators.py").write_text('''
import collections, functools, threading
CALLS, LOCK, ENABLED, FACTOR = collections.Counter(), threading.Lock(), True, 2
def counted(function):
    @functools.wraps(function)
    def wrapped(*args):
        with LOCK: CALLS[function.__name__] += 1
        return function(*args) if ENABLED else "off"
    return wrapped
def times(count):
    def decorator(function):
        @functools.wraps(function)
        def wrapped(*args): return [helper(function(*args)) for _ in range(count)]
        return wrapped
    return decorator
def helper(x):
    CALLS["helper"] += 1
    return x
def switch(on):
    global ENABLED
    ENABLED = on
def closure():
    return lambda x: x * FACTOR
''')
import decorators
@decorators.counted
def one(x): return x + 1
@decorators.times(2)
def two(x): return x * 2
class Thing:
    @decorators.counted
    def three(self, x): return x
def look(): return dict(decorators.CALLS)
decorators.FACTOR = 5
out = ndshare.alloc(2)
with warnings.catch_warnings(record=True) as told:
    ndshare.map(lambda worker_id, index, value: out.__setitem__(index, one(value)), range(2))
assert list(out) == [1, 2] and ["decorators.CALLS" in str(one.message) for one in told] == [True], told
with ndshare.ProcessPoolExecutor(1) as executor:
    call = lambda function, *args: executor.submit(function, *args).result(60)
    assert (call(one, 1), call(two, 1), call(Thing().three, 3)) == (2, [2, 2], 3)
    assert call(lambda: one(1) + 1) == 3
    assert call(look) == {"one": 2, "helper": 2, "three": 1}, call(look)
    call(decorators.switch, False)
    assert call(one, 1) == "off"
    assert call(decorators.closure(), 3) == 15, "the caller's, as before"
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_decorators_of_libraries(run_script: RunScript) -> None:
    """Whatever globals they name: `numpy.errstate` has a context variable that cannot be sent."""
    done = run_script(
        """
import contextlib, functools, warnings
import numpy as np, ndshare
warnings.simplefilter("error")
@np.errstate(divide="ignore")
def inverse(x): return 1 / x
quiet = np.errstate(divide="ignore", call=None)
def within():
    with quiet: return 1 / np.zeros(1)
@contextlib.contextmanager
def managed(): yield 3
@managed()
def same(x): return x
@functools.cache
def cached(x): return x
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(inverse, np.zeros(1)).result()[0] == np.inf
    assert executor.submit(within).result()[0] == np.inf
    assert isinstance(executor.submit(lambda: 1 / np.zeros(1)).exception(), RuntimeWarning)
    assert executor.submit(same, 2).result() == executor.submit(cached, 2).result() == 2
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
