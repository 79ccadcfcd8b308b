"""Which kernels bring all the state they use, so that workers started earlier may run them."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable

import numpy as np
import pytest

import ndshare
from ndshare._map.watch.own_state import brings_its_state

pytestmark = pytest.mark.once

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_HEAD = """
import functools, math
import os
import numpy as np
import ndshare
from math import sqrt
from ndshare._map.watch.own_state import brings_its_state
from ndshare.functors import find

plain = np.arange(5.0)
out = ndshare.zeros(5)
settings = {"a": 1}
scale, words = 2, ("a", (1, None))
objects = np.array([{}], object)
numbers = []

def helper(x):
    return scale * x

def self_caller(w, i, v):
    if i: self_caller(w, i - 1, v)

def says(kernel, values=plain):
    return brings_its_state(kernel, find(values))
"""


def test_kernels_that_bring_their_state(run_script: RunScript) -> None:
    """Arrays, numbers, strings, tuples, NumPy, builtins and functions of the script."""
    script = """
def kernel(w, i, v):
    out[i] = np.sqrt(helper(v)) + sqrt(len(words)) + abs(plain).sum() + sum(x for x in range(3))
def made(k):
    return lambda w, i, v, default=3: out.__setitem__(i, k * v)
assert says(kernel)
assert says(made(3))
assert says(self_caller)
assert says(kernel, range(5))
assert says(kernel, np.zeros((2, 3)))
    """
    run_script(_HEAD + script)


def test_kernels_that_may_use_more(run_script: RunScript) -> None:
    """Objects, modules, lists, imports, evaluated text; anything that is not a function of the script."""
    script = """
def uses_dict(w, i, v): out[i] = settings["a"]
def uses_module(w, i, v): out[i] = math.pi
def nested(w, i, v): return [settings for _ in range(3)]
def through_helper(w, i, v): return uses_dict(w, i, v)
def imports(w, i, v):
    import os
def evaluates(w, i, v): eval("settings")
def default(w, i, v, kept=settings): pass
def uses_objects(w, i, v): objects[0]
def marked(w, i, v): pass
marked.state = 1
append = numbers.append
def appends(w, i, v): append(v)
class Kernel:
    def __call__(self, w, i, v): pass
    def method(self, w, i, v): pass
for kernel in (uses_dict, uses_module, nested, through_helper, imports, evaluates, default, uses_objects, marked, appends,
               Kernel(), Kernel().method, functools.partial(self_caller, 1), functools.wraps, os.getpid):
    assert not says(kernel), kernel
assert not says(self_caller, [1, 2])
assert not says(self_caller, objects)
large = np.zeros(5_000_000)
def uses_large(w, i, v): large[i]
assert not says(uses_large)
assert not says(self_caller, large)
large = ndshare.share(large)
assert says(uses_large) and says(self_caller, large)
def early():
    def kernel(w, i, v): late
    assert not says(kernel)
    late = 1
early()
    """
    run_script(_HEAD + script)


def test_functions_of_modules_are_not_looked_at() -> None:
    """They are imported by workers, with the state that the module has there."""
    assert not brings_its_state(test_functions_of_modules_are_not_looked_at, ndshare.SequenceFunctor("a"))


def test_start_auto_takes_what_sees_the_state_of_now(run_script: RunScript) -> None:
    """The pool for kernels that bring it, a fork for others, the pool again beside threads."""
    script = """
import threading
ctx = ndshare.ProcessContext(2, start="auto")
def plain_kernel(w, i, v): out[i] = v
def other(w, i, v): out[i] = settings["a"]
assert ctx.map(plain_kernel, plain).start_method == "pool"
for settings["a"] in (2, 3):
    assert ctx.map(other, plain).start_method == "fork"
    assert out.tolist() == [settings["a"]] * 5
done = threading.Event()
thread = threading.Thread(target=done.wait); thread.start()
settings["a"] = 4
assert ctx.map(other, plain).start_method == "pool"
assert out.tolist() == [4] * 5
done.set(); thread.join()
    """
    run_script(textwrap.dedent(_HEAD + script))


def test_start_of_another_kind_is_refused() -> None:
    """The error names the three."""
    with pytest.raises(ValueError, match="'pool', 'fork' or 'auto'"):
        ndshare.ProcessContext(2, start="spawn")  # type: ignore[arg-type]


def test_forked_workers_find_libraries_loaded_since(run_script: RunScript) -> None:
    """The threads of a library that was imported between two maps are limited, too."""
    script = """
import threadpoolctl
ctx = ndshare.ProcessContext(len(os.sched_getaffinity(0)), start="fork")
def most():
    return max([pool["num_threads"] for pool in threadpoolctl.threadpool_info()], default=1)
def kernel(w, i, v): out[i] = most()
ctx.map(kernel, range(5))
import sklearn.cluster
assert len(threadpoolctl.threadpool_info()) > 1
ctx.map(kernel, range(5))
assert out.tolist() == [1] * 5
    """
    pytest.importorskip("sklearn")
    run_script(_HEAD + script)


def test_large_arrays_are_named_by_their_bytes() -> None:
    """The bound is on what would be copied."""
    from ndshare._map.watch import own_state as _own_state

    look = _own_state._Look()
    array = np.zeros(1000)
    assert look.value((array, array))
    assert look.copied == array.nbytes
