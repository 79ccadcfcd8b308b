"""What the array tests run in workers, and how both sides look at an array.

A module of its own, so that a worker imports this and not a test module with all of pytest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import ndshare

_NAT = np.array(np.iinfo("i8").min)  # not a time, in every unit


@dataclass
class Record:
    """Arrays in a dataclass."""

    name: str
    data: Any
    more: Any = None


class Fingerprint(NamedTuple):
    """All that has to be the same after a journey, but the strides."""

    kind: type
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    content: str


def fingerprint(a: np.ndarray) -> Fingerprint:
    """Describe an array so that two processes can compare it bit by bit."""
    content = hashlib.blake2b(digest_size=16)
    _feed(np.asarray(a), content)
    return Fingerprint(type(a), _tell(a.dtype), a.dtype.itemsize, a.shape, content.hexdigest())


def _tell(dtype: np.dtype) -> str:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return f"({_tell(base)}, {shape})"
    if dtype.fields is None:
        return f"{dtype.str} {dtype.type.__name__ if dtype.kind == 'V' else ''} {dict(dtype.metadata or {})}"
    fields = ", ".join(f"{name!r}: {_tell(f[0])} at {f[1]}{f[2:]}" for name, f in dtype.fields.items())
    return f"{dtype.type.__name__}{{{fields}}} {dtype.names} {dtype.isalignedstruct} {dtype.itemsize}"


def _feed(a: np.ndarray, content: Any) -> None:
    if a.dtype.fields is not None:
        for name in a.dtype.names:
            _feed(a[name], content)
    elif a.dtype.char in "gG":  # their padding is anything
        content.update(repr(a.tolist()).encode())
    else:
        content.update(a.tobytes())


def layout(a: np.ndarray) -> tuple[int, ...]:
    """Return the strides that matter: an axis of length one has none, an empty array neither."""
    return tuple(s if n > 1 else 0 for n, s in zip(a.shape, a.strides, strict=True)) if a.size else ()


def echo(*args: Any) -> Any:
    """Return the arguments."""
    return args[0] if len(args) == 1 else args


class Sight(NamedTuple):
    """What a worker saw of its argument."""

    print: Fingerprint
    layout: tuple[int, ...]
    writeable: bool
    shared: bool


def look(a: np.ndarray) -> Sight:
    """Describe an argument, then write over it as far as it allows."""
    seen = Sight(fingerprint(a), layout(a), a.flags.writeable, ndshare.is_shared(a))
    if not seen.shared and a.flags.writeable:
        scribble(a)
    return seen


def scribble(a: np.ndarray) -> None:
    """Overwrite an array with other bytes."""
    if a.dtype.fields is not None:
        for name in a.dtype.names:
            scribble(a[name])
    elif a.dtype.kind == "V":
        a[...] = np.frombuffer(b"\xa5" * a.dtype.itemsize, a.dtype)[0]
    elif a.dtype.kind in "SU":
        a[...] = "\x7f" * (a.dtype.itemsize // (4 if a.dtype.kind == "U" else 1))
    elif a.dtype.kind in "mM":
        a[...] = np.array(-77).astype(a.dtype)
    else:
        a[...] = 1 if a.dtype.kind == "b" else 113


# ---- arrays from a recipe, so that the same one can be made on either side


def fill(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Make a C-contiguous array of random but valid values."""
    a = np.zeros(shape, dtype)
    _fill(a, np.random.default_rng(seed))
    return a


def _fill(a: np.ndarray, rng: np.random.Generator) -> None:
    kind = a.dtype.kind
    if a.dtype.fields is not None:
        for name in a.dtype.names:
            _fill(a[name], rng)
        return
    if kind == "b":
        a[...] = rng.integers(0, 2, a.shape)
    elif kind in "iu":
        a[...] = rng.integers(0, 256, a.shape).astype(a.dtype)
    elif kind == "f":
        a[...] = rng.integers(-9, 9, a.shape) / 3
        a[rng.random(a.shape) < 0.1] = np.nan
        a[rng.random(a.shape) < 0.1] = -0.0
    elif kind == "c":
        a[...] = rng.integers(-9, 9, a.shape) / 3 + 1j * rng.integers(-9, 9, a.shape)
    elif kind in "mM":
        a[...] = rng.integers(0, 1 << 20, a.shape).astype("i8").astype(a.dtype)
        a[rng.random(a.shape) < 0.1] = _NAT.astype(a.dtype)
    elif kind in "SU":
        words = np.array(["", "a", "bc", "xyz", "\x01"] + (["é", "\U0001f40d"] if kind == "U" else []))
        a[...] = words[rng.integers(0, len(words), a.shape)].astype(a.dtype)
    elif kind == "V":
        words = np.frombuffer(rng.bytes(8 * a.dtype.itemsize), a.dtype)
        a[...] = words[rng.integers(0, len(words), a.shape)]


def shared_fill(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Make the same in shared memory."""
    return ndshare.share(fill(dtype, shape, seed))


def apply(a: np.ndarray, steps: list[tuple[Any, ...]]) -> np.ndarray:
    """Take views of views."""
    for step, *args in steps:
        if step == "index":
            a = a[args[0]]
        elif step == "transpose":
            a = a.transpose(args[0])
        elif step == "broadcast":
            a = np.broadcast_to(a, (args[0], *a.shape))
        elif step == "newaxis":
            a = a[..., None]
        elif step == "fortran":
            # Reuses the memory, so that a shared array stays shared.
            a = a.ravel().reshape(a.shape, order="F") if a.flags.c_contiguous else a
        elif step == "window":
            n = min(args[0], a.shape[-1])
            a = np.lib.stride_tricks.sliding_window_view(a, n, axis=-1)
        elif step == "readonly":
            a = a.view()
            a.flags.writeable = False
    return a


def make(
    dtype: np.dtype, shape: tuple[int, ...], seed: int, steps: list[tuple[Any, ...]], shared: bool
) -> Any:
    """Make an array here; return it with what it looked like."""
    a = apply((shared_fill if shared else fill)(dtype, shape, seed), steps)
    return a, fingerprint(a), layout(a)


def maps_file(array: np.ndarray, path: str) -> bool:
    """Tell whether the memory of an array lies in a mapping of a file."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as lines:
        for line in lines:
            span, *_, name = line.rstrip("\n").split(maxsplit=5)
            low, high = (int(x, 16) for x in span.split("-"))
            if low <= address < high:
                return name == path
    return False


def look_at_file(array: np.ndarray, path: str) -> tuple[Any, ...]:
    """Describe an array that should be a file."""
    return type(array), fingerprint(np.asarray(array)), maps_file(array, path), array.flags.writeable


def write_first(array: np.ndarray, value: float) -> None:
    """Write into an argument."""
    array.flat[0] = value


def type_name(obj: Any) -> str:
    """Return the name of a type as the worker sees it."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


class Tagged(np.ndarray):
    """A plain subclass."""
