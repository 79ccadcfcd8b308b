"""What the file of a `SharedDict` begins with: a header and a directory that says everything else.

::

    header      magic, format, sizes, digest of the rest of the header and of the directory
    directory   JSON: keys, dtypes, shapes, path of the snapshot. No offsets: they follow from the shapes
    cells       one per key, see `_store/dict.h`
    data        two slots per key

Guarantees
----------
* No pickle: reading a file runs no code of its maker.
* Whatever the bytes are, the outcome is a `Layout` that lies within the file, or a `LayoutError`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import re
import struct
from collections.abc import Hashable, Iterable
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np

from ndshare._dict._store import CELL_BYTES, LARGE_BYTES, MAX_KEYS
from ndshare.errors import LayoutError

MAGIC: Final = b"NDSHDICT"
FORMAT: Final = 1
HEADER_BYTES: Final = 128
_SLOT_ALIGNMENT: Final = 64
_DIGEST_BYTES: Final = 16
_HEADER: Final = struct.Struct(f"<8sIIQQQ{_DIGEST_BYTES}s")
_PERSISTENT: Final = struct.Struct("<I")
_PERSISTENT_OFFSET: Final = 64
_DTYPE: Final = re.compile(r"[<>|=]?[?biufcSUVmM][0-9]{0,12}(\[[0-9]{0,9}[A-Za-zμ]{1,8}(/[0-9]{1,9})?\])?")
_LARGEST_DIMENSIONS: Final = 64  # NumPy's own limit
_LARGEST_BYTES: Final = 1 << 61  # of a value; far more than can be mapped


class Spec(NamedTuple):
    """Shape and dtype of a key."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one value."""
        return math.prod(self.shape) * self.dtype.itemsize


def encode_key(key: Hashable) -> Any:
    """Return a key as JSON, or raise TypeError if only its index can stand for it."""
    if key is None or type(key) in (str, int, bool):
        return key
    if type(key) is tuple:
        return [encode_key(part) for part in key]
    raise TypeError


def written_keys(keys: Iterable[Hashable]) -> list[Hashable]:
    """Return the keys as whoever attaches sees them: those that JSON cannot say as their index.

    Raises
    ------
    ValueError
        If the index that stands for a key is another key.
    """
    known = list(keys)
    written: list[Hashable] = []
    for number, key in enumerate(known):
        try:
            encode_key(key)
            written.append(key)
        except TypeError:
            written.append(number)
    if len(set(written)) < len(written):
        twice = next(
            key for key, name in zip(known, written, strict=True) if key is not name and name in known
        )
        raise ValueError(
            f"key {twice!r} can be written into the file as its index only, and that is a key too; use keys "
            "of str, int, bool, None and tuples of these"
        )
    return written


def decode_key(text: Any) -> Hashable:
    """Return the key that `encode_key` wrote."""
    if text is None or type(text) in (str, int, bool):
        key: Hashable = text
        return key
    if type(text) is list:
        return tuple([decode_key(part) for part in text])
    raise TypeError


def encode_dtype(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as JSON, or raise TypeError if it cannot be written or shared."""
    if dtype.hasobject:
        raise TypeError(
            f"an array of dtype {dtype} cannot be in a SharedDict, because its items are Python objects (or "
            "point to memory) of one process; use a numeric, string (S or U) or structured dtype"
        )
    try:
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype.str) if dtype.names is None else dtype)
        text = json.loads(json.dumps(descr))
        same = decode_dtype(text) == dtype
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TypeError(
            f"dtype {dtype!r} cannot be written into the file of a SharedDict; use a dtype of NumPy, with "
            "the fields in the order of their memory, or a view of the same bytes (uint8, V)"
        )
    return text


def decode_dtype(text: Any) -> np.dtype[Any]:
    """Return the dtype that `encode_dtype` wrote; anything else raises an exception."""
    descr = _decode_descr(text)
    dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(descr)
    if dtype.hasobject:
        raise TypeError("dtype of objects")
    return dtype


def _decode_descr(text: Any) -> Any:
    if isinstance(text, str):
        if not _DTYPE.fullmatch(text):
            raise ValueError(text)
        return text
    fields = []
    for name, descr, *shape in text:
        title = tuple(name) if isinstance(name, list) else name
        fields.append((title, _decode_descr(descr), *(tuple(map(int, part)) for part in shape)))
    return fields


def encode_directory(specs: dict[Hashable, Spec], created: float, path: str | None) -> bytes:
    """Return a directory as it stands in the file. The keys are `written_keys`.

    Raises
    ------
    TypeError
        For a dtype that cannot be shared.
    """
    texts: dict[np.dtype[Any], Any] = {}
    keys = []
    for key, spec in specs.items():
        text = texts.get(spec.dtype)
        if text is None:
            text = texts[spec.dtype] = encode_dtype(spec.dtype)
        keys.append((encode_key(key), text, spec.shape))
    return json.dumps({"created": created, "path": path, "keys": keys}, separators=(",", ":")).encode()


def decode_directory(directory: bytes, file: str) -> tuple[dict[Hashable, Spec], float, str | None]:
    """Return keys, time of creation and path of a directory; LayoutError names what is wrong."""

    def refuse(field: str, got: object, allowed: str) -> NoReturn:
        raise LayoutError(file, field, f"{got!r:.80}", allowed)

    try:
        content = json.loads(directory)
        created, path, keys = content["created"], content["path"], content["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        refuse("directory", directory, "JSON with created, path and keys")
    if not isinstance(created, float):
        refuse("time of creation", created, "a number of seconds")
    if path is not None and not (isinstance(path, str) and path.startswith("/") and "\0" not in path):
        refuse("path", path, "an absolute path or null")
    if not isinstance(keys, list):
        refuse("directory", keys, "a list of keys")
    known: dict[tuple[str, tuple[int, ...]], Spec] = {}  # most keys are like others
    specs: dict[Hashable, Spec] = {}
    for entry in keys:
        try:
            name, text, shape = entry
            key = name if type(name) is str else decode_key(name)
        except (TypeError, ValueError, RecursionError):
            refuse("key", entry, "a key with dtype and shape")
        if key in specs:
            refuse("key", key, "each key once")
        if not _is_shape(shape):
            refuse(f"shape of key {key!r:.40}", shape, "a list of integers from 0 on")
        like = (text if type(text) is str else repr(text), tuple(shape))
        spec = known.get(like)
        if spec is None:
            try:
                dtype = decode_dtype(text)
            except Exception:
                refuse(f"dtype of key {key!r:.40}", text, "a dtype of NumPy without objects")
            # NumPy leaves lengths of 0 out, too, when it looks whether an array can be.
            if math.prod(filter(None, shape)) * max(1, dtype.itemsize) >= _LARGEST_BYTES:
                refuse(f"shape of key {key!r:.40}", shape, "what fits the address space")
            spec = known[like] = Spec(like[1], dtype)
        specs[key] = spec
    return specs, created, path


def _is_shape(shape: Any) -> bool:
    if type(shape) is not list or len(shape) > _LARGEST_DIMENSIONS:
        return False
    for length in shape:  # noqa: SIM110  -- once per key, and a generator takes twice as long
        if type(length) is not int or not 0 <= length < 1 << 62:
            return False
    return True


def differences(have: dict[Hashable, Spec], wanted: dict[Hashable, Spec]) -> Iterable[str]:
    """Yield a sentence per key in which two sets of specs differ."""
    for key in have.keys() - wanted.keys():
        yield f"key {key!r} is not asked for"
    for key, spec in wanted.items():
        there = have.get(key)
        if there is None:
            yield f"key {key!r} is not there"
        elif there != spec:
            yield f"key {key!r} is {there.dtype} {there.shape}, not {spec.dtype} {spec.shape}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where everything is in a file.

    Parameters
    ----------
    specs
        One per key, in the order of the file.
    created
        Time of creation, seconds since the epoch.
    path
        Where snapshots go, or None.
    cells, data, size
        Byte offsets of the cells and of the slots, and of the end.
    """

    specs: dict[Hashable, Spec]
    created: float
    path: str | None
    cells: int
    data: int
    size: int

    @property
    def entries(self) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """What a `Store` wants to know of each key."""
        return [(spec.dtype, spec.shape) for spec in self.specs.values()]


def plan(specs: dict[Hashable, Spec], directory_bytes: int, created: float, path: str | None) -> Layout:
    """Return where everything goes for a directory of that length."""
    cells = _up(HEADER_BYTES + directory_bytes, CELL_BYTES)
    data = _up(cells + CELL_BYTES * len(specs), _SLOT_ALIGNMENT)
    size = data
    room: dict[int, tuple[int, int]] = {}  # by the identity of specs, which many keys have in common
    for spec in specs.values():
        found = room.get(id(spec))
        if found is None:
            alignment = _SLOT_ALIGNMENT if spec.nbytes < LARGE_BYTES else mmap.PAGESIZE
            found = room[id(spec)] = alignment, 2 * _up(spec.nbytes, alignment)
        size = -(-size // found[0]) * found[0] + found[1]
    return Layout(specs, created, path, cells, data, size)


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def encode(
    specs: dict[Hashable, Spec], created: float, path: str | None, persistent: bool
) -> tuple[Layout, bytes]:
    """Return the layout of a new file, and the bytes it begins with. The keys are `written_keys`.

    Raises
    ------
    TypeError
        For a dtype that cannot be shared.
    ValueError
        For too many keys.
    """
    if len(specs) > MAX_KEYS:
        raise ValueError(f"a SharedDict of {len(specs)} keys was asked for, and {MAX_KEYS} are allowed")
    directory = encode_directory(specs, created, path)
    layout = plan(specs, len(directory), created, path)
    head = _HEADER.pack(
        MAGIC, FORMAT, HEADER_BYTES, layout.size, len(specs), len(directory), bytes(_DIGEST_BYTES)
    )
    head = head[:-_DIGEST_BYTES] + _digest(head, directory)
    return layout, b"".join(
        (
            head.ljust(_PERSISTENT_OFFSET, b"\0"),
            _PERSISTENT.pack(persistent).ljust(HEADER_BYTES - _PERSISTENT_OFFSET, b"\0"),
            directory,
        )
    )


def _digest(head: bytes, directory: bytes) -> bytes:
    hashed = hashlib.blake2b(head[:-_DIGEST_BYTES], digest_size=_DIGEST_BYTES)
    hashed.update(directory)
    return hashed.digest()


def header_of(head: bytes, size: int, file: str) -> int:
    """Check the first `HEADER_BYTES` of a file of `size` bytes; return the length of its directory.

    Raises
    ------
    LayoutError
        Naming the field that is wrong.
    """
    if len(head) < HEADER_BYTES:
        raise LayoutError(file, "length", f"{size} bytes", f"at least {HEADER_BYTES}")
    magic, version, header_bytes, total, keys, directory_bytes, _ = _HEADER.unpack_from(head)
    (persistent,) = _PERSISTENT.unpack_from(head, _PERSISTENT_OFFSET)
    for field, got, allowed in (
        ("magic", magic, MAGIC),
        ("format", version, FORMAT),
        ("header length", header_bytes, HEADER_BYTES),
        ("size", total, size),
    ):
        if got != allowed:
            raise LayoutError(file, field, repr(got), repr(allowed))
    if keys > MAX_KEYS:
        raise LayoutError(file, "number of keys", str(keys), f"at most {MAX_KEYS}")
    if directory_bytes > size - HEADER_BYTES:
        raise LayoutError(file, "directory length", str(directory_bytes), f"at most {size - HEADER_BYTES}")
    if persistent not in (0, 1):
        raise LayoutError(file, "persistent flag", str(persistent), "0 or 1")
    return int(directory_bytes)


def decode(head: bytes, directory: bytes, file: str) -> Layout:
    """Return the layout of a file whose header has passed `header_of`.

    Raises
    ------
    LayoutError
        Naming the field that is wrong.
    """
    head = head[: _HEADER.size]
    *_, total, count, _, digest = _HEADER.unpack(head)
    if digest != _digest(head, directory):
        raise LayoutError(
            file, "digest", digest.hex(), f"{_digest(head, directory).hex()}, that of the content"
        )
    specs, created, path = decode_directory(directory, file)
    if len(specs) != count:
        raise LayoutError(file, "number of keys", f"{count}, with {len(specs)} in the directory", "the same")
    layout = plan(specs, len(directory), created, path)
    if layout.size != total:
        raise LayoutError(file, "size", str(total), f"{layout.size}, what the shapes need,")
    return layout
