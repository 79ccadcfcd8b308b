"""Shared arrays by reference through `multiprocessing` and `concurrent.futures`.

::

    register()      adds a reducer for arrays to multiprocessing's own pickler, here and in all children
    q.put(array)    shared: a ticket (`ndshare.integrations._deposits`); ordinary: a copy, as always
    q.get()         opens the memory by the ticket: the same memory, and a hold of its own
    exit            the sender stays until its arrays were taken (`ndshare.integrations._family`)

Guarantees
----------
* Queue, SimpleQueue, JoinableQueue, Pipe, Pool, ``Process(args=...)``, managers and
  `concurrent.futures.ProcessPoolExecutor`, under fork, forkserver and spawn.
* The sender may drop the array right after sending it, and may exit.
* No thread, no server, no name: nothing is left behind, whoever dies.

Not guaranteed
--------------
* A message in pickle's bytes can be read once, while its sender lives, by processes of the same user.
"""

from __future__ import annotations

import math
import multiprocessing.util
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from multiprocessing.process import AuthenticationString  # type: ignore[attr-defined]
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from ndshare._memory import (
    SEALED,
    SHARED,
    before_trim,
    block_of,
    decode_dtype,
    encode_dtype,
    is_movable,
    is_shared,
)
from ndshare._pickling import late_reducers, reduce_subclass, registered
from ndshare._system import check_seconds
from ndshare.integrations._deposits import Deposits, Ticket, take
from ndshare.integrations._family import Family, await_receivers

__all__ = ["register", "unregister"]

_LINGER_S = 60.0
#: After the finalizers of the standard library (-5: the feeder threads of queues, which pickle).
_EXIT_PRIORITY = -100
#: What `register` leaves in the module `multiprocessing` of a child that has not imported ndshare yet.
_MARK = "_ndshare_registered"

_Reducer = Callable[[Any], Any]


class _State:
    """What `register` has changed in this process."""

    family: Family | None = None
    linger_s = _LINGER_S
    replaced: dict[type, _Reducer | None] | None = None  # None: not registered
    ending: _Ending | None = None


class _Ending:
    """Has the standard library call `_end` when this process ends, and when a child that it starts ends.

    Children forget the finalizers of their parent before they run anything. It must be there before
    the finalizers begin: the feeder thread of a queue pickles while they run.
    """

    def __init__(self) -> None:
        self.renew()
        multiprocessing.util.register_after_fork(self, _Ending.renew)  # a weak reference

    def renew(self) -> None:
        self._finalizer = multiprocessing.util.Finalize(None, _end, exitpriority=_EXIT_PRIORITY)

    def cancel(self) -> None:
        self._finalizer.cancel()


_state = _State()
_deposits = Deposits()


def register(*, linger: float = _LINGER_S) -> None:
    """Let shared arrays travel by reference through `multiprocessing`, here and in processes started later.

    Parameters
    ----------
    linger : float
        Seconds that a process which has sent arrays waits at its exit after the last of them was taken,
        while processes live that could take the others; ``math.inf`` for as long as those live. When none
        is left it waits one second.

    Raises
    ------
    TypeError, ValueError
        If `linger` is not a number of seconds.

    Notes
    -----
    Shared arrays, and their views, arrive as the same memory; whoever receives them sees all writes. The
    receiver holds the memory: the sender may drop its array before a late ``get``. Ordinary arrays are
    copied as without ndshare. A sender that was killed before an array was taken gives the receiver
    `SegmentGoneError`. Costs some tens of microseconds per array and message instead of the copies.

    Children inherit the registration under every start method. Calling it again only changes `linger`.

    As with `multiprocessing.Queue` in general: read what a process has put before you `join` it.

    Examples
    --------
    >>> import multiprocessing, numpy as np, ndshare
    >>> import ndshare.integrations.multiprocessing
    >>> ndshare.integrations.multiprocessing.register()
    >>> one, other = multiprocessing.Pipe()
    >>> frame = ndshare.zeros(1000)
    >>> one.send(frame)
    >>> np.shares_memory(other.recv(), frame)
    True
    >>> ndshare.integrations.multiprocessing.unregister()
    """
    if linger != math.inf:
        check_seconds("linger", linger)
    _state.linger_s = float(linger)
    if _state.replaced is None:
        _enter(_state.family or Family())


def unregister() -> None:
    """Undo `register` in this process and for processes started later.

    Notes
    -----
    Arrays that are under way can still be taken. Does nothing if `register` was not called.
    """
    if _state.replaced is None:
        return
    table = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    for cls, reducer in _state.replaced.items():
        if reducer is None:
            table.pop(cls, None)
        else:
            table[cls] = reducer
    _state.replaced = None
    if not _deposits.sweep():  # else the process still has to wait for them at its exit
        _leave()


def _enter(family: Family) -> None:
    _state.family = family
    _state.ending = _state.ending or _Ending()
    before_trim.add(_deposits.sweep)
    _state.replaced = {}
    table = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    wrapping = dict.fromkeys((np.matrix, np.recarray, np.ma.MaskedArray), reduce_subclass)
    for cls, reduce in {**wrapping, **registered, **late_reducers(set())}.items():
        _state.replaced[cls] = table.get(cls)
        ForkingPickler.register(cls, _unless_ordinary(reduce, table.get(cls) or _reduce_plain))
    for cls, reducer in ((np.ndarray, _reduce_array), (AuthenticationString, _reduce_authkey)):
        _state.replaced[cls] = table.get(cls)
        ForkingPickler.register(cls, reducer)


def _leave() -> None:
    if _state.ending is not None:
        _state.ending.cancel()
        _state.ending = None
    _deposits.close()
    before_trim.discard(_deposits.sweep)
    if _state.family is not None:
        _state.family.close()
        _state.family = None


def _end() -> None:
    """Wait for the receivers, when the process ends."""
    if _state.family is not None:
        await_receivers(_deposits, _state.family, _state.linger_s)


def _after_fork() -> None:
    _deposits.become_child()
    if _state.family is not None:
        _state.family.become_child()


os.register_at_fork(
    before=lambda: _deposits.lock.acquire() and None,
    after_in_parent=_deposits.lock.release,
    after_in_child=_after_fork,
)


# ---- children that are started anew


class _Call:
    """Something that is a call of a function in the pickle, and its result in the child."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def _reduce_authkey(key: AuthenticationString) -> Any:
    """Pickle the key that every child is sent first, and the registration with it.

    The child may not be able to import ndshare yet (its ``sys.path`` comes in the same message), and may
    never need to: only a mark is left, which the import of ndshare looks for.
    """
    if get_spawning_popen() is None or _state.family is None or _state.replaced is None:
        return key.__reduce__()  # refuses
    facts = _state.family.path, _state.linger_s
    mark = f"import multiprocessing, sys\nmultiprocessing.{_MARK} = {facts!r}\n"
    if_imported = (
        "if 'ndshare' in sys.modules:\n    from ndshare.integrations import multiprocessing as integration\n"
        "    integration.register_inherited()\n"
    )
    # `exec` gives None, for which the empty dict has the key.
    call = _Call(exec, mark + if_imported, {"inf": math.inf})
    return dict.get, ({}, call, _Call(AuthenticationString, bytes(key)))


def register_inherited() -> None:
    """Register as the parent has; called by the import of ndshare in its children."""
    path, _state.linger_s = getattr(sys.modules["multiprocessing"], _MARK)
    if _state.replaced is None:
        try:
            family = Family(path)
        except OSError:  # the parent has ended meanwhile
            family = Family()
        _enter(family)


# ---- arrays


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    if is_movable(array.dtype) and (found := block_of(array)) is not None:
        block, low = found
        if block.kind in (SHARED, SEALED):
            return receive, (
                tuple(_deposits.leave(block)),
                block.offset + low,
                encode_dtype(array.dtype),
                array.shape,
                None if array.flags.c_contiguous else array.strides,
                array.flags.writeable,
            )
    previous = _state.replaced.get(np.ndarray) if _state.replaced else None
    return (previous or _reduce_plain)(array)


def receive(
    ticket: tuple[Any, ...],
    lowest: int,
    code: str | bytes,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    writeable: bool,
) -> np.ndarray[Any, Any]:
    """Return the array of a message: the memory of the sender's."""
    dtype = decode_dtype(code)
    block = take(Ticket(*ticket), f"an array of shape {shape} and dtype {dtype}")
    array = block.array(dtype, shape, strides, lowest - block.offset)
    block.release()
    if not writeable:
        array.flags.writeable = False
    return array


def _reduce_plain(obj: Any) -> Any:
    return obj.__reduce_ex__(pickle.DEFAULT_PROTOCOL)


def _unless_ordinary(reduce: _Reducer, otherwise: _Reducer) -> _Reducer:
    """Take something apart only if shared arrays come out: other things travel as without ndshare."""

    def reducer(obj: Any) -> Any:
        reduced = reduce(obj)
        if isinstance(reduced, tuple) and any(
            isinstance(part, np.ndarray) and is_shared(part) for part in reduced[1]
        ):
            return reduced
        return otherwise(obj)

    return reducer
