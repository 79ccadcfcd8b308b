"""pasha 0.1.2 on ndshare: kernels mapped over collections, results written in place.

A program says ``from ndshare.compat import pasha as psh`` instead of ``import pasha as psh``.

References
----------
pasha, https://github.com/European-XFEL/pasha
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from ndshare.compat.pasha import context, functor
from ndshare.compat.pasha.context import MapContext, ProcessContext, SerialContext, ThreadContext
from ndshare.compat.pasha.functor import (
    DataArrayFunctor,
    ExtraDataFunctor,
    NdarrayFunctor,
    SequenceFunctor,
)

__version__ = "0.1.2"

__all__ = [
    "DataArrayFunctor",
    "ExtraDataFunctor",
    "MapContext",
    "NdarrayFunctor",
    "ProcessContext",
    "SequenceFunctor",
    "SerialContext",
    "ThreadContext",
    "alloc",
    "context",
    "functor",
    "get_default_context",
    "map",
    "set_default_context",
    "wraps",
]

_KINDS: dict[str, type[MapContext]] = {
    "serial": SerialContext,
    "threads": ThreadContext,
    "processes": ProcessContext,
}
_default_context: Any = None


def get_default_context() -> Any:
    """Return the context that `map` and `alloc` use: processes, unless another one was chosen.

    Returns
    -------
    MapContext
    """
    global _default_context
    if _default_context is None:
        _default_context = ProcessContext()
    return _default_context


def set_default_context(ctx_or_method: Any, *args: Any, **kwargs: Any) -> None:
    """Choose the context that `map` and `alloc` use.

    Parameters
    ----------
    ctx_or_method : MapContext or {"serial", "threads", "processes"}
        A context, anything with its methods `map` and `alloc`, or the name of a kind.
    *args, **kwargs
        For the context that is made of a name.

    Raises
    ------
    ValueError
        If there is no kind of that name.
    TypeError
        If it is neither a context nor a name.
    """
    global _default_context
    if isinstance(ctx_or_method, str):
        if ctx_or_method not in _KINDS:
            names = ", ".join(repr(name) for name in _KINDS)
            raise ValueError(f"invalid map method {ctx_or_method!r}; allowed are {names}")
        _default_context = _KINDS[ctx_or_method](*args, **kwargs)
        return
    for method in ("map", "alloc"):
        if isinstance(ctx_or_method, type) or not callable(getattr(ctx_or_method, method, None)):
            raise TypeError(
                f"set_default_context takes a context or the name of a kind, got {ctx_or_method!r} without "
                f"method {method}; allowed are a MapContext and {sorted(_KINDS)}"
            )
    _default_context = ctx_or_method


@wraps(MapContext.alloc)
def alloc(*args: Any, **kwargs: Any) -> Any:  # noqa: D103 - the method's
    return get_default_context().alloc(*args, **kwargs)


@wraps(MapContext.map)
def map(*args: Any, **kwargs: Any) -> Any:  # noqa: A001, D103 - pasha's word for it
    return get_default_context().map(*args, **kwargs)
