"""The picklers: what a message says, with arrays only *noted*.

::

    record(obj) ──► Session.pickler ──► parts   (pickle bytes)
                         │
                         ├─ array           ──► notes  (an array to copy, or a place in a segment)
                         ├─ PickleBuffer    ──► notes
                         └─ name in __main__ ─► needs

A noted array leaves one NEXT_BUFFER opcode in the pickle. The unpickler takes the objects for these
from an iterator and does not look at their type, so the receiver hands it finished arrays: no
look-up by number, no state beside the call.

Python code runs only for arrays, functions and classes; everything else is pickled in C. Only
when something is met that pickle cannot do is the object pickled again by `ndshare._pickling.cloud`.

Guarantees
----------
* Any number of threads may record at once; a ``__reduce__`` that records in turn gets a session of
  its own.
* After `record` has returned or raised, nothing here keeps a reference to the object.
* copyreg is not touched: ``pickle.dumps`` of a shared array outside ndshare makes a plain copy.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._memory import VALUE, block_of, encode_dtype, is_movable, marked
from ndshare._pickling import forking, wrappers
from ndshare._pickling.exceptions import reduce_exception
from ndshare._pickling.functions import Named
from ndshare._pickling.recording import SLOT, Placed, Places, Recording
from ndshare._pickling.reducers import same
from ndshare._pickling.session import IN_BAND_ROOM, NO_NAMES, Session
from ndshare._system import selective

_KEEP_MAX = 1 << 13  # a session that pickled more, arrays apart, is dropped: its memo table stays large
_IDLE_MAX = 8

_NOTHING: frozenset[str] = frozenset()


class _Pickler(pickle.Pickler):
    """The C pickler with a session; a subclass only to have the attributes."""

    session: Session
    reducer_override: Callable[[Any], Any]


_idle: list[_Pickler] = []  # append and pop are atomic


def _make_pickler() -> _Pickler:
    session = Session()
    pickler = _Pickler(session, 5, buffer_callback=session.notes.append)
    pickler.session = session
    pickler.dispatch_table = session.table
    pickler.reducer_override = selective(session.on_named, np.ndarray, session.on_subclass, reduce_exception)
    return pickler


def record(
    obj: object,
    *,
    lend: bool = False,
    defining: frozenset[str] = _NOTHING,
    withheld: frozenset[str] = _NOTHING,
    inputs: Places | None = None,
    named: Named = NO_NAMES,
    afresh: bool = False,
) -> Recording:
    """Pickle an object, noting its arrays instead of copying them.

    Parameters
    ----------
    obj : object
        What to pickle.
    lend : bool
        Note arrays in by-value blocks by their place, without keeping them alive, so that the
        blocks can be lent once nobody here uses them. For results on their way to the caller.
    defining : frozenset of str
        Names of ``__main__`` that the receiver learns from this very message: what they stand for
        is pickled by value.
    withheld : frozenset of str
        Names of variables whose values the receiver has: the cells of closures that have one of these
        names are left for it to fill.
    inputs : Places, optional
        Large ordinary arrays that were sent before are noted by the place of one shared copy.

    named : Named, optional
        Globals of ``__main__`` that the receiver has: where one is part of what is defined here, it goes by
        its name and is the same object there.
    afresh : bool
        What every process has for itself, such as a lock between threads, is made anew by the receiver: for
        globals of the script. Else it is refused, as by pickle.

    Raises
    ------
    Exception
        Whatever pickling raises.
    """
    try:
        pickler = _idle.pop()
    except IndexError:
        pickler = _make_pickler()
    session = pickler.session
    session.lend = lend
    session.defining = defining
    session.withheld = withheld
    session.inputs = inputs
    if len(sys.modules) + len(wrappers.registered) + len(forking.known) != session.modules:
        session.look_for_late()
    recording: Recording | None = None
    try:
        if named:
            session.set_named(named)
        pickler.dump(obj)
        recording = session.finish()
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    except ValueError:  # what ctypes says of its functions
        if not afresh:
            raise
    finally:
        pickler.clear_memo()
        arrays = IN_BAND_ROOM - session.room
        session.clear()
        parts = recording.parts if recording is not None else ()
        if len(parts) == 1 and len(parts[0]) - arrays < _KEEP_MAX and len(_idle) < _IDLE_MAX:
            _idle.append(pickler)
        else:
            session.close()
    if recording is not None:
        return recording
    from ndshare._pickling import cloud

    return cloud.record(
        obj, lend=lend, defining=defining, withheld=withheld, inputs=inputs, named=named, afresh=afresh
    )


class _Alone:
    def __reduce__(self) -> Any:
        return same, (SLOT,)


ALONE_STREAM = pickle.dumps(_Alone(), 5, buffer_callback=lambda _: False)
"""The pickle of what is one array out of band, and nothing else."""


def record_alone(array: np.ndarray[Any, Any]) -> Recording | None:
    """Return what `record` does for a result that is one array of by-value memory; None for others."""
    dtype = array.dtype
    if marked or array.base is not None or array.nbytes <= IN_BAND_ROOM or not is_movable(dtype):
        return None
    if not array.flags.forc:  # somebody has set its strides; its elements may overlap
        return None
    found = block_of(array)
    if found is None or found[0].kind != VALUE:
        return None
    note = Placed(
        *found, encode_dtype(dtype), dtype.itemsize, array.shape, array.strides, array.flags.writeable
    )
    return Recording((ALONE_STREAM,), (note,))
