"""Classes without a hash, and objects that raise whatever they are asked: no harm to what is sent beside them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_CLASSES = """
import ndshare

class Named(type):
    def __eq__(cls, other):
        return cls.__name__ == getattr(other, "__name__", None)

class Mute(type):
    __hash__ = None
    def __eq__(cls, other):
        raise RuntimeError("compared")

class Base(metaclass=Named):
    value = 1

class Derived(Base):
    pass

class Silent(metaclass=Mute):
    __slots__ = ("value",)
    def __init__(self, value):
        self.value = value

class Proxy:
    "Of something that is not there now, as those of web frameworks."
    kept = 5
    @property
    def __class__(self):
        raise RuntimeError("outside")
    def __getattr__(self, name):
        raise RuntimeError("outside")
    def __eq__(self, other):
        raise RuntimeError("compared")
    __hash__ = None
    def __bool__(self):
        raise RuntimeError("asked")

table, silent, proxy = {"base": Base}, Silent(7), Proxy()

def of_class(x):
    return Base().value + x

def of_object(x):
    return silent.value + x
"""


def test_tasks_and_messages(run_script: RunScript) -> None:
    """Names, arguments, results, messages: what pickle itself can take apart arrives."""
    done = run_script(
        _CLASSES
        + """
def same(cls, one):
    return cls is Base and table["base"] is Base and type(one) is Derived and isinstance(one, Base)

def derived():
    return Derived

with ndshare.ProcessPoolExecutor(2) as executor:
    assert executor.submit(of_class, 1).result() == 2
    assert executor.submit(of_object, 1).result() == 8
    assert executor.submit(same, Base, Derived()).result()
    assert executor.submit(derived).result() is Derived
    assert type(executor.submit(Derived).result()) is Derived
    assert executor.submit(lambda: silent.value).result() == 7
    assert executor.submit(lambda held: held[0].value, [Silent(4)]).result() == 4
queue = ndshare.Queue()
for one in Derived(), [Derived()]:
    queue.put(one)
    arrived = queue.get()
    assert type(arrived[0] if isinstance(arrived, list) else arrived) is Derived
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


def test_maps(run_script: RunScript) -> None:
    """Nothing is asked of what a kernel captures, by whatever watches over it."""
    done = run_script(
        _CLASSES
        + """
def named(worker, index, x):
    out[index] = of_class(x) + of_object(x)

def proxied(worker, index, x):
    out[index] = x + type(proxy).kept

def make():
    mine, theirs = Silent(9), Proxy()
    def kernel(worker, index, x):
        out[index] = mine.value + type(theirs).kept + x
    return kernel

out = ndshare.alloc(3, int)
pool, forked, threads = ndshare.ProcessContext(2, start="pool"), ndshare.ProcessContext(2), ndshare.ThreadContext(2)
for context in pool, forked, threads:
    context.map(named, range(3))
    assert out.tolist() == [8, 10, 12], context
for context in forked, threads:  # pickle cannot take the proxy apart: who needs it is forked
    context.map(proxied, range(3))
    assert out.tolist() == [5, 6, 7], context
    context.map(make(), range(3))
    assert out.tolist() == [14, 15, 16], context
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


_CALLABLES = """
import functools, types
import numpy as np, ndshare

_OF_PICKLE = ("__getstate__", "__setstate__", "__getnewargs_ex__", "__getnewargs__", "__reduce_ex__", "__reduce__")

class Any:
    "It has every attribute, as the objects of some remote procedures have."
    def __getattr__(self, name):
        if name in _OF_PICKLE: raise AttributeError(name)
        return self
    def __call__(self, *args): return 42

class Refusing:
    def __getattr__(self, name): raise RuntimeError(name) if name[:2] == "__" else AttributeError(name)
    def __getstate__(self): return None
    def __call__(self, *args): return 42

class Misnamed:
    def __init__(self): self.__qualname__ = self.__module__ = 5
    def __call__(self, *args): return 42

class Circular:
    def __init__(self): self.__wrapped__ = self.func = self.__func__ = self.__self__ = self
    def __call__(self, *args): return 42

def answer(*args): return 42

class Text(str): pass

named = types.FunctionType(answer.__code__, globals(), Text("named"))
unprintable = types.FunctionType(answer.__code__, globals(), "\\ud800")
called = [Any(), Refusing(), Misnamed(), Circular(), functools.partial(functools.partial(Circular())), named, unprintable,
          functools.lru_cache(answer), np.vectorize(answer, otypes=[int])]
"""


def test_callables_without_a_proper_name(run_script: RunScript) -> None:
    """Nothing but what pickle needs is asked of what is called; it has the name of its class in messages."""
    done = run_script(
        _CALLABLES
        + """
with ndshare.ProcessPoolExecutor(1, task_timeout=30) as executor:
    for one in called:
        assert executor.submit(one, 1).result() == 42
        assert list(executor.map(one, [1, 2])) == [42, 42]
contexts = ndshare.ProcessContext(2, start="pool"), ndshare.ProcessContext(2, start="fork"), ndshare.ThreadContext(2)
for context in contexts:
    for one in called[:-1]:
        assert context.map(one, range(3)).items == 3, one
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


def test_functions_of_frompyfunc(run_script: RunScript) -> None:
    """Their names lead nowhere: they are made again, of what they call."""
    done = run_script(
        """
import numpy as np, ndshare

factor = 2
def double(x): return factor * x
doubled = np.frompyfunc(double, 1, 1)
largest = np.frompyfunc(lambda x, y: max(x, y), 2, 1, identity=-1)
free = np.frompyfunc(min, 2, 1, identity=None)

def task(x):
    return doubled(x), largest.reduce([]), largest.reduce([x, 9]), np.add(x, 1), free.identity

with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(task, 3).result() == (6, -1, 9, 4, None)
    factor = 5
    assert executor.submit(task, 3).result()[0] == 15
    assert executor.submit(doubled, 3).result() == 15
    assert executor.submit(lambda one: one(1, 2), largest).result() == 2
    assert executor.submit(lambda: np.hypot).result() is np.hypot
out = ndshare.alloc(3, int)
def kernel(worker, index, x): out[index] = doubled(x)
ndshare.ProcessContext(2, start="pool").map(kernel, range(3))
assert out.tolist() == [0, 5, 10]
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")
