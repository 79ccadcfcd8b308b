"""npshmex 0.2.1 on ndshare: an executor whose arrays do not go through pickle, and arrays under keys.

::

    submit(f, array)     ndshare.ProcessPoolExecutor: arrays, wrappers and all that contains them
    shm_put(array)       a file in /dev/shm; its key, passed to submit, arrives as the array

A program says ``from ndshare.compat.npshmex import ProcessPoolExecutor``.

References
----------
npshmex, https://github.com/JelleAalbers/npshmex
"""

from __future__ import annotations

import concurrent.futures
import inspect
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import ndshare
from ndshare.compat import preloads
from ndshare.compat._npshmex_keys import (
    dtype_to_tuple,
    is_shmable,
    is_shmkey,
    pack_dtype,
    pickle_as_array,
    register_array_wrapper,
    shm_clear,
    shm_del,
    shm_pop,
    shm_put,
    unpack_dtype,
    unpickle_from_array,
    unshm,
    wrappers,
)

__version__ = "0.2.1"

__all__ = [
    "Future",
    "ProcessPoolExecutor",
    "dtype_to_tuple",
    "is_shmable",
    "is_shmkey",
    "pack_dtype",
    "pickle_as_array",
    "register_array_wrapper",
    "shm_clear",
    "shm_del",
    "shm_pop",
    "shm_put",
    "shm_wrap_f",
    "unpack_dtype",
    "unpickle_from_array",
    "unshm",
]

Future = concurrent.futures.Future


class _Call:
    """A function that is given arrays for keys, and whose result has arrays for keys."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", None) or __name__

    def __reduce__(self) -> Any:
        # A worker knows the wrappers that were registered where the task was submitted.
        return (_call_with, (self.function, wrappers())) if wrappers() else (_Call, (self.function,))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = tuple(shm_pop(x) if is_shmkey(x) else x for x in args)
        kwargs = {k: shm_pop(x) if is_shmkey(x) else x for k, x in kwargs.items()}
        return unshm(self.function(*args, **kwargs))


def _call_with(function: Callable[..., Any], registered: dict[type, str]) -> _Call:
    for cls, attribute in registered.items():
        register_array_wrapper(cls, attribute)
    return _Call(function)


def shm_wrap_f(f: Callable[..., Any], /, *args: Any, shm_out: bool = True, **kwargs: Any) -> Any:
    """Call `f` with arrays in the place of keys; with `shm_out`, return keys in the place of arrays."""
    result = _Call(f)(*args, **kwargs)
    if not shm_out:
        return result
    if is_shmable(result):
        return shm_put(result, temp=True)
    if isinstance(result, dict):
        return {k: shm_put(x, temp=True) if is_shmable(x) else x for k, x in result.items()}
    return result


class ProcessPoolExecutor(ndshare.ProcessPoolExecutor):
    """`ndshare.ProcessPoolExecutor` whose tasks find arrays under keys.

    Parameters
    ----------
    *args, **options
        Those of `ndshare.ProcessPoolExecutor`. Arguments are read before `submit` returns unless
        ``snapshot="start"``.
    """

    def __init__(self, *args: Any, preload: Iterable[str] = (), **options: Any) -> None:
        options.setdefault("snapshot", "submit")
        super().__init__(*args, preload=(*preloads(), *preload), **options)

    def submit(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule ``f(*args, **kwargs)`` and return its future.

        Parameters
        ----------
        f : callable
            Called with what is under keys in the place of the keys.
        *args, **kwargs
            Its arguments.
        shm_input, shm_output : bool, optional
            Arrays go through shared memory in any case. If both are False, keys stay keys. A parameter
            of `f` with one of these names is given to `f` instead.

        Returns
        -------
        concurrent.futures.Future
            Its result has arrays: as it is, in a registered wrapper, or among the values of a dict.
        """
        if "shm_input" in kwargs or "shm_output" in kwargs:
            options = [
                kwargs.pop(name) for name in ("shm_input", "shm_output") if _is_option(f, name, kwargs)
            ]
            if len(options) == 2 and not any(options):
                return super().submit(f, *args, **kwargs)
        args = tuple(map(_unwrapped, args))
        kwargs = {k: _unwrapped(x) for k, x in kwargs.items()}
        try:
            return super().submit(_Call(f), *args, **kwargs)
        except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
            # What cannot be sent is an error of the future, as in the standard library.
            future: Future[Any] = Future()
            future.set_exception(error)
            return future


def _unwrapped(x: Any) -> Any:
    """Return what is under the key of a wrapper: its class may be one that only this process knows."""
    return shm_pop(x) if is_shmkey(x) and "_wrapper_" in x else x


def _is_option(f: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> bool:
    try:
        return name in kwargs and name not in inspect.signature(f).parameters
    except (TypeError, ValueError):  # compiled functions need not say
        return name in kwargs
