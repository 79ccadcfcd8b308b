"""How types that NumPy and others pickle in band are taken apart into plain arrays.

`numpy.ndarray` itself is handled by `ndshare._pickling.pickler`. What is here turns something that *wraps*
an array into ``(rebuild, (plain array, facts))``; the plain array inside is then noted like any
other, so its bytes move through segments and shared memory stays shared.

Masked arrays, matrices and other subclasses of ndarray put all of their bytes into the pickle when
left to themselves (protocol 5 notwithstanding): tested with NumPy 2.5.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import gc
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._memory import decode_dtype, dense_strides, encode_dtype, span
from ndshare._pickling.memmaps import MEMMAP_ATTRIBUTES
from ndshare._pickling.randoms import random_types, reduce_random
from ndshare.errors import TransportError

_plain_reduce = np.ndarray.__reduce__
_plain_reduce_ex = np.ndarray.__reduce_ex__
_plain_setstate = np.ndarray.__setstate__


Reduce = Callable[[Any], Any]
"""Takes an object apart as ``__reduce_ex__`` does."""


class _Registered(dict[type, Reduce]):
    """Reducers of ndshare's own types; of all others those of copyreg, live and in C."""

    __missing__ = copyreg.dispatch_table.__getitem__


registered = _Registered()


def register_reducer(cls: type, reduce: Reduce) -> None:
    """Have instances of a type travel by a way of its own in ndshare's messages, and only in them."""
    registered[cls] = reduce


def same(obj: Any) -> Any:
    """Return its argument: the pickle opcode for an out-of-band object needs a call around it."""
    return obj


def reduce_small(array: np.ndarray[Any, Any]) -> Any:
    """Pickle a small array in band, in the layout of ``copy(order="K")``."""
    shape = array.shape
    if array.flags.c_contiguous:
        return make_small, (array.tobytes(), encode_dtype(array.dtype), shape)
    strides = dense_strides(shape, array.strides, array.itemsize)
    in_memory_order = array.transpose(sorted(range(array.ndim), key=lambda axis: -strides[axis]))
    return make_small, (in_memory_order.tobytes(), encode_dtype(array.dtype), shape, strides)


def make_small(
    data: bytes, code: str | bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> np.ndarray[Any, Any]:
    """Return the array of `reduce_small`, in memory of its own."""
    dtype = decode_dtype(code)
    if dtype.hasobject or (strides is not None and span(shape, strides, dtype.itemsize) > len(data)):
        got = f"{len(data)} bytes are no array of {dtype} with shape {shape}"
        raise TransportError("a message was refused", got, "send parcels only, as they are")
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, data, 0, strides)
    return array.copy("C" if strides is None else "K")


def reduce_memoryview(view: memoryview) -> Any:
    """Take a memoryview apart: its memory travels as that of an array, by reference if it is shared."""
    try:
        array = _array_of(view)
    except (NotImplementedError, ValueError, BufferError, RuntimeError) as error:
        raise _unsendable_view(view) from error
    if array.dtype.hasobject or view.format == "P":
        raise _unsendable_view(view)
    return make_memoryview, (array, view.format, view.readonly)


def _array_of(view: memoryview) -> np.ndarray[Any, Any]:
    if not view.format.startswith("T{"):
        return np.asarray(view)
    with (
        warnings.catch_warnings()
    ):  # of ctypes, which forgets the gaps; NumPy then asks for its own description
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(view)


def _unsendable_view(view: memoryview) -> TypeError:
    return TypeError(
        f"a memoryview of format {view.format!r} cannot be sent to another process: it shows objects or "
        "addresses of this process; send what it is a view of, or a NumPy array of its content"
    )


def reduce_ufunc(function: np.ufunc) -> Any:
    """Take what `numpy.frompyfunc` has made apart, which cannot be found by its name as other ufuncs."""
    held = gc.get_referents(function)  # what it calls, its identity if it was given one, its attributes
    if not function.__name__.endswith(" (vectorized)") or not held or not callable(held[0]):
        return copyreg.dispatch_table[np.ufunc](function)
    identity = [one for one in held[1:] if type(one) is not dict]
    return make_ufunc, (held[0], function.nin, function.nout, *identity)


def make_ufunc(function: Callable[..., Any], inputs: int, outputs: int, *identity: Any) -> Any:
    """Return the ufunc of `reduce_ufunc`."""
    return np.frompyfunc(function, inputs, outputs, **dict(zip(("identity",), identity, strict=False)))


def refuse_mapping(_mapping: object) -> Any:
    """Say what to send in place of a mapping; `multiprocessing.RawArray` has one, too."""
    raise TypeError(
        "cannot pickle 'mmap.mmap' object: such memory reaches other processes through inheritance only; "
        "send an np.memmap of its file, which goes by name, or use ndshare.zeros for memory without a file"
    )


def make_memoryview(array: np.ndarray[Any, Any], code: str, readonly: bool) -> memoryview:
    """Return the memoryview of `reduce_memoryview` on an array."""
    view: memoryview = memoryview(array)  # type: ignore[arg-type]
    if view.format != code and len(code.lstrip("@")) == 1 and view.c_contiguous and view.nbytes:
        with contextlib.suppress(ValueError, TypeError):  # another letter for the same, as "n" for "l"
            view = view.cast("B").cast(code, view.shape)  # type: ignore[call-overload]
    return view.toreadonly() if readonly else view


def reduce_subclass(array: np.ndarray[Any, Any]) -> Any:
    """Take an instance of a subclass of ndarray apart, or answer NotImplemented."""
    cls = type(array)
    if cls is np.ma.MaskedArray:
        return _reduce_masked(array)
    if (
        cls.__reduce__ is _plain_reduce
        and cls.__reduce_ex__ is _plain_reduce_ex
        and cls.__setstate__ is _plain_setstate
    ) or cls is np.recarray:
        return view_as, (cls, np.ndarray.view(array, np.ndarray))
    return NotImplemented  # it has its own way to be pickled, and its own reasons


def view_as(cls: type[np.ndarray[Any, Any]], array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the memory of a plain array as a subclass."""
    return np.ndarray.view(array, cls)


def _reduce_masked(array: Any) -> Any:
    state = array.__dict__
    attributes = {name: state[name] for name in ("_baseclass", "_fill_value", "_hardmask") if name in state}
    # A copy of the attributes of what was masked; a mapped file among them is found again by its data.
    attributes["_optinfo"] = {
        name: value for name, value in state.get("_optinfo", {}).items() if name not in MEMMAP_ATTRIBUTES
    }
    if array._baseclass is not np.ndarray:
        attributes["_baseclass"] = array._baseclass  # the type of `array.data`
    mask = array._mask
    return make_masked, (
        np.ndarray.view(array, np.ndarray),
        None if mask is np.ma.nomask else mask,
        attributes,
    )


def make_masked(data: np.ndarray[Any, Any], mask: Any, attributes: dict[str, Any]) -> Any:
    """Return a masked array over plain data and mask, without copying either."""
    masked: Any = np.ndarray.view(data, np.ma.MaskedArray)
    masked._mask = np.ma.nomask if mask is None else mask
    masked._sharedmask = False
    masked.__dict__.update(attributes)
    return masked


def reduce_datetime_array(array: Any) -> Any:
    """Take a pandas DatetimeArray, TimedeltaArray or PeriodArray apart.

    Their Cython base class pickles a view that shares its dtype with nothing: the values go in band.
    """
    return make_datetime_array, (type(array), array._ndarray, array.dtype, getattr(array, "_freq", None))


def make_datetime_array(cls: Any, values: np.ndarray[Any, Any], dtype: Any, freq: Any) -> Any:
    """Return a pandas datetime-like array over the given values."""
    array = cls._simple_new(values, dtype=dtype)
    if freq is not None and hasattr(array, "_freq"):
        array._freq = freq
    return array


def reduce_tensor(tensor: Any) -> Any:
    """Take a dense torch tensor on the CPU apart through its NumPy view; others as torch does it."""
    import torch

    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor.__reduce_ex__(5)
    plain, dtype = tensor.detach(), None
    try:
        array = plain.numpy()
    except (TypeError, RuntimeError):  # bfloat16, conjugate views: no NumPy equivalent
        bits = {1: torch.uint8, 2: torch.int16}.get(tensor.element_size())
        if bits is None or tensor.is_conj() or tensor.is_neg():
            return tensor.__reduce_ex__(5)
        array, dtype = plain.view(bits).numpy(), tensor.dtype
    return make_tensor, (array, tensor.requires_grad, type(tensor) is torch.nn.Parameter, dtype)


def make_tensor(array: np.ndarray[Any, Any], requires_grad: bool, parameter: bool, dtype: Any = None) -> Any:
    """Return a tensor over the memory of an array, with the bits of `dtype` in it if that is given."""
    import torch

    tensor = torch.from_numpy(array)
    if dtype is not None:
        tensor = tensor.view(dtype)
    if parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def reduce_storage(storage: Any) -> Any:
    """Take the memory of a torch tensor on the CPU as an array of bytes; others as torch does it."""
    import torch

    if storage.device.type != "cpu":
        return storage.__reduce_ex__(5)
    return make_storage, (torch.empty(0, dtype=torch.uint8).set_(storage).numpy(),)


def make_storage(array: np.ndarray[Any, Any]) -> Any:
    """Return the storage of a tensor over the memory of an array."""
    import torch

    return torch.from_numpy(array).untyped_storage()


def _pandas_types(pandas: Any) -> dict[type, Reduce]:
    arrays = pandas.arrays
    return dict.fromkeys(
        (arrays.DatetimeArray, arrays.TimedeltaArray, arrays.PeriodArray), reduce_datetime_array
    )


def _torch_types(torch: Any) -> dict[type, Reduce]:
    return {
        torch.Tensor: reduce_tensor,
        torch.nn.Parameter: reduce_tensor,
        torch.Generator: reduce_random,
        torch.UntypedStorage: reduce_storage,
    }


def _annotation_types(annotationlib: Any) -> dict[type, Reduce]:
    return {annotationlib.ForwardRef: reduce_forward_reference}


def reduce_forward_reference(reference: Any) -> Any:
    """Take a name in an annotation apart that meant nothing where it was looked up, without namespaces."""
    facts = {
        "module": reference.__forward_module__,
        "is_class": reference.__forward_is_class__,
        "is_argument": reference.__forward_is_argument__,
    }
    return make_forward_reference, (type(reference), reference.__forward_arg__, facts)


def make_forward_reference(cls: Any, name: str, facts: dict[str, Any]) -> Any:
    """Return the reference of `reduce_forward_reference`."""
    return cls(name, **facts)


def reduce_library(library: Any) -> Any:
    """Take a library that ctypes has loaded by its name, and what the program said of its functions.

    Its addresses mean nothing in another process.
    """
    entries = [one for one in list(vars(library).values()) if type(one) is library._FuncPtr]
    return make_library, (type(library), library._name, [_facts_of_entry(one) for one in entries])


def _facts_of_entry(entry: Any) -> tuple[Any, ...]:
    return entry.__name__, entry.restype, entry.argtypes, getattr(entry, "errcheck", None)


def make_library(kind: Any, name: str | None, entries: list[tuple[Any, ...]]) -> Any:
    """Return the library of `reduce_library`, loaded here."""
    library = kind(name)
    for facts in entries:
        make_entry(getattr(library, facts[0]), *facts)
    return library


def reduce_entry(entry: Any) -> Any:
    """Take a function of such a library apart; others of ctypes, which Python code is behind, as it does."""
    library = (entry._objects or {}).get("0") if isinstance(entry._objects, dict) else None
    if getattr(library, "_FuncPtr", None) is not type(entry):
        return entry.__reduce_ex__(5)
    return make_entry_of, (library, *_facts_of_entry(entry))


def make_entry_of(library: Any, name: str, *facts: Any) -> Any:
    """Return the function of `reduce_entry`."""
    return make_entry(library[name], name, *facts)


def make_entry(entry: Any, _name: str, restype: Any, argtypes: Any, errcheck: Any) -> Any:
    """Say of a function of a library what it takes and gives."""
    entry.restype = restype
    if argtypes is not None:
        entry.argtypes = argtypes
    if errcheck is not None:
        entry.errcheck = errcheck
    return entry


def _ctypes_types(ctypes: Any) -> dict[type, Reduce]:
    return {ctypes.CDLL: reduce_library, ctypes.PyDLL: reduce_library}


def reduce_errstate(state: Any) -> Any:
    """Take an `numpy.errstate` apart, which a decorator may have; pickle gives it a mark of its own."""
    names = "call", "all", "divide", "over", "under", "invalid"
    said = {name: getattr(state, f"_{name}") for name in names}
    if said["call"] is np.errstate()._call:  # type: ignore[attr-defined]
        del said["call"]
    return functools.partial(np.errstate, **said), ()


def _struct_types(struct: Any) -> dict[type, Reduce]:
    return {struct.Struct: lambda one: (struct.Struct, (one.format,))}


_LATE: dict[str, Callable[[types.ModuleType], dict[type, Reduce]]] = {
    "numpy.random": random_types,
    "annotationlib": _annotation_types,
    "ctypes": _ctypes_types,
    "pandas": _pandas_types,
    "random": lambda random: {random.Random: reduce_random},
    "struct": _struct_types,
    "torch": _torch_types,
}
LATE_COUNT = len(_LATE)


def late_reducers(known: set[str]) -> dict[type, Reduce]:
    """Return the reducers of libraries that were imported since the names in `known`, and add them."""
    found: dict[type, Reduce] = {}
    for name, types_of in _LATE.items():
        if name not in known and name in sys.modules:
            try:
                found.update(types_of(sys.modules[name]))
            except AttributeError:  # another thread is in the middle of importing it
                continue
            known.add(name)
    return found
