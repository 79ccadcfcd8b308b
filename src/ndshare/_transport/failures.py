"""What a task raised, made fit to travel: the exception if it can, else a stand-in that says what it was.

Its traceback goes as text, and is the cause of the exception where that arrives.
"""

from __future__ import annotations

import traceback

from ndshare._transport import transport
from ndshare.errors import RemoteError


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
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        parcel = transport.pack((error, text)).settle()
        again = transport.unpack(parcel.data, parcel.descriptors())
        if type(again[0]) is not type(error):
            raise TypeError(f"its pickle gives a {type(again[0]).__qualname__}")
    except BaseException as reason:
        try:
            words = str(error)
        except BaseException:
            words = "<no text>"
        stand_in = RemoteError(
            type(error).__qualname__, words[:10_000], f"{type(reason).__name__}: {reason}"[:1000]
        )
        parcel = transport.pack((stand_in, text[-20_000:])).settle()
    return parcel


class RemoteTracebackError(Exception):
    """The worker's traceback, as the cause of the exception that a task raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def with_traceback(error: BaseException, text: str) -> BaseException:
    """Give an exception the worker's traceback, if there is one, as its cause; returns the exception."""
    if text:
        error.__cause__ = RemoteTracebackError(text)
    return error
