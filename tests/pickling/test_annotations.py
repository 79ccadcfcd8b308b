"""Annotations are not evaluated by sending: what they name may be there for type checkers only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="annotations are evaluated when they are made"
)

_TIMEOUT_S = 90

_PROGRAM = """
import asyncio, annotationlib, dataclasses, enum, functools, typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Frame
import ndshare
from ndshare import ProcessPoolExecutor as Executor

class Model: pass
def plain(x: Frame) -> Frame: return x + 1
def texts(x: "Frame") -> "Frame": return x + 1
def keywords(x: Frame, *rest: Frame, key: Frame = 1, **more: Frame) -> None: return x + key
def decorate(f: Frame):
    @functools.wraps(f)
    def inner(*args: Frame) -> Frame: return f(*args)
    return inner
@decorate
def wrapped(x: Frame): return x + 1
@functools.lru_cache
def cached(x: Frame): return x + 1
@functools.singledispatch
def single(x: Frame): return x + 1
@single.register
def _(x: str): return 0
def closure(n: Frame):
    def inner(x: Frame) -> Frame: return x + n
    return inner
def generates(x: Frame) -> typing.Iterator[Frame]: yield x + 1
def through(x): return next(generates(x))
async def coroutine(x: Frame) -> Frame: return x + 1
def awaited(x): return asyncio.run(coroutine(x))
async def agen(x: Frame) -> Frame: yield x + 1
def collected(x):
    async def all() -> Frame: return [v async for v in agen(x)]
    return asyncio.run(all())[0]
def generic[T: Frame](x: T) -> list[T]: return x + 1
class Owner:
    level: Frame
    def __init__(self, n: Frame = 1) -> None: self.n = n
    def method(self, x: Frame) -> Frame: return x + self.n
    @property
    def prop(self) -> Frame: return 2
    @staticmethod
    def static(x: Frame) -> Frame: return x + 1
    @classmethod
    def of(cls, x: Frame) -> Frame: return cls().method(x)
    @functools.cached_property
    def lazy(self) -> Frame: return 2
    def __call__(self, x: Frame) -> Frame: return x + 1
@dataclasses.dataclass
class Data:
    x: int
    frame: Frame = None
    def up(self, n: Frame) -> Frame: return self.x + n
@dataclasses.dataclass(slots=True)
class Slots:
    x: Frame = 1
class Pair(typing.NamedTuple):
    a: Frame
    b: int = 1
class Level(enum.Enum):
    A: Frame = 1
type Alias = Frame | int
def aliased(x: Alias) -> Alias: return x + 1
def conditional(x):
    def inner(y: Frame if x else int) -> Frame: return y + x
    return inner(1)
def known(x: Model) -> "Model": return x
def hints():
    return {k: v.__name__ for k, v in annotationlib.get_annotations(known, eval_str=True).items()}
def references():
    found = annotationlib.get_annotations(plain, format=annotationlib.Format.FORWARDREF)
    return found["x"].__forward_arg__, annotationlib.get_annotations(Owner, format=annotationlib.Format.STRING)
def evaluated():
    try: plain.__annotations__
    except NameError as error: return str(error)
def of_class(x: Frame): return Data(x).up(1), Slots(x).x, Pair(x).b, Level.A.value
def main():
    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result(60)
        for f in (plain, texts, keywords, wrapped, cached, single, closure(1), through, awaited, collected, generic,
                  Owner().method, Owner.static, Owner.of, Owner(), Data(1).up, aliased, conditional,
                  functools.partial(keywords, key=1), lambda x: plain(x), closure(closure(1)(0))):
            assert call(f, 1) == 2, f
        assert call(lambda o: (o.prop, o.lazy), Owner()) == (2, 2)
        assert call(of_class, 1) == (2, 1, 1, 1)
        assert call(lambda: list(Pair(1))) == [1, 1] and type(call(Data, 3)) is Data
        assert call(hints) == {"x": "Model", "return": "Model"}
        assert call(references) == ("Frame", {"level": "Frame"})
        assert "Frame" in call(evaluated)
        assert call(lambda: list(Slots.__dataclass_fields__)) == ["x"]
        def local():
            class Inner:
                x: Frame
                def get(self, y: Frame) -> Frame: return y + 1
            return Inner
        assert call(local()().get, 1) == 2
        assert call(lambda f: f(1), closure(1)) == 2
        assert call(closure, 1)(1) == 2
    out = ndshare.alloc(3)
    def kernel(worker_id: Frame, index: Frame, value: Frame) -> Frame: out[index] = plain(value)
    ndshare.ProcessContext(2).map(kernel, range(3))
    assert list(out) == [1, 2, 3]
main()
print("works")
"""


def test_annotations_that_cannot_be_evaluated_are_sent(run_script: RunScript) -> None:
    """In functions, methods, closures and classes of a script, in some two dozen forms."""
    done = run_script(_PROGRAM, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_functions_of_modules_keep_them(run_script: RunScript) -> None:
    """Closures of an importable module, too, which travel by their code."""
    done = run_script(
        """
open("factory.py", "w").write('''
import typing
import math
if typing.TYPE_CHECKING:
    from nowhere import Frame
def plain(n: Frame):
    def inner(x: Frame) -> Frame: return x + n
    return inner
def with_globals(n: Frame):
    def inner(x: Frame) -> Frame: return math.floor(x + n)
    return inner
''')
import factory, ndshare
with ndshare.ProcessPoolExecutor(1) as executor:
    for make in (factory.plain, factory.with_globals):
        assert executor.submit(make(1), 1).result() == 2
        assert executor.submit(make, 1).result()(1) == 2
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")
