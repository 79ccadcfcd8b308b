"""The contract of functors, and how the functor of an object is found.

Guarantees
----------
* A functor with a length iterates over any ``slice(start, stop)`` within it, in order, so that a map
  may deal out shares of any size.
* Entries are tuples ``(index, value)`` or longer; a kernel is called as ``kernel(worker_id, *entry)``.
* Functors travel to other processes unless what they wrap cannot.

References
----------
Interface and order of precedence are those of pasha 0.1.2 (``pasha.functor``).
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self, cast

__all__ = ["Functor", "count_items", "find", "gen_split_slices"]

# ndshare's own name first: an object may serve both libraries.
_HOOKS = ("_ndshare_functor_", "_pasha_functor_")


def gen_split_slices(total_len: int, part_len: int | None = None, n_parts: int | None = None) -> list[slice]:
    """Return slices that split a sequence into parts of nearly equal length.

    Parameters
    ----------
    total_len : int
        Length of the sequence.
    part_len : int, optional
        Greatest length of a part.
    n_parts : int, optional
        Number of parts; ignored if `part_len` is given.

    Returns
    -------
    list of slice
        Part *i* of *n* starts at ``i * total_len // n``. With more parts than items some are empty.

    Raises
    ------
    ValueError
        If neither is given, or a number is out of range.

    Examples
    --------
    >>> gen_split_slices(7, n_parts=3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    total = _number("gen_split_slices", "total_len", total_len, 0)
    if part_len is not None:
        parts = -(-total // _number("gen_split_slices", "part_len", part_len, 1))
    elif n_parts is not None:
        parts = _number("gen_split_slices", "n_parts", n_parts, 1)
    else:
        raise ValueError("gen_split_slices: must specify either part_len or n_parts")
    return [slice(i * total // parts, (i + 1) * total // parts) for i in range(parts)]


def _number(where: str, name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} is {value!r} ({type(value).__name__}); give an integer") from None
    if number < least:
        raise ValueError(f"{where}: {name} is {number}; it must be at least {least}")
    return number


class Functor:
    """Something that can be mapped over, and how it is divided among workers.

    Page: docs/functors.md.

    Subclass it to teach `ndshare.map` a new kind of collection: define `split` and `iterate`, or
    ``__len__`` and `iterate`; with a `wrap` the subclass is found for plain objects too. A class that
    is defined a second time under the same name, as when a notebook cell is run again, replaces the
    first.

    Notes
    -----
    Another way is a method ``_ndshare_functor_()`` of the collection itself, which returns a functor.

    With a ``__len__``, `iterate` must accept every ``slice(start, stop)`` within it, and yield its entries
    in order; shares are then dealt out as workers ask for them. Without, or when a subclass overrides `split`
    but not ``__len__``, the shares are those of `split`, one at a time.

    A functor is sent to each worker once per map, so it must be picklable and should hold no open
    files.

    Examples
    --------
    >>> import ndshare
    >>> class Letters(ndshare.Functor):
    ...     def __init__(self, text):
    ...         self.text = text
    ...     def __len__(self):
    ...         return len(self.text)
    ...     def iterate(self, share):
    ...         for i in range(share.start, share.stop):
    ...             yield i, self.text[i]
    >>> letters = Letters("abc")
    >>> [list(letters.iterate(share)) for share in letters.split(2)]
    [[(0, 'a')], [(1, 'b'), (2, 'c')]]
    """

    _functor_types: ClassVar[list[type[Functor]]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._ndshare_arrived_()

    @classmethod
    def _ndshare_arrived_(cls) -> None:
        """Register this class: it was made here, or has come from another process."""
        known = cls._functor_types
        for number, other in enumerate(known):
            if _is_redefinition(cls, other):
                known[number] = cls
                return
        if cls not in known:
            known.append(cls)

    @classmethod
    def wrap(cls, value: Any) -> Self | None:  # noqa: ARG003
        """Return a functor of this class for an object, or None if it is of another kind.

        Parameters
        ----------
        value : object
            What is to be mapped over.

        Returns
        -------
        Functor or None
        """
        return None

    @classmethod
    def try_wrap(cls, value: Any) -> Functor:
        """Return the functor of an object; what `find` does.

        Parameters
        ----------
        value : object
            What is to be mapped over; returned as it is if it is an instance of this class.

        Returns
        -------
        Functor

        Raises
        ------
        ValueError
            If no functor is found, or more than one.
        """
        return value if isinstance(value, cls) else _search(value)

    def split(self, num_workers: int) -> Iterable[Any]:
        """Return one share per worker.

        Parameters
        ----------
        num_workers : int
            Number of workers, at least 1.

        Returns
        -------
        iterable
            Whatever `iterate` understands. Here: slices ``i * n // num_workers`` of the ``n = len(self)``
            items; with more workers than items some are empty.
        """
        length: Any = getattr(type(self), "__len__", None)
        if length is None:
            raise NotImplementedError(f"{type(self).__name__} must define split, or __len__")
        return gen_split_slices(length(self), n_parts=_number("split", "num_workers", num_workers, 1))

    def iterate(self, share: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the entries of a share.

        Parameters
        ----------
        share : object
            An element of what `split` returns; if the functor has a length, any ``slice(start, stop)``.

        Yields
        ------
        tuple
            ``(index, value)`` or longer.
        """
        raise NotImplementedError(f"{type(self).__name__} must define iterate")


def find(obj: Any) -> Functor:
    """Return the functor of an object.

    In this order: a `Functor` is its own; what ``_ndshare_functor_()`` or ``_pasha_functor_()`` of the object
    returns; the one registered subclass whose `Functor.wrap` accepts it.

    Parameters
    ----------
    obj : object
        What is to be mapped over.

    Returns
    -------
    Functor

    Raises
    ------
    ValueError
        If no functor is found, or more than one.
    TypeError
        If the method of the object returns something else than a functor.
    """
    if isinstance(obj, Functor):
        return obj
    kind = of_builtins.get(type(obj))
    if kind is not None and _are_own(Functor._functor_types):
        return kind(obj)  # type: ignore[call-arg]
    return _search(obj)


of_builtins: dict[type, type[Functor]] = {}
"""What most maps are over: while only ndshare has taught `find` anything, it does not ask around."""

_own_kinds: list[type[Functor]] = []


def _are_own(kinds: list[type[Functor]]) -> bool:
    """Tell whether all kinds of functors are ndshare's own; looked at once for the same kinds."""
    if kinds != _own_kinds and all(kind.__module__.startswith("ndshare.") for kind in kinds):
        _own_kinds[:] = kinds
    return kinds == _own_kinds


def _search(obj: Any) -> Functor:
    if not isinstance(obj, type):
        for name in _HOOKS:
            hook = getattr(obj, name, None)
            if callable(hook):
                return _checked(hook(), f"{type(obj).__name__}.{name}()")
    if (functor := claimed(obj, Functor._functor_types)) is not None:
        return functor
    if _behaves_like_functor(obj):
        return cast("Functor", obj)
    raise ValueError(
        f"no default functor for {type(obj)}; allowed are sequences, arrays, iterators, and collections of "
        "xarray, pandas, h5py, zarr, SciPy, torch, polars, Arrow, Awkward and EXtra-data; pass "
        f"{f'range({obj})' if isinstance(obj, int) else 'list(obj)'}, or define _ndshare_functor_() for it"
    )


def claimed(obj: Any, kinds: Iterable[type[Functor]]) -> Functor | None:
    """Return the functor that one of these classes makes for an object, or None if all leave it.

    Raises
    ------
    ValueError
        If more than one accepts it.
    """
    wrapped = (kind.wrap(obj) for kind in tuple(kinds) if _wraps_by_itself(kind))
    found = [functor for functor in wrapped if functor is not None]
    if len(found) > 1:
        names = " and ".join(type(functor).__name__ for functor in found)
        raise ValueError(
            f"default functor is ambiguous: {names} accept {type(obj)}; pass the functor itself, such as "
            f"{type(found[0]).__name__}(obj)"
        )
    return found[0] if found else None


def _checked(functor: Any, source: str) -> Functor:
    if isinstance(functor, Functor) or _behaves_like_functor(functor):
        return cast("Functor", functor)
    raise TypeError(
        f"{source} returned {functor!r} ({type(functor).__name__}); it must return a Functor, that is, an "
        "object with the methods split(num_workers) and iterate(share)"
    )


def _behaves_like_functor(obj: Any) -> bool:
    """Tell whether an object of a foreign class, such as pasha's own, has what a functor needs."""
    kind = type(obj)
    return callable(getattr(kind, "split", None)) and callable(getattr(kind, "iterate", None))


def _is_redefinition(cls: type, other: type) -> bool:
    return (
        cls.__qualname__ == other.__qualname__
        and cls.__module__ == other.__module__
        and "<locals>" not in cls.__qualname__  # a function may make one class for each of several types
    )


def _wraps_by_itself(kind: type[Functor]) -> bool:
    """Tell whether a class has a `wrap` of its own: an inherited one has been asked already."""
    for base in kind.__mro__:
        if "wrap" in vars(base):
            return base is kind or not issubclass(base, Functor)
    return False


def count_items(functor: Functor) -> int | None:
    """Return the number of items of a functor, or None if only its own shares are known.

    Parameters
    ----------
    functor : Functor
        What `find` returned.

    Returns
    -------
    int or None
        None without ``__len__``, and for a subclass that overrides `Functor.split` but not ``__len__``:
        its shares need not be slices.
    """
    for base in type(functor).__mro__:
        names = vars(base)
        if "__len__" in names:
            return None if names["__len__"] is None else len(functor)  # type: ignore[arg-type]
        if "split" in names:
            return None
    return None


def imported(name: str) -> types.ModuleType | None:
    """Return a module if it has been imported already."""
    return sys.modules.get(name)


def is_instance(obj: Any, module: str, *names: str) -> bool:
    """Tell whether an object is of one of the named classes of a module, without importing it."""
    found = imported(module)
    if found is not None:
        for name in names:
            kind = getattr(found, name, None)  # missing while another thread imports the library
            if isinstance(kind, type) and isinstance(obj, kind):
                return True
    return False


def indices_of(share: Any, length: int) -> range:
    """Return the indices of a share of something with a length."""
    if not isinstance(share, slice):
        raise TypeError(f"iterate: the share is {share!r} ({type(share).__name__}); give a slice")
    return range(*share.indices(length))
