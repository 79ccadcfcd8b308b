"""Damaged and foreign files: LayoutError or right data, never a crash, a hang or a read outside."""

from __future__ import annotations

import json
import os
import random
import struct

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from ndshare._dict import _store, files, layout
from ndshare._dict.layout import Spec
from tests.dict.dict_tasks import ended, forked

pytestmark = [pytest.mark.once, pytest.mark.sanitized]

_ARRAYS = {
    "a": np.arange(100.0),
    ("t", 1): np.arange(6, dtype="i2").reshape(2, 3),
    None: np.array(3, "M8[s]"),
    "r": np.ones(3, [("x", "f4"), ("y", "u1", (2,))]),
}


@pytest.fixture
def whole():
    """Content of a file after a few writes of each kind, and its name."""
    name = f"fuzz-{os.getpid()}"
    with SharedDict(_ARRAYS, name) as d:
        for _ in range(3):
            d.update(_ARRAYS, lambda new, old: new)
        d.write(_ARRAYS, atomic=True)
        with open(files.file_of(name), "rb") as file:
            content = file.read()
    return name, content


def _put(name: str, content: bytes) -> None:
    fd = os.open(files.file_of(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)


def _try(name: str) -> str:
    """Attach and read everything; say how it went."""
    try:
        d = SharedDict.attach(name)
    except ndshare.LayoutError as error:
        return "refused" if error.field and str(error) else "without words"
    values = d.read()
    for key, value in values.items():
        assert value.dtype == _ARRAYS[key].dtype
        assert value.tobytes() == _ARRAYS[key].tobytes(), key
    d.write(_ARRAYS, atomic=True)
    d.close()
    return "right"


def _mutated(content: bytes, end: int, rng: random.Random) -> bytes:
    """Return the content with some bytes before `end` changed, or cut off, or drawn out."""
    how = rng.randrange(10)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        return content + bytes(rng.choice((1, 64, 4096)))
    changed = bytearray(content)
    if how == 2:  # one of the words of the header
        at = 8 * rng.randrange(16)
        changed[at : at + 8] = struct.pack(
            "<Q", rng.choice((1, 1 << 31, 1 << 63, (1 << 64) - 1, rng.getrandbits(64)))
        )
        return bytes(changed)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(end)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


@pytest.mark.chaos
def test_layout_fuzzed_header(whole, chaos_rng, chaos_rounds):
    """Header and directory with wrong bytes, truncated or extended files."""
    name, content = whole
    end = layout.HEADER_BYTES + struct.unpack_from("<Q", content, 32)[0]
    counts = {"refused": 0, "right": 0}

    def all_rounds():
        for _ in range(1000 * chaos_rounds):
            _put(name, _mutated(content, end, chaos_rng))
            counts[_try(name)] += 1
        print(counts)
        assert counts["refused"] > 500

    assert ended(forked(all_rounds)) == 0  # a crash would be of the child
    if os.path.exists(files.file_of(name)):
        os.unlink(files.file_of(name))


@pytest.mark.chaos
def test_layout_fuzzed_with_a_right_digest(whole, chaos_rng, chaos_rounds):
    """A directory that lies, with a digest that agrees: refused, or a file that has all it says."""
    name, content = whole
    start = layout.HEADER_BYTES
    length = struct.unpack_from("<Q", content, 32)[0]
    directory = json.loads(content[start : start + length])

    def lie(value, rng):
        kind = rng.randrange(12)
        if kind == 0 or not isinstance(value, list | dict) or not value:
            return rng.choice(
                (None, 0, -1, 1, 1 << 40, 1 << 62, 1 << 70, 1e300, "", "O", "|O8", "<f8", "V99999999999", "M8[x]",
                 "<U999999999", "i4,i4", [], [[]], {}, [["x", "O"]], [["x", "<f8"], ["x", "<f8"]], True, "\ud800",
                 [1] * 65, [0, 1 << 61], [1 << 31, 1 << 31, 1 << 31], [["", "|V3"]], [["x", "<f8", [-1]]])
            )  # fmt: skip
        if isinstance(value, dict):
            key = rng.choice(list(value))
            return {**value, key: lie(value[key], rng)}
        at = rng.randrange(len(value))
        changed = list(value)
        if kind == 1:
            del changed[at]
        elif kind == 2:
            changed.insert(at, changed[at])
        else:
            changed[at] = lie(changed[at], rng)
        return changed

    def all_rounds():
        counts = {}
        for _ in range(1000 * chaos_rounds):
            text = json.dumps(lie(directory, chaos_rng)).encode()
            size = chaos_rng.choice((len(content), len(content) + 128 * chaos_rng.randrange(9)))
            head = layout._HEADER.pack(b"NDSHDICT", 1, 128, size, len(_ARRAYS), len(text), bytes(16))
            head = head[:-16] + layout._digest(head, text)
            body = (head.ljust(start, b"\0") + text).ljust(start + length, b"\0")
            _put(name, (body + content[len(body) :]).ljust(size, b"\0")[:size])
            try:
                d = SharedDict.attach(name)
            except ndshare.LayoutError as error:
                counts[error.field.partition(" of ")[0]] = counts.get(error.field.partition(" of ")[0], 0) + 1
                continue
            except MemoryError:
                continue
            assert d.nbytes <= size
            d.read()
            d.close()
            counts["attached"] = counts.get("attached", 0) + 1
        print(counts)
        assert len(counts) > 4

    assert ended(forked(all_rounds)) == 0
    if os.path.exists(files.file_of(name)):
        os.unlink(files.file_of(name))


@pytest.mark.chaos
def test_layout_fuzzed_cells(whole, chaos_rng, chaos_rounds):
    """Wrong words in what changes with each write: refused, or an older value, never a crash or hang."""
    name, content = whole
    cells = -(-(layout.HEADER_BYTES + struct.unpack_from("<Q", content, 32)[0]) // 128) * 128

    def all_rounds():
        refused = 0
        for _ in range(1000 * chaos_rounds):
            changed = bytearray(content)
            for _ in range(chaos_rng.choice((1, 2, 9))):
                at = cells + 8 * chaos_rng.randrange(len(_ARRAYS) * _store.CELL_BYTES // 8)
                value = chaos_rng.choice((0, 1, 7, (1 << 64) - 1, chaos_rng.getrandbits(64)))
                changed[at : at + 8] = struct.pack("<Q", value)
            _put(name, bytes(changed))
            try:
                refused += _try(name) == "refused"
            except ndshare.LayoutError:
                refused += 1
        print(f"{refused} refused")
        assert refused

    assert ended(forked(all_rounds)) == 0
    if os.path.exists(files.file_of(name)):
        os.unlink(files.file_of(name))


@pytest.mark.parametrize(
    ("at", "text", "field"),
    [
        (0, b"X", "magic"),
        (8, b"\x02", "format"),
        (12, b"\x00", "header length"),
        (17, b"\xff", "size"),
        (27, b"\xff", "number of keys"),
        (37, b"\xff", "directory length"),
        (40, b"\0\0\0\0", "digest"),
        (64, b"\x07", "persistent flag"),
        (140, b"#", "digest"),
    ],
)
def test_layout_error_names_the_field(whole, at, text, field):
    """What is wrong is named, with what is there and what is allowed."""
    name, content = whole
    _put(name, content[:at] + text + content[at + len(text) :])
    try:
        with pytest.raises(ndshare.LayoutError, match=rf"refused: its {field} is .* is allowed") as refused:
            SharedDict.attach(name)
        assert refused.value.field == field
        assert isinstance(refused.value, ValueError)
    finally:
        os.unlink(files.file_of(name))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("<f8", [1 << 61]),
        ("<f8", [1 << 61, 0]),
        ("<f8", [1 << 31, 1 << 31, 0]),
        ("<f8", [2] * 64),
        ("|V0", [1 << 61]),
        ("|S0", [1 << 31, 1 << 31]),
        ("|u1", [1 << 61]),
        ("|u1", [(1 << 61) - 1]),
        ("|u1", [1 << 46]),
        ("|u1", [1 << 30]),
        ([["x", "<f8", [0]]], [1 << 62]),
    ],
)
def test_layout_of_sizes_that_cannot_be_is_refused(whole, dtype, shape):
    """A directory with a right digest whose arrays cannot be, or whose file is longer than its memory."""
    name, _ = whole
    text = json.dumps({"created": 1.0, "path": None, "keys": [["a", dtype, shape]]}).encode()
    try:
        specs, *_ = layout.decode_directory(text, "file")
        size = layout.plan(specs, len(text), 1.0, None).size
    except ndshare.LayoutError:
        size = 1 << 20
    head = layout._HEADER.pack(b"NDSHDICT", 1, 128, size, 1, len(text), bytes(16))
    head = head[:-16] + layout._digest(head, text)
    _put(name, head.ljust(layout.HEADER_BYTES, b"\0") + text)
    os.truncate(files.file_of(name), size)
    try:
        with pytest.raises(ndshare.LayoutError, match=r"shape of key 'a'|its memory is \d+ bytes"):
            SharedDict.attach(name)
        if size == 1 << 20:  # so it is with all of its memory
            _put(name, (head.ljust(layout.HEADER_BYTES, b"\0") + text).ljust(size, b"\0"))
            with pytest.raises(ndshare.LayoutError, match="shape of key 'a'"):
                SharedDict.attach(name)
    finally:
        os.unlink(files.file_of(name))


@pytest.mark.parametrize("large", [0, 1 << 43, (1 << 63) + 5, (1 << 64) - 2, (1 << 64) - 1])
def test_layout_stamps_that_cannot_be(whole, large):
    """Stamps and numbers of transactions near the end of their words, set while the dict is in use."""
    name, _ = whole
    with SharedDict({"a": np.zeros(3), "b": np.zeros(3)}, name) as d:
        cells = d._layout.cells
        with open(files.file_of(name), "r+b", buffering=0) as file:
            for at in (cells + 16, cells + 48, 72):  # begun of each slot of the first key, transactions
                for _ in range(3):
                    os.pwrite(file.fileno(), struct.pack("<Q", large), at)
                    for use in (
                        lambda: d.write({"a": 1.0}),
                        lambda: d.update({"a": 1.0}, lambda new, old: old + new),
                        lambda: d.write({"a": 2.0, "b": 2.0}, atomic=True),
                        lambda: d.locked("a", "b").__enter__(),
                        lambda: d.read(),
                    ):
                        try:
                            use()
                        except LookupError as error:
                            assert "has damaged the file" in str(error)  # noqa: PT017  -- or none at all
                    if large:
                        with pytest.raises(
                            ndshare.LayoutError, match=r"'begun' of key 'a'|'transactions' of"
                        ):
                            SharedDict.attach(name)
                    assert d["b"].shape == (3,)
                    os.pwrite(file.fileno(), struct.pack("<Q", 9), at)


def test_layout_dtype_that_cannot_be_written_is_refused():
    """Dtypes whose description is not the whole of them."""
    overlapping = np.dtype({"names": ["a", "b"], "formats": ["u4", "u2"], "offsets": [0, 1]})
    with pytest.raises(TypeError, match="cannot be written"):
        SharedDict({"a": np.zeros(3, overlapping)})
    assert layout.decode_dtype("<f8") == np.float64
    assert Spec((2, 3), np.dtype("f4")).nbytes == 24


def test_store_refuses_parts_outside_the_file():
    """The C core checks what it is told once more."""
    fd = os.memfd_create("test")
    try:
        os.truncate(fd, 4096)
        f8 = np.dtype("f8")
        for size, cells, data, entries in (
            (4096, 128, 256, [(f8, (1000,))]),
            (4096, 128, 256, [(f8, (-1,))]),
            (4096, 128, 256, [(f8, (1 << 62,))]),
            (4096, 128, 256, [(f8, (1 << 40, 1 << 40))]),
            (4096, 128, 128, [(f8, (1,))]),
            (4096, 130, 256, [(f8, (1,))]),
            (4096, 128, 8192, []),
            (-1, 128, 256, []),
            (4096, 128, 256, [(f8, (1,) * 65)]),
        ):
            with pytest.raises((ValueError, OverflowError)):
                _store.Store(fd, size, cells, data, entries)
        store = _store.Store(os.dup(fd), 4096, 128, 256, [(f8, (2,))])
        with pytest.raises(IndexError):
            store.load(1)
        with pytest.raises(LookupError):
            store.load(0)
        hold = _store.Hold(store, [0])
        for use in (hold.begin, lambda: hold.put([np.zeros(2)])):
            with pytest.raises(RuntimeError, match="has not taken the locks"):
                use()
        with pytest.raises(TypeError):
            store.fill(0, np.zeros(3))
        store.fill(0, np.ones(2))
        assert store.load(0).tolist() == [1, 1]
        assert hold.take(0) is None
        with pytest.raises(TypeError, match="dtype and shape of its key"):
            hold.put([np.zeros(3)])
        with pytest.raises(ValueError, match="as many arrays as keys"):
            hold.put([])
        assert hold.put([np.zeros(2)]) is None
        hold.free()
        assert store.load(0).tolist() == [0, 0]
        store.close()
    finally:
        os.close(fd)


def test_hold_without_init_takes_nothing():
    """What was not made by its constructor refuses, and can be left."""
    hold = _store.Hold.__new__(_store.Hold)
    with pytest.raises(RuntimeError, match="__init__ was not called"):
        hold.take(1.0)
    for use in (hold.begin, lambda: hold.put([])):
        with pytest.raises(RuntimeError, match="has not taken the locks"):
            use()
    hold.free()
    hold.__exit__(None, None, None)
    assert not hold.held
    for wrong in ((), (1, [0]), (None, [0])):
        with pytest.raises(TypeError):
            hold.__init__(*wrong)
    with pytest.raises(TypeError):
        _store.Store.__new__(_store.Store)
