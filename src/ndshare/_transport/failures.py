"""What a task raised, made fit to travel: the exception if it can, else a stand-in that says what it was.

Its traceback goes as text, and is the cause of the exception where that arrives.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import sys
import traceback
from typing import Any

from ndshare._pickling import main_namespace, register_reducer
from ndshare._transport import transport
from ndshare.errors import RemoteError, add_note, forget_origin, set_cause

#: Around a traceback, as the standard library prints it.
_OPENING, _CLOSING = '\n"""\n', '"""'
_PLACE = re.compile(r'  File "(.+)", line (\d+), in ')

#: An importer of the program's own has made it, or it was put into `sys.modules` by hand.
_HERE = (
    "this process has it from where workers cannot import it. Import it outside of the function: what the "
    "function uses of it goes to workers by value then"
)


def portable(error: BaseException) -> tuple[BaseException, str]:
    """Return an exception that survives pickling, and its traceback as text; clears its frames."""
    parcel = pack_failure(error)
    try:
        failure: tuple[BaseException, str] = transport.unpack(parcel.data, parcel.descriptors())
        return failure
    finally:
        parcel.release()


def pack_failure(error: BaseException) -> transport.Parcel:
    """Pack an exception and its traceback as text. Tried out: many exceptions pickle but do not unpickle."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as failure:
        text = f"{type(error).__qualname__} (its traceback could not be formatted: {failure!r})"
    traceback.clear_frames(error.__traceback__)
    forget_origin(error)
    try:
        return _tried_out(error, text)
    except BaseException as reason:
        if isinstance(error, BaseExceptionGroup):
            with contextlib.suppress(BaseException):
                return _tried_out(_portable_group(error), text)
        try:
            words = str(error)
        except BaseException:
            words = "<no text>"
        stand_in = RemoteError(
            type(error).__qualname__, words[:10_000], f"{type(reason).__name__}: {reason}"[:1000]
        )
        return transport.pack((stand_in, text[-20_000:])).settle()


def _tried_out(error: BaseException, text: str) -> transport.Parcel:
    """Pack an exception, and see whether what arrives is of its type."""
    parcel = transport.pack((error, text)).settle()
    again = transport.unpack(parcel.data, parcel.descriptors())
    if type(again[0]) is not type(error):
        raise TypeError(f"its pickle gives a {type(again[0]).__qualname__}")
    return parcel


def _portable_group(group: BaseExceptionGroup[Any]) -> BaseExceptionGroup[Any]:
    """Return a group with stand-ins for the members that cannot travel; the others are kept."""
    members = [portable(member)[0] for member in group.exceptions]
    again = BaseExceptionGroup(
        group.message, members
    )  # of the usual type, should its own be what cannot travel
    with contextlib.suppress(Exception):
        derived = group.derive(members)
        _tried_out(derived, "")
        again = derived
    for note in getattr(group, "__notes__", ()):
        add_note(again, str(note))
    return again


def _reduce_group(group: BaseExceptionGroup[Any]) -> Any:
    # By message and members, as Python does it: tblib, which Dask installs, rebuilds groups without them.
    return type(group), (group.message, list(group.exceptions)), vars(group) or None


for _group in (BaseExceptionGroup, ExceptionGroup):
    register_reducer(_group, _reduce_group)


def with_traceback(error: BaseException, text: str) -> BaseException:
    """Give an exception the worker's traceback, if there is one, as its cause; returns the exception.

    That of an import says so if it is only the worker that lacks the module.
    """
    if isinstance(error, ModuleNotFoundError) and error.name in sys.modules and _HERE not in str(error.msg):
        error.msg = f"{error.msg}; {_HERE}"
    if isinstance(error, NameError):
        _note_unsent(error)
    if text:
        # The class of the standard library, which some programs know; it takes long to import.
        from concurrent.futures.process import _RemoteTraceback

        told = _RemoteTraceback(f"{_OPENING}{_with_source(text)}{_CLOSING}")  # type: ignore[arg-type]  # text
        set_cause(error, told)
    return error


def _with_source(text: str) -> str:
    """Return a traceback with the lines of code that only this process has, as of a notebook's cells."""
    lines = text.split("\n")
    for number in reversed(range(len(lines) - 1)):
        place = _PLACE.match(lines[number])
        if place is None or lines[number + 1].startswith("    "):
            continue
        if code := linecache.getline(place[1], int(place[2])).strip():
            lines.insert(number + 1, f"    {code}")
    return "\n".join(lines)


def _note_unsent(error: NameError) -> None:
    """Say of a name that only the worker lacks why it does: nothing in the code of a task has told of it."""
    found = re.search(r"name '(\w+)' is not defined", str(error))
    if found and found[1] in main_namespace():
        add_note(
            error,
            f"ndshare: the script has {found[1]!r}, which was not sent: it is large, and the task has its "
            "name from elsewhere than its own code. Name it in a function that it calls, or pass it",
        )


def traceback_of(error: BaseException) -> str:
    """Return the worker's traceback that an exception was given; empty if there is none."""
    text = getattr(error.__cause__, "tb", "")
    return text.removeprefix(_OPENING).removesuffix(_CLOSING) if isinstance(text, str) else ""
