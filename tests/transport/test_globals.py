"""Globals of ``__main__`` that the caller changes in place: tasks see them as they are, whatever their size."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_HEAD = "import numpy as np, ndshare\nfrom ndshare import ProcessPoolExecutor as Executor\n"

_KINDS = {
    "array": ("value = np.zeros(N)", "value[N // 2] = 5", "value[N // 2]", 5),
    "array in Fortran order": ("value = np.zeros((N, 2), order='F')", "value[0, 1] = 5", "value[0, 1]", 5),
    "view": ("whole = np.zeros(2 * N)\nvalue = whole[::2]", "whole[2] = 5", "value[1]", 5),
    "shape of an array": ("value = np.zeros(2 * N)", "value.shape = (2, N)", "value.ndim", 2),
    "array of objects": ("value = np.array([None] * N)", "value[1] = 'x'", "value[1]", "x"),
    "masked array": (
        "value = np.ma.zeros(N)",
        "value[1] = np.ma.masked",
        "bool(np.ma.getmaskarray(value)[1])",
        True,
    ),
    "list": ("value = [1] * N", "value[0] = 7", "value[0]", 7),
    "list that grows": ("value = [1] * N", "value.append(2)", "len(value) - N", 1),
    "dict": ("value = dict.fromkeys(range(N))", "value[3] = 4", "value[3]", 4),
    "set": ("value = set(range(N))", "value.discard(3)", "3 in value", False),
    "bytearray": ("value = bytearray(N)", "value[2] = 9", "value[2]", 9),
    "array of a list": ("value = [[np.zeros(N)]]", "value[0][0][-1] = 5", "value[0][0][-1]", 5),
    "attribute of an object": (
        "class Box: pass\nvalue = Box()\nvalue.rows = [0] * N",
        "value.rows[1] = 5",
        "value.rows[1]",
        5,
    ),
    "attribute of a class": ("class value:\n    level = 'a' * N", "value.level = 'b'", "value.level", "b"),
    "new attribute of a class": (
        "class value: pass",
        "value.rows = 'b' * N",
        "getattr(value, 'rows', 'a')[:1]",
        "b",
    ),
    "list of a class": ("class value:\n    rows = [1] * N", "value.rows[1] = 2", "value.rows[1]", 2),
    "list of a base": (
        "class Base:\n    rows = [1] * N\nclass value(Base): pass",
        "value.rows[1] = 2",
        "value.rows[1]",
        2,
    ),
    "list of an inner class": (
        "class value:\n    class Inner:\n        rows = [1] * N",
        "value.Inner.rows[1] = 2",
        "value.Inner.rows[1]",
        2,
    ),
    "method of a class": (
        "class value:\n    def get(self): return N",
        "value.get = lambda self: 3",
        "value().get()",
        3,
    ),
    "attribute of a method": (
        "class value:\n    def get(self): return N",
        "value.get.calls = 3",
        "getattr(value.get, 'calls', 0)",
        3,
    ),
    "attribute of a function": (
        "def value(): return N",
        "value.calls = [3]",
        "getattr(value, 'calls', [0])[0]",
        3,
    ),
    "list of a function": (
        "def value(): return N\nvalue.calls = [3] * N",
        "value.calls[0] = 4",
        "value.calls[0]",
        4,
    ),
    "default of a function": (
        "def value(x=[0] * N): return x[0]",
        "value.__defaults__[0][0] = 4",
        "value()",
        4,
    ),
    "keyword default": (
        "def value(*, x=[0] * N): return x[0]",
        "value.__kwdefaults__['x'] = [4]",
        "value()",
        4,
    ),
    "code of a function": ("def value(): return N", "value.__code__ = (lambda: 4).__code__", "value()", 4),
    "variable of a closure": (
        "def make():\n    rows = [0] * N\n    def value(): return rows[0]\n    return value, rows\nvalue, rows = make()",
        "rows[0] = 4",
        "value()",
        4,
    ),
    "list of a decorator": (
        "import functools\ndef count(f):\n    calls = [0] * N\n    @functools.wraps(f)\n"
        "    def inner(): return f(calls)\n    inner.log = calls\n    return inner\n"
        "@count\ndef value(calls): return calls[0]",
        "value.log[0] = 4",
        "value()",
        4,
    ),
    "member of an enumeration": (
        "import enum\nclass value(enum.Enum):\n    A = 1\nvalue.A.rows = [0] * N",
        "value.A.rows[0] = 4",
        "value.A.rows[0]",
        4,
    ),
    "value of a member": (
        "import enum\nclass value(enum.Enum):\n    A = [0] * N",
        "value.A.value[0] = 4",
        "value.A.value[0]",
        4,
    ),
    "bases of a class": (
        "class One: x = 1\nclass Two: x = 2\nclass value(One): rows = [0] * N",
        "value.__bases__ = (Two,)",
        "value().x",
        2,
    ),
    "registration of an abstract class": (
        "import abc\nclass value(abc.ABC): pass\nclass Other: rows = [0] * N",
        "value.register(Other)",
        "issubclass(Other, value)",
        True,
    ),
    "random generator": (
        "import random\nvalue = random.Random(1)",
        "value.seed(2)",
        "value.random()",
        "random.Random(2).random()",
    ),
}


def _program(kind: str) -> str:
    make, change, look, result = _KINDS[kind]
    expected = result if isinstance(result, str) and "(" in result else repr(result)
    return f"""{_HEAD}
import random
def check(N):
    namespace = globals()
    namespace["N"] = N
    exec({make!r}, namespace)
    def look(): return {look}
    with Executor(1) as executor:
        executor.submit(look).result()
        exec({change!r}, namespace)
        assert executor.submit(look).result() == {expected}, "submit"
        assert list(executor.map(lambda _: {look}, [0])) == [{expected}] or {kind!r} == "random generator"
    exec({make!r}, namespace)
    out = ndshare.alloc(1)
    def kernel(worker_id, index, value_): out[0] = ({look}) == {expected}
    context = ndshare.ProcessContext(1)
    context.map(kernel, range(1))
    exec({change!r}, namespace)
    context.map(kernel, range(1))
    assert out[0] == 1, "map"
for N in (100, 300_000):
    check(N)
print("works")
"""


@pytest.mark.parametrize("kind", _KINDS)
def test_change_in_place_is_seen_whatever_the_size(run_script: RunScript, kind: str) -> None:
    """By tasks and kernels that come later."""
    done = run_script(_program(kind), timeout=_TIMEOUT_S)
    assert done.stdout == "works\n", done.stderr


def test_change_is_seen_by_joblib(run_script: RunScript) -> None:
    """Its backend sends globals the same way."""
    pytest.importorskip("joblib")
    done = run_script(
        """
import joblib, numpy as np
import ndshare.integrations.joblib as backend
backend.register()
table = np.zeros(300_000)
rows = [0] * 300_000
def look(_): return table[0], rows[0]
with joblib.parallel_config("ndshare", n_jobs=2):
    assert joblib.Parallel()(joblib.delayed(look)(i) for i in range(4)) == [(0, 0)] * 4
    table[0] = 5
    rows[0] = 7
    assert joblib.Parallel()(joblib.delayed(look)(i) for i in range(4)) == [(5, 7)] * 4
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "works\n", done.stderr


def test_only_what_has_changed_is_sent_again_and_only_what_is_used_is_looked_at(
    run_script: RunScript,
) -> None:
    """Names go one by one; a task that does not use a large global has nothing to do with it."""
    done = run_script(
        _HEAD
        + """
from ndshare._transport import definitions, mainspace
sent, looked = [], []
deliver, digest = mainspace.deliver, definitions.digest
def counting(*args, **options):
    draft = deliver(*args, **options)
    if draft is not None:
        sent.append(sorted(draft.delivers))
    return draft
def noting(array):
    looked.append(array.nbytes)
    return digest(array)
mainspace.deliver, definitions.digest = counting, noting
big, other, small = np.zeros(1_000_000), np.zeros(2_000_000), [1]
def use_both(): return big[0], other[0]
def tiny(x): return x + small[0]
with Executor(1) as executor:
    assert executor.submit(use_both).result() == (0, 0)
    big[0] = 1
    assert executor.submit(use_both).result() == (1, 0)
    assert ["big"] in sent and sum("other" in names for names in sent) == 1, sent
    looked.clear()
    for n in range(20):
        assert executor.submit(tiny, n).result() == n + 1
    assert looked == []
    shared = ndshare.share(np.zeros(1_000_000))
    def use_shared(): return shared[0]
    assert executor.submit(use_shared).result() == 0
    shared[0] = 3
    assert executor.submit(use_shared).result() == 3
    assert looked == []
    futures = [executor.submit(use_both) for _ in range(500)]
    assert {f.result() for f in futures} == {(1, 0)}
    looked.clear()
    assert set(executor.map(lambda _: use_both(), range(500))) == {(1, 0)}
    assert len(looked) <= 6, looked  # tasks that are taken on together are looked at together
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "works\n", done.stderr


def test_fork_while_another_thread_looks_at_globals(run_script: RunScript) -> None:
    """The child has none of that thread, and sends its globals all the same."""
    script = """
import os, threading
from ndshare._transport import definitions
value = 7
def f(): return value
if __name__ == "__main__":
    has, may = threading.Event(), threading.Event()
    def hold():
        with definitions.lock:
            has.set()
            may.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    has.wait()
    child = os.fork()
    if child == 0:
        import signal
        signal.alarm(30)
        with Executor(1) as executor:
            os._exit(executor.submit(f).result())
    may.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    run_script(_HEAD + script, timeout=_TIMEOUT_S)


def test_names_that_were_deleted_mean_nothing_to_later_tasks(run_script: RunScript) -> None:
    """A name that only a worker has made stays."""
    done = run_script(
        _HEAD
        + """
def init():
    global made
    made = 1
X = 5
def use(): return X
def helper(): return use()
def own(): return made
def total(): return sum([1, 2])
def looked_up(): return globals().get("X")
sum = lambda values: -1
with Executor(2, initializer=init) as executor:
    call = lambda f: executor.submit(f).result()
    everywhere = lambda f: list(executor.map(lambda _: f(), range(6)))
    assert everywhere(helper) == [5] * 6 and everywhere(total) == [-1] * 6 and call(looked_up) == 5
    del X, sum
    for f in (use, helper):
        for _ in range(4):
            try: call(f)
            except NameError as error: assert "X" in str(error)
            else: raise AssertionError
    assert everywhere(total) == [3] * 6 and everywhere(own) == [1] * 6 and call(looked_up) is None
    assert not call(lambda: hasattr(__import__("__main__"), "X"))
    X = 7
    assert everywhere(helper) == [7] * 6
    del use
    try: call(helper)
    except NameError: pass
    else: raise AssertionError
out = ndshare.alloc(1)
def use(): return 3
def kernel(worker_id, index, value): out[0] = use() + X
context = ndshare.ProcessContext(1)
context.map(kernel, range(1))
for name in ("X", "use"):
    value = globals().pop(name)
    try: context.map(kernel, range(1))
    except NameError: pass
    else: raise AssertionError(name)
    globals()[name] = value
context.map(kernel, range(1))
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")
