"""What to do instead, as a note at errors of pickling: their own texts stay as programs know them."""

from __future__ import annotations

from ndshare.errors import add_note

# Parts of texts of errors, and what helps. The first that fits is taken.
_ADVICE = {
    "_thread.": "a lock belongs to one process. Use ndshare.lock(), which works in all of them, or make the "
    "lock where the work is done; if it is part of an object, leave it out there (__getstate__)",
    "through inheritance": "locks, queues and values of multiprocessing reach only processes "
    "that are started with them. Use ndshare.lock(), ndshare.Queue and ndshare.zeros, which go everywhere",
    "'generator'": "a generator stays in its process. Send or return a list, or make the generator there",
    "'coroutine'": "a coroutine stays in its process. Give a function without async, or await it there",
    "h5py objects": "send the names of the file and of the dataset, and open it in the function. A map "
    "(ndshare.map) opens files of h5py by itself",
    "open for writing": "what is written to a copy of a file is lost. Open it by its name where it is used",
    "opened for reading": "send the name of the file, and open it in the function",
    "'_io.": "send the name of the file, and open it in the function",
    "cannot pickle": "send what it is made of, and make it in the function, or in an initializer of the "
    "executor",
}


def note_advice(error: BaseException) -> None:
    """Add a note to an error of pickling that says what to do, if that is known."""
    text = str(error)
    advice = next((advice for part, advice in _ADVICE.items() if part in text), None)
    if advice is not None:
        add_note(error, f"ndshare: {advice}")
