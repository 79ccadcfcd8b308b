"""What stands in a worker for a global of the script that cannot be sent.

::

    caller: log = open("log.txt", "w")  ──►  worker: log.write(…)  ──► UnsendableGlobalError

A task may name a global that it does not use this time, or whose function it does not call. Under the
standard library it runs; so it does here. Whatever is done with the stand-in raises the error that says why.

Not guaranteed
--------------
* ``log is None`` answers as for any object.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ndshare.errors import UnsendableGlobalError

_ASKED = (
    "getattribute setattr delattr call iter next len bool contains getitem setitem delitem enter "
    "exit await aiter anext aenter aexit eq ne lt le gt ge hash int float complex index bytes str "
    "format add radd iadd sub rsub isub mul rmul imul matmul rmatmul imatmul truediv rtruediv "
    "itruediv floordiv rfloordiv ifloordiv mod rmod imod divmod rdivmod pow rpow ipow lshift rlshift "
    "ilshift rshift rrshift irshift and rand iand or ror ior xor rxor ixor neg pos abs invert round "
    "trunc floor ceil reversed dir reduce reduce_ex"
)


class StandIn:
    """In the caller: what is sent in place of such a global."""

    __slots__ = ("failure",)

    def __init__(self, failure: UnsendableGlobalError) -> None:
        self.failure = failure

    def __reduce__(self) -> Any:
        return make_missing, self.failure.args


class _Missing:
    """In a worker: whatever is done with it raises why it could not be sent."""

    __slots__ = ("_ndshare_why",)

    def __repr__(self) -> str:
        return f"<{_why(self)}>"


def _why(missing: _Missing) -> UnsendableGlobalError:
    return UnsendableGlobalError(*object.__getattribute__(missing, "_ndshare_why"))


def _refuse(missing: _Missing, *_args: Any, **_options: Any) -> NoReturn:
    raise _why(missing)


for _name in _ASKED.split():
    setattr(_Missing, f"__{_name}__", _refuse)


def make_missing(*why: Any) -> Any:
    """Return what stands for a global here."""
    missing = object.__new__(_Missing)
    object.__setattr__(missing, "_ndshare_why", why)
    return missing
