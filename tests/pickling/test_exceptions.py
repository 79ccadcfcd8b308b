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

def fails(number):
    error = makers[number]()
    error.add_note("seen")
    raise error
makers = [lambda: Two(1, "two"), Fixed, lambda: Keyword("k", hint=3), lambda: Missing("/x"), Leaving,
          lambda: Silent(4), lambda: Undecodable("why"), lambda: urllib.error.HTTPError("u", 404, "no", {}, None)]
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
