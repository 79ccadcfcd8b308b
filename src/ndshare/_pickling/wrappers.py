"""Classes that hold an array and pickle it in their own way: the array is taken out before they do.

::

    image ──shell──▶ image with an empty array ──its own __reduce__──▶ a small pickle
      └───array──────────────────────────────────────────────────────▶ a segment
    receiver: rebuilds the shell its own way, then sets the array
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["register_wrapper"]

registered: dict[type, str] = {}
"""Name of the attribute by class; of subclasses the nearest one counts."""


class _Content(NamedTuple):
    """What is set on a rebuilt shell."""

    state: Any
    set_state: Callable[[Any, Any], object] | None
    cls: type
    attribute: str
    array: Any


def register_wrapper(cls: type, attribute: str) -> None:
    """Have the array that instances of a class hold moved through shared memory.

    Page: docs/integrations.md.

    Needed only for classes that turn their array into bytes when they are pickled: with a ``__reduce__`` or
    ``__getstate__`` of their own. All others are looked through anyway.

    Parameters
    ----------
    cls : type
        The class; its subclasses count as well.
    attribute : str
        Name of the attribute with the array, which must be possible to set. Where it holds something else
        than an array, an instance is pickled as ever.

    Raises
    ------
    TypeError
        If `cls` is no class, or `attribute` no name.

    Notes
    -----
    An instance is pickled in its own way, but with an empty array of the same dtype and number of
    dimensions in that attribute; the receiver rebuilds it and then sets the array. A shared array stays
    shared, an ordinary one arrives as the receiver's own. Holds for what is sent to workers and comes back,
    messages, and `ndshare.share`. Workers learn it with the first instance they are sent; where workers make
    the first one, register in the module of the class. Registering again replaces the attribute.

    References
    ----------
    ``register_array_wrapper`` of npshmex.

    Examples
    --------
    >>> import numpy as np, ndshare
    >>> class Image:
    ...     def __init__(self, pixels):
    ...         self.pixels = pixels
    ...     def __reduce__(self):
    ...         return Image, (self.pixels.tolist(),)
    >>> ndshare.register_wrapper(Image, "pixels")
    >>> image = ndshare.share(Image(np.arange(3)))
    >>> ndshare.is_shared(image.pixels)
    True
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_wrapper: cls must be a class, got {cls!r}")
    if not isinstance(attribute, str) or not attribute.isidentifier():
        raise TypeError(f"register_wrapper: attribute must be the name of an attribute, got {attribute!r}")
    registered[cls] = attribute


def attribute_of(cls: type) -> str | None:
    """Return the registered attribute of a class or its nearest base; None if there is none."""
    for base in cls.__mro__:
        for cls_registered, attribute in registered.items():  # few, and a base may have no hash
            if cls_registered is base:
                return attribute
    return None


def reduce_wrapper(obj: Any) -> Any:
    """Take an instance of a registered class apart."""
    cls = type(obj)
    attribute = attribute_of(cls)
    array = getattr(obj, attribute, None) if attribute is not None else None
    if attribute is None or not isinstance(array, np.ndarray):
        return obj.__reduce_ex__(5)
    reduced = _shell(obj, attribute, array).__reduce_ex__(5)
    if not isinstance(reduced, tuple):
        return reduced
    parts: list[Any] = [*reduced, *[None] * (6 - len(reduced))]
    make, args, state, items, pairs, set_state = parts
    return make, args, _Content(state, set_state, cls, attribute, array), items, pairs, restore


def _shell(obj: Any, attribute: str, array: np.ndarray[Any, Any]) -> Any:
    """Return a shallow copy with an empty array; nothing of the class's own runs for it."""
    cls = type(obj)
    shell: Any = object.__new__(cls)
    if hasattr(obj, "__dict__"):
        shell.__dict__.update(obj.__dict__)
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                object.__setattr__(shell, name, getattr(obj, name))
    empty = np.empty((0,) * max(1, array.ndim), array.dtype)
    _set(shell, attribute, empty)
    return shell


def restore(obj: Any, content: _Content) -> None:
    """Give a rebuilt shell its state and its array."""
    state, set_state, cls, attribute, array = content
    if attribute_of(cls) != attribute:
        registered[cls] = attribute  # so that a worker sends it back the same way
    if set_state is not None:
        set_state(obj, state)
    elif state is not None:
        _set_state(obj, state)
    _set(obj, attribute, array)


def _set_state(obj: Any, state: Any) -> None:
    """Do what the unpickler does with a state."""
    if hasattr(obj, "__setstate__"):
        obj.__setstate__(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        obj.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)


def _set(obj: Any, attribute: str, value: object) -> None:
    try:
        setattr(obj, attribute, value)
    except AttributeError:  # a frozen dataclass
        object.__setattr__(obj, attribute, value)
