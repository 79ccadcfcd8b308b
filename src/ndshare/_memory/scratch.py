"""Which arrays are scratch memory: each worker has its own, and what is written there may be lost.

The array stays the plain array it is, so that it is as fast as any. That it is scratch is noted beside
it, by identity, and sent along with it (`ndshare._pickling.pickler`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

__all__ = ["is_scratch", "remake", "scratch"]

A = TypeVar("A", bound=np.ndarray[Any, Any])

# By id, because arrays are not hashable; the callback takes an entry out before its id can be reused.
marked: dict[int, weakref.ref[np.ndarray[Any, Any]]] = {}


def scratch(array: A) -> A:
    """Mark an array as private scratch memory: nobody is warned that writes to it are lost.

    Page: docs/map.md.

    A kernel of `map` that writes to an ordinary array writes to a copy of its worker's own; that is
    warned about, because it is usually a mistake. It is none where the array is only a place to work in.

    Parameters
    ----------
    array : numpy.ndarray
        An ordinary array, any shape and dtype.

    Returns
    -------
    numpy.ndarray
        The same array, marked. Nothing is copied, and it stays as fast as it was.

    Raises
    ------
    TypeError
        If `array` is no array.

    Notes
    -----
    The mark goes where the array goes within ndshare: with the kernel into the workers, over a fork, and to
    views of the array. It is lost in a copy and on the way through other libraries' pickling. Every worker
    starts with the content the array has when the map begins.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> work = ndshare.scratch(np.empty(1000))
    >>> type(work)
    <class 'numpy.ndarray'>
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"scratch: got {type(array).__name__}, need a numpy.ndarray; for other objects silence the "
            "warning itself: warnings.filterwarnings('ignore', category=ndshare.SilentWriteWarning)"
        )
    key = id(array)
    marked[key] = weakref.ref(array, lambda _: marked.pop(key, None))
    return array


def is_scratch(array: np.ndarray[Any, Any]) -> bool:
    """Tell whether an array, or what it is a view of, is marked."""
    found: object = array
    while isinstance(found, np.ndarray):
        if id(found) in marked:
            return True
        found = found.base
    return False


def remake(make: Callable[..., A], arguments: tuple[Any, ...], state: Any = None) -> A:
    """Rebuild a marked array from its reduced form, and mark it."""
    array = make(*arguments)
    if state is not None:
        array.__setstate__(state)
    return scratch(array)


def reduce_marked(reduced: Any) -> Any:
    """Return the reduced form of a marked array, from that of the array."""
    return (remake, reduced[:3]) if isinstance(reduced, tuple) else reduced
