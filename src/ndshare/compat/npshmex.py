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
import contextlib
import copy
import inspect
import pickle
import random
import string
from collections.abc import Callable
from typing import Any

import numpy as np

import ndshare
from ndshare.compat import _named_arrays

__version__ = "0.2.1"

# `import *` gave what the original had imported, too.
__all__ = [
    "Future",
    "ProcessPoolExecutor",
    "concurrent",
    "dtype_to_tuple",
    "is_shmable",
    "is_shmkey",
    "np",
    "pack_dtype",
    "pickle",
    "pickle_as_array",
    "random",
    "register_array_wrapper",
    "shm_clear",
    "shm_del",
    "shm_pop",
    "shm_put",
    "shm_wrap_f",
    "string",
    "unpack_dtype",
    "unpickle_from_array",
    "unshm",
]

_SCHEME, _PREFIX = "shm://", "npshmex_"
_array_wrappers: dict[type, str] = {}


def register_array_wrapper(cls: type, attrname: str) -> None:
    """Say that instances of a class, or of one derived from it, keep an array in an attribute."""
    _array_wrappers[cls] = attrname


def dtype_to_tuple(dtype: np.dtype[Any]) -> list[tuple[Any, Any]]:
    """Return names and dtypes of the fields of a structured dtype, as `numpy.dtype` takes them."""
    fields: Any = dtype.fields
    result = []
    for name in dtype.names or ():
        kind, _, *title = fields[name]
        result.append(((title[0], name) if title else name, kind))
    return result


def pickle_as_array(x: object) -> np.ndarray[Any, Any]:
    """Pickle `x` and return the bytes as an array."""
    return np.frombuffer(pickle.dumps(x, protocol=5), dtype=np.uint8)


def unpickle_from_array(x: Any) -> Any:
    """Return what `pickle_as_array` was given."""
    return pickle.loads(x)


def pack_dtype(dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return a dtype of any kind as an array of bytes."""
    return pickle_as_array(dtype)


def unpack_dtype(x: Any) -> np.dtype[Any]:
    """Return the dtype that `pack_dtype` was given."""
    dtype: np.dtype[Any] = np.dtype(unpickle_from_array(x))
    return dtype


# ---------------------------------------------------------------------- keys


def is_shmable(thing: object) -> bool:
    """Tell whether `shm_put` takes it: an array, or an instance of a registered wrapper."""
    return isinstance(thing, (np.ndarray, *_array_wrappers))


def is_shmkey(key: object) -> bool:
    """Tell whether it is a key that `shm_put` returned."""
    return isinstance(key, str) and key.startswith(_SCHEME + _PREFIX)


def shm_put(arr: Any, temp: bool = False) -> str:
    """Copy an array, or a registered wrapper with its array, to shared memory under a new key.

    Parameters
    ----------
    arr : ndarray or wrapper
        Left as it is.
    temp : bool, optional
        Whether the key ends when it is first popped.

    Returns
    -------
    str
        ``shm://npshmex_{data|sdata|wrapper}_{16 characters}_{TEMP|}``

    Raises
    ------
    ValueError
        If it is something else, or an array of Python objects.
    """
    if not is_shmable(arr):
        raise ValueError(
            f"shm_put takes a numpy array or an instance of a registered wrapper, got {type(arr).__name__}: "
            f"{arr!r}; see register_array_wrapper"
        )
    attribute = next((name for cls, name in _array_wrappers.items() if isinstance(arr, cls)), None)
    if attribute is not None:
        empty = copy.copy(arr)
        setattr(empty, attribute, shm_put(getattr(arr, attribute), temp))
        return _put("wrapper", pickle_as_array((attribute, empty)), temp)
    if arr.dtype.hasobject:
        raise ValueError(f"shm_put: Python objects cannot be shared (dtype {arr.dtype}); convert the array")
    if type(arr) not in (np.ndarray, np.memmap):  # a masked array is more than its data
        return _put("wrapper", pickle_as_array((None, arr)), temp)
    return _put("data" if arr.dtype.names is None else "sdata", arr, temp)


def _put(kind: str, array: np.ndarray[Any, Any], temp: bool) -> str:
    return _SCHEME + _named_arrays.create(f"{_PREFIX}{kind}_{{}}_{'TEMP' if temp else ''}", array)


def shm_pop(key: str, keep: bool | None = None) -> Any:
    """Return what is under a key: the same memory for all who do so, no copy.

    Parameters
    ----------
    key : str
        From `shm_put`.
    keep : bool, optional
        Whether the key stays valid; by default unless it was put with ``temp=True``.

    Raises
    ------
    FileNotFoundError
        If there is nothing under that key any more.
    """
    _, kind, _, ending = _name_of(key).split("_")
    if keep is None:
        keep = ending != "TEMP"
    result = _named_arrays.attach(_name_of(key))
    if kind == "wrapper":
        attribute, result = unpickle_from_array(result)
        if attribute is not None:
            setattr(result, attribute, shm_pop(getattr(result, attribute), keep))
    if not keep:
        _named_arrays.remove(_name_of(key))
    return result


def shm_del(key: str) -> None:
    """Make a key invalid; arrays that were popped stay valid."""
    if key.startswith(f"{_SCHEME}{_PREFIX}wrapper_"):
        shm_pop(key, keep=False)  # its array has a key of its own
    else:
        _named_arrays.remove(_name_of(key))


def shm_clear(all: bool = False) -> None:  # noqa: A002 - what it is about
    """Remove this user's keys that no live process has made or popped; with ``all=True`` every one."""
    for name in _named_arrays.names(_PREFIX):
        parts = name.split("_")
        if all or len(parts) != 4 or not _named_arrays.is_held(name, parts[2]):
            with contextlib.suppress(FileNotFoundError):
                _named_arrays.remove(name)


def _name_of(key: str) -> str:
    if not is_shmkey(key) or key.count("_") != 3 or "/" in key[len(_SCHEME) :]:
        raise ValueError(f"{key!r} is not a key of npshmex; shm_put returns them")
    return key[len(_SCHEME) :]


def unshm(x: Any, keep: bool | None = None) -> Any:
    """Return what is under `x` if it is a key; if it is a dict, put arrays in the place of keys."""
    if is_shmkey(x):
        return shm_pop(x, keep)
    if isinstance(x, dict):
        x.update({k: shm_pop(v, keep) for k, v in x.items() if is_shmkey(v)})
    return x


Future = concurrent.futures.Future


class _Call:
    """A function that is given arrays for keys, and whose result has arrays for keys."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", None) or __name__

    def __reduce__(self) -> Any:
        if not _array_wrappers:
            return _Call, (self.function,)
        # A worker knows the wrappers that were registered where the task was submitted.
        return _call_with, (self.function, _array_wrappers)

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

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("snapshot", "submit")
        super().__init__(*args, **options)

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
