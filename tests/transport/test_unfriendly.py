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
