"""The context that `ndshare.map` and `ndshare.alloc` use, and these two."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ndshare._map import MapContext, ProcessContext, SerialContext, ThreadContext


def _cluster(*args: Any, **options: Any) -> MapContext:
    from ndshare._cluster import ClusterContext  # here: only those who have a cluster need it

    return ClusterContext(*args, **options)


_KINDS: dict[str, Callable[..., MapContext]] = {
    "serial": SerialContext,
    "threads": ThreadContext,
    "processes": ProcessContext,
    "dask": _cluster,
}
_default: MapContext | None = None


def get_default_context() -> MapContext:
    """Return the context that `ndshare.map` and `ndshare.alloc` use.

    Page: docs/map.md.

    Returns
    -------
    MapContext
        Processes, made on first use, unless `set_default_context` has chosen another.
    """
    global _default
    if _default is None:
        _default = ProcessContext()
    return _default


def set_default_context(context: MapContext | str, *args: Any, **options: Any) -> None:
    """Choose the context that `ndshare.map` and `ndshare.alloc` use.

    Page: docs/map.md.

    Parameters
    ----------
    context : MapContext or {"serial", "threads", "processes", "dask"}
        A context, or the name of a kind, which is then made with the other arguments.
    *args, **options
        For the context.

    Raises
    ------
    TypeError, ValueError
        If it is neither.
    """
    global _default
    if isinstance(context, str) and context in _KINDS:
        _default = _KINDS[context](*args, **options)
        return
    names = ", ".join(repr(name) for name in _KINDS)
    if isinstance(context, str):
        raise ValueError(f"set_default_context: {context!r} is none of {names}")  # noqa: TRY004 - its type is right
    if not isinstance(context, MapContext):
        raise TypeError(f"set_default_context takes a context or one of {names}, got {context!r}")
    if args or options:
        raise TypeError("set_default_context: options go with the name of a context, not with a context")
    _default = context


def _of_default(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of the default context's method."""

    def function(*args: Any, **options: Any) -> Any:
        return getattr(get_default_context(), method.__name__)(*args, **options)

    function.__name__ = function.__qualname__ = method.__name__
    function.__doc__ = method.__doc__
    function.__module__ = "ndshare"
    parameters = list(inspect.signature(method).parameters.values())[1:]
    function.__signature__ = inspect.signature(method).replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


alloc = _of_default(MapContext.alloc)
map = _of_default(MapContext.map)  # noqa: A001 - the field's word for it
