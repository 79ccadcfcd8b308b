"""Globals of a program that contain each other: in workers, too, they are the same objects."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

_HEAD = "import ndshare\nfrom ndshare import ProcessPoolExecutor as Executor\n"


def _check(run_script: RunScript, program: str) -> None:
    done = run_script(_HEAD + program + "print('works')\n", timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_what_stands_for_nothing_is_told_from_others_in_every_function(run_script: RunScript) -> None:
    """As a default, an attribute of a class, in a closure or a container; whichever came first."""
    pytest.importorskip("joblib")
    _check(
        run_script,
        """
import joblib, ndshare.integrations.joblib
MISSING = object()
class Unset: pass
UNSET = Unset()
class Nothing:
    def __reduce__(self): return "NOTHING"
NOTHING = Nothing()
class Holder:
    value = MISSING
    def __init__(self, value=UNSET): self.mine = value
def make(value=MISSING):
    def inside(): return value is MISSING
    return inside
inside = make()
table = {"a": MISSING, "b": [UNSET], "c": NOTHING}
def first(): return id(MISSING) != id(UNSET) != id(NOTHING)
def second(a=MISSING, *, b=UNSET, c=NOTHING): return a is MISSING and b is UNSET and c is NOTHING
def third(): return Holder.value is MISSING and Holder().mine is UNSET
def fourth(): return inside()
def fifth(): return table["a"] is MISSING and table["b"][0] is UNSET and table["c"] is NOTHING
parts = [first, second, third, fourth, fifth]
for order in (parts, parts[::-1]):
    with Executor(1) as executor:
        for part in order:
            assert executor.submit(part).result(), part.__name__
        table["d"] = 1
        assert executor.submit(fifth).result(), "sent again"
        assert executor.submit(lambda x: x is NOTHING, NOTHING).result()
        assert executor.submit(lambda: NOTHING).result() is NOTHING
    table.pop("d")
out = ndshare.alloc(len(parts))
def kernel(worker_id, index, value): out[index] = parts[index]()
for _ in range(2):
    out[:] = 0
    ndshare.ProcessContext(2).map(kernel, range(len(parts)))
    assert out.all(), out
ndshare.integrations.joblib.register()
with joblib.parallel_config("ndshare", n_jobs=2):
    assert all(joblib.Parallel()(joblib.delayed(part)() for part in parts))
""",
    )


def test_containers_are_shared_between_names_and_functions(run_script: RunScript) -> None:
    """What a worker puts into one of them is found by all, and so is what the caller puts there later."""
    _check(
        run_script,
        """
import numpy as np
registry = {}
alias = registry
big = np.zeros(300_000)
view_of = big
class Plugin:
    known = registry
    rows = big
def register(function, known=registry):
    known[function.__name__] = function
    return function
@register
def one(): return 1
def names(): return sorted(registry)
def others(): return sorted(alias), sorted(Plugin.known)
def same(known=registry, rows=big):
    return alias is registry is Plugin.known is known and view_of is big is Plugin.rows is rows
def add():
    registry["worker"] = None
    return sorted(alias)
with Executor(1) as executor:
    call = lambda f, *args: executor.submit(f, *args).result()
    assert call(names) == ["one"] and call(others) == (["one"],) * 2 and call(lambda: big[0]) == 0
    assert call(same) and call(add) == ["one", "worker"] == call(names)
    registry["caller"] = None
    big[0] = 5
    assert call(names) == ["caller", "one"] == call(others)[0] and call(lambda: view_of[0]) == 5
    assert call(same)
    def rebind():
        global registry
        registry = {"of the worker": 1}
    class Later:
        known = registry
    call(rebind)
    assert call(lambda: sorted(Later.known)) == ["caller", "one"], "what it is here, not what the worker made"
    registry = {"new": 1}
    assert call(names) == ["new"] and call(others) == (["caller", "one"],) * 2
    assert call(lambda known: known is registry, 1) is False
""",
    )


def test_state_is_restored_with_the_names_that_it_uses(run_script: RunScript) -> None:
    """Rebuilding a global may run methods of the program, which need other globals."""
    _check(
        run_script,
        """
import collections, threading
class Guarded:
    def __init__(self, n):
        self.n = n
        self.lock = threading.Lock()
    def __getstate__(self): return {"n": self.n}
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.lock = threading.Lock()
        finish(self)
def finish(one):
    made["again"] += 1
    one.extra = extras[0]
class Remade:
    def __init__(self, n): self.rows = collections.deque([n])
    def __reduce__(self): return Remade, (self.rows[0],)
guarded, remade = Guarded(1), Remade(3)
both = {"g": guarded, "r": [Remade(4)]}
made = collections.Counter()
extras = [5]
def use(): return guarded.n, guarded.extra, remade.rows[0], both["g"] is guarded, both["r"][0].rows[0]
with Executor(1) as executor:
    assert executor.submit(use).result() == (1, 5, 3, True, 4)
    def default(g=guarded): return g is guarded is both["g"]
    assert executor.submit(default).result()
""",
    )


def test_contexts_that_decorate_functions_are_sent(run_script: RunScript) -> None:
    """Made by a generator that has not begun; one that has cannot be."""
    _check(
        run_script,
        """
import contextlib
entered = []
@contextlib.contextmanager
def noting(text):
    entered.append(text)
    yield len(entered)
@noting("x")
def decorated(): return list(entered)
begun = noting("y")
begun.__enter__()
entered.clear()
def use():
    with begun: pass
with Executor(1) as executor:
    assert executor.submit(decorated).result() == ["x"]
    assert executor.submit(lambda c: c.__enter__(), noting("z")).result() == 2
    try: executor.submit(use).result()
    except TypeError as error: assert "has been entered" in str(error)
    else: raise AssertionError
""",
    )


def test_weak_containers_of_classes_are_sent(run_script: RunScript) -> None:
    """Caches, and registers of instances; dispatching methods have such caches."""
    _check(
        run_script,
        """
import functools, weakref
class Node:
    cache = weakref.WeakKeyDictionary()
    names = weakref.WeakValueDictionary()
    alive = weakref.WeakSet()
    def __init__(self, name):
        self.name = name
        self.names[name] = self
        self.alive.add(self)
    @functools.singledispatchmethod
    def visit(self, x): return "?"
    @visit.register
    def _(self, x: int): return "int"
    @functools.singledispatchmethod
    @classmethod
    def kind(cls, x): return cls.__name__
first = Node("first")
assert first.visit(1) == "int"
def use(): return first.visit(1), first.visit(""), Node.kind(1), Node.names["first"] is first, list(Node.alive)[0] is first
with Executor(1) as executor:
    for _ in range(2):
        assert executor.submit(use).result() == ("int", "?", "Node", True, True)
        Node.cache[first] = 1
    assert executor.submit(lambda: Node.cache[first]).result() == 1
    vars(Node)["visit"].register(str, lambda self, x: "str")
    assert executor.submit(use).result()[:2] == ("int", "str")
""",
    )


def test_type_variables_are_those_of_the_program(run_script: RunScript) -> None:
    """On the way there and back, for a generic class and its annotations; caches of `typing` come along."""
    _check(
        run_script,
        """
import sys, typing
T = typing.TypeVar("T", bound=int)
P = typing.ParamSpec("P")
Ts = typing.TypeVarTuple("Ts")
Meters = typing.NewType("Meters", float)
class Box(typing.Generic[T]):
    def map(self, function: typing.Callable[[T], T]) -> "Box[T]": return self
class Pair(typing.NamedTuple, typing.Generic[T]):
    value: T
def hints(): return typing.get_type_hints(Box.map)
with Executor(1) as executor:
    call = lambda f, *args: executor.submit(f, *args).result()
    assert call(lambda: T) is T and call(lambda: (P, Ts, Meters)) == (P, Ts, Meters)
    assert call(hints) == hints() and call(lambda: Box.__parameters__) == (T,)
    assert call(lambda t: t is T and t.__module__ == "__main__" and t.__bound__ is int, T)
    made = call(lambda: Pair[int](1))
    assert type(made) is Pair and made.value == 1
""",
    )
