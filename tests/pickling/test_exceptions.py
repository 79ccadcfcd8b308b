"""Exceptions arrive as they are, whatever their constructors take."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any, Self

import pytest

from ndshare._transport import pack, unpack

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_SCRIPT = """
import urllib.error, warnings
import ndshare

made = []
class Two(Exception):
    def __init__(self, a, b="default"):
        made.append(self)
        super().__init__(f"{a} and {b}")
        self.a = a
class Fixed(LookupError):
    def __init__(self): super().__init__("always the same")
class Keyword(KeyError):
    def __init__(self, key, *, hint): super().__init__(key); self.hint = hint
class Missing(OSError):
    def __init__(self, path): super().__init__(2, "gone", path, None, "other"); self.path = path
class Leaving(SystemExit):
    def __init__(self): super().__init__(7)
class Silent(Exception):
    def __init__(self, x): self.x = x
class Undecodable(UnicodeDecodeError):
    def __init__(self, why): super().__init__("utf8", b"q", 0, 1, why)
class Slotted(Exception):
    __slots__ = ("a", "never")
    def __init__(self, a): super().__init__(f"a is {a}"); self.a = a
class Frozen(Slotted):
    __slots__ = ("hint",)
    def __init__(self, a, b): super().__init__(a); Frozen.hint.__set__(self, b)
class Opened(OSError):
    __slots__ = ("x",)
def opened():
    error = Opened(2, "gone", "file")
    error.x = 5
    return error

def fails(number):
    error = makers[number]()
    error.add_note("seen")
    raise error
makers = [lambda: Two(1, "two"), Fixed, lambda: Keyword("k", hint=3), lambda: Missing("/x"), Leaving,
          lambda: Silent(4), lambda: Undecodable("why"), lambda: urllib.error.HTTPError("u", 404, "no", {}, None),
          lambda: Slotted(3), lambda: Frozen(3, [4]), opened]
def group(): raise ExceptionGroup("few", [Two(1, "two"), Keyword("k", hint=3), ValueError(2)])

def same(got, want):
    assert type(got) is type(want) and str(got) == str(want) and got.args == want.args, (got, want)
    for name in ("a", "hint", "path", "errno", "filename", "filename2", "code", "x", "reason", "start"):
        assert getattr(got, name, None) == getattr(want, name, None), name

with ndshare.ProcessPoolExecutor(1) as executor:
    for number, make in enumerate(makers):
        error = executor.submit(fails, number).exception()
        same(error, make())
        assert error.__notes__ == ["seen"] and "in fails" in str(error.__cause__)
        same(executor.submit(lambda e: e, make()).result(), make())
    made.clear()
    try:
        executor.submit(group).result()
    except* Two as caught:
        same(caught.exceptions[0], Two(1, "two"))
    except* Keyword as caught:
        assert caught.exceptions[0].hint == 3
    except* ValueError:
        pass
    kept = Two(5)
    assert executor.submit(lambda: (str(kept), eval("kept.a"))).result() == ("5 and default", 5)
    assert len(made) == 2, "constructors do not run again"
def kernel(worker_id, index, value):
    if index == 2: raise Keyword(index, hint=5)
try: ndshare.map(kernel, range(4))
except Keyword as error: assert error.args == (2,) and error.hint == 5
print("works")
"""


def test_exceptions_of_the_script_arrive_as_they_are(run_script: RunScript) -> None:
    """Of tasks, of maps, as members of groups, as arguments and globals: none is made anew."""
    done = run_script(_SCRIPT, timeout=60)
    assert (done.stdout, done.stderr) == ("works\n", "")


class _Reduced(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)

    def __reduce__(self) -> Any:
        return _Reduced, ("its own way",)


class _New(Exception):
    def __new__(cls, *args: Any) -> Self:
        error = super().__new__(cls, *args)
        error.marked = True  # type: ignore[attr-defined]
        return error

    def __init__(self, text: str) -> None:
        super().__init__(text)


@pytest.mark.parametrize(
    ("error", "arrives"), [(_Reduced("x"), "its own way"), (_New("x"), "x"), (ValueError("x", 1), "('x', 1)")]
)
def test_exceptions_with_a_way_of_their_own_go_that_way(error: Exception, arrives: str) -> None:
    """`__reduce__`, `__new__` and those of Python itself."""
    parcel = pack(error).settle()
    again = unpack(parcel.data, parcel.descriptors())
    assert type(again) is type(error)
    assert str(again) == arrives
    assert vars(again) == vars(error)


_FROZEN = """
import asyncio, dataclasses, numpy as np, ndshare

@dataclasses.dataclass(frozen=True)
class Refused(Exception):
    code: int
    where: str = "here"

class Stubborn(LookupError):
    def __setattr__(self, name, value): raise AttributeError(f"cannot set {name}")

makers = [lambda: Refused(5), lambda: Stubborn(6), lambda: ExceptionGroup("two", [Refused(5), Stubborn(6)])]
table = {"scale": 2.0}

def fails(number):
    raise makers[number]()

def chained():
    try:
        fails(0)
    except Refused as error:
        raise Stubborn(6) from error

def kernel(worker, index, number):
    raise makers[int(number * table["scale"] / 2)]()

def is_it(error, number):
    assert repr(error) == repr(makers[number]()), repr(error)

def catch(function, *args, **options):
    try:
        function(*args, **options)
    except BaseException as error:
        return error
"""


def test_exceptions_that_refuse_to_be_changed(run_script: RunScript) -> None:
    """A frozen dataclass as an exception arrives, with its traceback and notes, and ends no worker."""
    done = run_script(
        _FROZEN
        + """
async def awaited(executor, number):
    return await asyncio.get_running_loop().run_in_executor(executor, fails, number)

with ndshare.ProcessPoolExecutor(1) as executor, ndshare.Pool(1) as pool:
    pids = {executor.submit(ndshare.worker_id).result()}
    for number in range(3):
        error = executor.submit(fails, number).exception()
        is_it(error, number)
        assert "in fails" in str(error.__cause__)
        is_it(catch(list, executor.map(fails, [number])), number)
        is_it(catch(asyncio.run, awaited(executor, number)), number)
        is_it(catch(pool.apply, fails, (number,)), number)
    error = executor.submit(chained).exception()
    assert repr(error) == "Stubborn(6)" and "direct cause" in str(error.__cause__)
    assert {executor.submit(ndshare.worker_id).result()} == pids

def refused():
    raise Refused(1)
with ndshare.ProcessPoolExecutor(1, initializer=refused) as executor:
    error = executor.submit(print).exception()
    assert isinstance(error, ndshare.InitializerError) and repr(error.__cause__) == repr(Refused(1))

for context in (ndshare.ProcessContext(2), ndshare.ProcessContext(2, start="fork"), ndshare.ThreadContext(2),
                ndshare.SerialContext()):
    for number in range(3):
        error = catch(context.map, kernel, [number, number])
        is_it(error, number)
        assert error.__notes__ == [f"ndshare.map: item 0 of 2"], error.__notes__
        for _, error in context.map(kernel, [number, number], on_error="collect").errors:
            is_it(error, number)

with ndshare.SharedDict({"a": np.zeros(3)}) as shared:
    is_it(catch(shared.update, {"a": np.ones(3)}, lambda new, old: fails(0)), 0)
    assert not shared["a"].any()
queue = ndshare.Queue()
queue.put(Refused(7))
assert repr(queue.get()) == repr(Refused(7))
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")
