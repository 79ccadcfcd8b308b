"""Any object, to another process and back: values, types, layout, and who shares memory with whom."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ndshare import _arrays
from ndshare._memory import segments
from ndshare._memory.layout import dense_strides
from ndshare._transport import mainspace, transport
from ndshare.errors import TransportError
from tests.peer import Peer

pytestmark = pytest.mark.once

KB, MB = 1 << 10, 1 << 20


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """Start one peer for the module; it knows this module by its name."""
    with Peer() as started:
        yield started


# ---- what runs in the peer (found by name: the peer can import this module)


def give_back(obj: Any) -> Any:
    """Return the argument."""
    return obj


def remake(obj: Any) -> Any:
    """Return equal _arrays that were made in the peer, in their layout."""
    if isinstance(obj, np.ndarray):
        return obj.copy(order="K")
    if isinstance(obj, dict):
        return {key: remake(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [remake(value) for value in obj]
    return Box(remake(obj.content))


@dataclasses.dataclass
class Box:
    """Something that holds something."""

    content: Any


# ---- strategies

_SIMPLE = [
    *(
        "?",
        "i1",
        "u1",
        "<i2",
        ">i2",
        "<u4",
        ">u4",
        "<i8",
        ">i8",
        "u8",
        "<f2",
        ">f2",
        "<f4",
        ">f4",
        "<f8",
        ">f8",
    ),
    *("<c8", ">c8", "<c16", ">c16", np.dtype(np.longdouble).str, np.dtype(np.clongdouble).str),
    *("<M8[ns]", ">M8[D]", "<m8[us]", "<M8", "m8", "S1", "S7", "<U1", "<U5", ">U3", "V1", "V13"),
]
_STRUCTURED = [
    np.dtype([("a", "<i4"), ("b", ">f8")]),
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype([(("title of a", "a"), "<i2"), ("b", "U3")]),
    np.dtype([("outer", [("inner", "f4"), ("more", "M8[s]")]), ("tail", "?")]),
    np.dtype([("matrix", "<f4", (2, 3)), ("n", "u1")]),
    np.dtype({"names": ["x", "y"], "formats": ["i4", "f4"], "offsets": [4, 12], "itemsize": 24}),
    np.dtype("f8", metadata={"unit": "m"}),
]
dtypes = st.sampled_from([*map(np.dtype, _SIMPLE), *_STRUCTURED])
shapes = st.sampled_from(
    [
        (),
        (0,),
        (0, 5),
        (1,),
        (3,),
        (7, 5),
        (2, 3, 4),
        (1, 4, 1),
        (40, 30),
        (130, 97),
        (2, 2, 3, 2),
        (33, 1, 65),
    ]
)


def _fill(array: np.ndarray[Any, Any], seed: int) -> None:
    """Give an array content of any kind: bytes, where every byte is a value."""
    raw = np.random.default_rng(seed).integers(0, 256, array.size * array.itemsize, np.uint8)
    if array.dtype.hasobject:
        raise AssertionError
    values = np.ndarray(array.shape, array.dtype, raw.tobytes())
    if array.dtype.kind == "U":
        values = np.arange(array.size).astype(str).astype(array.dtype).reshape(array.shape)
    elif array.dtype.kind == "b":
        values = raw[: array.size].reshape(array.shape) > 127
    elif array.dtype.fields:
        values = np.zeros(array.shape, array.dtype)
        for number, name in enumerate(array.dtype.names or ()):
            if values.dtype[name].kind in "iuf":
                values[name] = number + 1
    array[...] = values


@st.composite
def layouts(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], bool]:
    """Return an array of any dtype, shape and layout, and whether it is shared."""
    dtype, shape = draw(dtypes), draw(shapes)
    shared = draw(st.booleans())
    make = _arrays.empty if shared else np.empty
    order = draw(st.sampled_from("CF"))
    kind = draw(st.sampled_from(["whole", "strided", "negative", "broadcast", "permuted", "slice of slice"]))
    array: Any
    if kind == "strided":
        array = make([2 * n for n in shape], dtype, order)[(..., *(slice(None, None, 2) for _ in shape))]
    elif kind == "slice of slice":
        array = make([n + 4 for n in shape], dtype, order)
        array = array[(..., *(slice(1, None) for _ in shape))][(..., *(slice(1, n + 1) for n in shape))]
    else:
        array = make(shape, dtype, order)
    _fill(array, draw(st.integers(0, 99)))
    if kind == "negative":
        array = array[(..., *(slice(None, None, -1) for _ in shape))]
    elif kind == "permuted" and len(shape) > 1:
        array = array.transpose(draw(st.permutations(range(len(shape)))))
    elif kind == "broadcast":
        array = np.broadcast_to(array, (3, *shape))
    return array, shared


def assert_same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    """Compare type, dtype with everything that hangs on it, shape and bytes."""
    assert type(a) is type(b)
    assert a.dtype == b.dtype
    assert a.dtype.fields == b.dtype.fields
    assert a.dtype.isalignedstruct == b.dtype.isalignedstruct
    assert a.dtype.metadata == b.dtype.metadata
    assert a.shape == b.shape
    if a.dtype.fields is None:
        assert a.tobytes() == b.tobytes()
    else:
        assert (a == b).all()


def assert_layout(a: np.ndarray[Any, Any], strides: tuple[int, ...]) -> None:
    """Compare strides where they mean something."""
    if a.size:
        assert [s for s, n in zip(a.strides, a.shape, strict=True) if n > 1] == [
            s for s, n in zip(strides, a.shape, strict=True) if n > 1
        ]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=layouts(), wrap=st.sampled_from(["bare", "list", "dict", "dataclass"]))
def test_any_array_as_argument_and_result(peer: Peer, drawn: tuple[Any, bool], wrap: str) -> None:
    """Equal, same dtype and layout; ordinary _arrays writable and private, shared ones the same memory."""
    array, shared = drawn
    wrappers = {"bare": give_back, "list": lambda a: [a], "dict": lambda a: {"k": a}, "dataclass": Box}
    openers = {
        "bare": give_back, "list": lambda x: x[0], "dict": lambda x: x["k"], "dataclass": lambda x: x.content,
    }  # fmt: skip
    sent = wrappers[wrap](array)  # type: ignore[operator]
    back = openers[wrap](peer.call(give_back, sent))
    assert_same(back, array)
    if shared:
        assert segments.is_shared(back) or not array.size
        assert_layout(back, array.strides)
        assert back.flags.writeable == array.flags.writeable
        assert np.shares_memory(back, array) or not array.size
    else:
        assert not np.shares_memory(back, array)
        assert back.flags.writeable
        assert_layout(back, dense_strides(array.shape, array.strides, array.itemsize))
        if array.size:
            back[...] = np.zeros((), array.dtype)
    made = openers[wrap](peer.call(remake, sent))
    assert_same(made, array)
    assert made.flags.writeable
    assert not segments.is_shared(made)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("nbytes", [0, KB, 64 * KB, MB, 64 * MB])
def test_size_never_changes_a_rule(peer: Peer, nbytes: int, order: Any) -> None:
    """Ordinary by value, shared by reference, results the caller's own, at every size."""
    shape = (2, nbytes // 16)
    ordinary = np.ones(shape, order=order)
    shared = _arrays.ones(shape, order=order)
    one, other, same = peer.call(add_one_to_both, ordinary, shared)
    assert (ordinary == 1).all()
    assert (one == 2).all()
    assert (other == 2).all()
    assert (shared == 2).all()
    assert one.flags.writeable
    assert one.flags.owndata
    assert segments.is_shared(other)
    assert not segments.is_shared(one)
    if nbytes:
        assert np.shares_memory(other, shared)
    assert not np.shares_memory(one, same)
    assert (one.strides, other.strides) == (ordinary.strides, shared.strides) or not nbytes
    one += 1
    assert (peer.call(add_one_to_both, np.ones(shape, order=order), shared)[0] == 2).all()
    assert (one == 3).all()


def add_one_to_both(a: Any, b: Any) -> Any:
    """Change both arguments and return them, and a new array."""
    a += 1
    b += 1
    return a, b, a * 1


# ---- results: lend what nobody holds, copy the rest

_kept: list[Any] = []


def keep_and_return(n: int) -> Any:
    """Return an array that stays in a cache of the worker."""
    _kept.append(np.zeros(n))
    return _kept[-1]


def write_kept(value: float) -> None:
    """Write to everything the worker has kept."""
    for array in _kept:
        array[...] = value


def forget_kept() -> None:
    """Drop what is kept."""
    _kept.clear()


def fresh(n: int) -> Any:
    """Return an array nobody else has."""
    return np.arange(float(n))


def in_a_cycle(n: int) -> Any:
    """Return an array that a reference cycle holds too."""
    array = np.arange(float(n))
    loop: list[Any] = [array]
    loop.append(loop)
    return array


def row_of_ten(n: int) -> Any:
    """Return a small part of a large array."""
    return np.arange(float(10 * n)).reshape(10, n)[3]


def most_of(n: int) -> Any:
    """Return most of an array, backwards."""
    return np.arange(float(n))[: n // 8 : -1]


def array_and_view(n: int) -> Any:
    """Return an array twice, and views of it."""
    array = np.arange(float(n))
    return array, array, array[1:], array[: n // 2]


def windows(n: int) -> Any:
    """Return an array whose elements overlap."""
    return np.lib.stride_tricks.sliding_window_view(np.arange(float(n)), 3)


def return_and_keep_argument(array: Any) -> Any:
    """Return the argument and keep it."""
    _kept.append(array)
    return array


N = 60_000  # floats: 480 kB, above the threshold of the workers' allocator


@pytest.mark.parametrize("function", [fresh, in_a_cycle, most_of, array_and_view], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [N, 4 * N])
def test_result_nobody_holds_is_lent(peer: Peer, function: Any, n: int) -> None:
    """The pages the worker computed on are the caller's pages: nothing is copied."""
    lent = peer.call(lent_bytes, function, n)
    if function is in_a_cycle and n == N:
        assert lent == 0  # less than 1 MB: not worth a collection
    else:
        assert lent >= n * 8 * 0.8
    result = peer.call(function, n)
    first = result[0] if isinstance(result, tuple) else result
    expected = function(n)[0] if isinstance(result, tuple) else function(n)
    assert (first == expected).all()
    assert first.flags.writeable


def lent_bytes(function: Any, n: int) -> int:
    """Return how many bytes of a result would be lent."""
    draft = transport.pack(function(n), lend_values=True)
    return draft.settle().nbytes_lent


@pytest.mark.parametrize("function", [row_of_ten, windows, keep_and_return], ids=lambda f: f.__name__)
def test_result_that_cannot_be_lent_is_copied(peer: Peer, function: Any) -> None:
    """A row of a table does not carry the table along, overlap is resolved, what is kept is private."""
    assert peer.call(lent_bytes, function, N) == 0
    assert (peer.call(function, N) == function(N)).all()
    peer.call(forget_kept)
    forget_kept()


def test_views_of_one_result_keep_sharing(peer: Peer) -> None:
    """One block is lent once; its views share it in the caller."""
    a, b, c, d = peer.call(array_and_view, N)
    assert a is b
    assert np.shares_memory(a, c)
    assert np.shares_memory(a, d)
    assert len(peer.call(array_and_view, 8)) == 4


@pytest.mark.parametrize("n", [8, N, 4 * N])
def test_result_kept_in_the_worker_is_not_aliased(peer: Peer, n: int) -> None:
    """A worker's later writes to its cache never reach what it returned earlier."""
    result = peer.call(keep_and_return, n)
    again = peer.call(return_and_keep_argument, result)
    peer.call(write_kept, 7.0)
    assert (result == 0).all()
    assert (again == 0).all()
    peer.call(forget_kept)


def test_later_tasks_never_change_an_earlier_result(peer: Peer) -> None:
    """Blocks are reused only when the caller has dropped what it was lent."""
    results = [peer.call(fresh, N + i) for i in range(8)]
    for _ in range(20):
        peer.call(fresh, N)
        peer.call(remake, np.zeros(N))
    for i, result in enumerate(results):
        assert (result == np.arange(float(N + i))).all()


def test_argument_changed_after_sending_is_not_seen(peer: Peer) -> None:
    """What `settle` has copied is settled."""
    array = np.zeros(N)
    parcel = transport.pack([array, array[:10]]).settle()
    array[:] = 1
    fds = parcel.descriptors()
    large, small = transport.unpack(parcel.data, fds)
    assert not large.any()
    assert not small.any()


def test_same_array_twice_is_one_array_and_a_view_another(peer: Peer) -> None:
    """As with pickle."""
    for n in (4, N):
        a = np.arange(float(n))
        x, y, view = peer.call(give_back, (a, a, a[1:]))
        assert x is y
        assert (view == a[1:]).all()


def test_shared_neighbours_of_one_slab_travel_together(peer: Peer) -> None:
    """Many small shared _arrays: few descriptors, each array the same memory."""
    many = [_arrays.full(i % 50 + 1, i) for i in range(1000)]
    parcel = transport.pack(many).settle()
    assert len(parcel.blocks) < 100
    assert parcel.nbytes_copied == 0
    back = peer.call(give_back, many)
    assert all(np.shares_memory(x, y) and (x == y).all() for x, y in zip(back, many, strict=True))


def test_parcel_is_small_whatever_it_holds(peer: Peer) -> None:
    """Everything too large for a message goes into a segment: _arrays, many _arrays, bytes, objects."""
    for obj in (
        np.zeros(10 * MB, np.uint8), [np.full(700, i) for i in range(2000)], b"x" * (3 * MB), "ü" * MB,
        bytearray(MB), [str(i) for i in range(50_000)], [np.zeros(200_000) for _ in range(150)],
    ):  # fmt: skip
        parcel = transport.pack(obj).settle()
        assert len(parcel.data) <= transport.INLINE_MAX
        assert len(parcel.blocks) < 150
        back = transport.unpack(parcel.data, parcel.descriptors())
        other = peer.call(give_back, obj)
        for got in (back, other):
            assert type(got) is type(obj)
            if isinstance(obj, list) and isinstance(obj[0], np.ndarray):
                assert all((x == y).all() for x, y in zip(got, obj, strict=True))
            else:
                assert np.all(got == obj)


def test_results_in_many_blocks_arrive_whole(peer: Peer) -> None:
    """Hundreds of large results in one message."""
    got = peer.call(several, 300)
    assert len(got) == 300
    assert all((array == i).all() for i, array in enumerate(got))


def several(count: int) -> list[Any]:
    """Return many _arrays with blocks of their own."""
    return [np.full(40_000, float(i)) for i in range(count)]


def test_broadcast_parcel_is_private_for_each_receiver() -> None:
    """Sent to several receivers, by-value data is mapped copy-on-write."""
    array = np.ones(N)
    parcel = transport.pack({"a": array}).settle(broadcast=True)
    with Peer() as one, Peer() as other:
        from tests.peer import receive, send

        for to in (one, other, one):
            draft = transport.pack((write_and_sum, (), {}))
            assert not draft.needs
            send(to.sock, b"k", parcel)
        for to in (one, other):
            send(to.sock, b"c", transport.pack((write_and_sum, (), {})).settle())
            tag, data, fds = receive(to.sock, to.buffer)
            assert (tag, transport.unpack(data, fds)) == (b"r", 2.0 * N)
    assert (transport.unpack(parcel.data, parcel.descriptors())["a"] == 1).all()


def write_and_sum() -> float:
    """Change the data a peer was given as broadcast."""
    from tests import peer

    array = peer.given["a"]
    array += 1
    return float(array.sum())


# ---- errors and resources


class Grumpy:
    """Cannot be pickled, at a chosen depth."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("no")


class Trap:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return spring, ()


def spring() -> None:
    """Fail while a message is unpacked."""
    raise ZeroDivisionError("sprung")


def descriptors() -> set[str]:
    """Return the open descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "error", [ValueError, TypeError, pickle.PicklingError, RecursionError, KeyboardInterrupt]
)
def test_failure_while_packing_leaves_nothing(error: type[BaseException]) -> None:
    """The error is the object's own; no array of the message stays alive."""
    import weakref

    array = np.zeros(N)
    seen = weakref.ref(array)
    with pytest.raises(error):
        transport.pack([array, array[1:], Grumpy(error)])
    del array
    gc.collect()
    assert seen() is None


def test_failure_while_unpacking_closes_everything() -> None:
    """Descriptors, memory and the message buffer are free again."""
    parcel = transport.pack([np.zeros(N), np.zeros(3 * MB), _arrays.ones(10), Trap()]).settle()
    before = descriptors()
    with pytest.raises(ZeroDivisionError):
        transport.unpack(parcel.data, parcel.descriptors())
    gc.collect()
    assert len(descriptors()) <= len(before)
    fds = parcel.descriptors()
    os.close(fds.pop())
    with pytest.raises(TransportError, match="without some of its descriptors"):
        transport.unpack(parcel.data, fds)
    gc.collect()
    assert len(descriptors()) <= len(before)
    with pytest.raises(TransportError, match="first byte is 9"):
        transport.unpack(b"\x09", [os.dup(0)])
    assert len(descriptors()) <= len(before)


def test_settling_without_room_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the third segment cannot be had, the first two are given back."""
    blocks: list[segments.Block] = []
    stage = segments.stage

    def scarce(nbytes: int) -> segments.Block:
        if len(blocks) == 2:
            raise MemoryError("no more")
        blocks.append(stage(nbytes))
        return blocks[-1]

    monkeypatch.setattr("ndshare._transport.staging.stage", scarce)
    draft = transport.pack([np.zeros(2 * MB) for _ in range(4)])
    with pytest.raises(MemoryError):
        draft.settle()
    assert len(blocks) == 2
    gc.collect()
    assert all(block.released for block in blocks)


def test_deep_recursion_is_an_error_not_a_crash() -> None:
    """A nest deeper than pickle can follow raises, and the next message works."""
    nest: list[Any] = []
    for _ in range(200_000):
        nest = [nest]
    with pytest.raises((RecursionError, pickle.PicklingError)):
        transport.pack(nest)
    while nest:
        nest = nest.pop()
    assert transport.unpack(transport.pack(1).settle().data, ()) == 1


def test_nothing_of_the_object_is_kept() -> None:
    """After packing only the draft holds the _arrays, after settling nobody."""
    import weakref

    held = [np.zeros(N), np.zeros((300, 300)).view(np.matrix)]
    refs = [weakref.ref(array) for array in held]
    draft = transport.pack([*held, functools.partial(give_back, held[0])])
    held.clear()
    parcel = draft.settle()
    assert [ref() for ref in refs] == [None, None]
    assert parcel.nbytes_copied
    with pytest.raises(ValueError, match="settled already"):
        draft.settle()


def test_packing_inside_packing_works() -> None:
    """A ``__reduce__`` that packs gets a session of its own."""
    data = transport.pack([Nested(), np.arange(3), Nested()]).settle()
    one, two, three = transport.unpack(data.data, data.descriptors())
    assert (one.sum(), two.sum(), three.sum()) == (N, 3, N)


class Nested:
    """Packs something of its own while it is packed."""

    def __reduce__(self) -> Any:
        parcel = transport.pack(np.ones(N)).settle()
        return give_back, (transport.unpack(parcel.data, parcel.descriptors()),)


def test_many_threads_pack_at_once() -> None:
    """No message gets a piece of another."""
    failures: list[Any] = []

    def work(k: int) -> None:
        for i in range(60):
            obj = [
                np.full(5000 + k, i),
                {"k": k, "f": functools.partial(give_back, k)},
                np.full(3, k),
                lambda: k,
            ]
            parcel = transport.pack(obj).settle()
            a, d, s, f = transport.unpack(parcel.data, parcel.descriptors())
            if not ((a == i).all() and len(a) == 5000 + k and d["k"] == k and (s == k).all() and f() == k):
                failures.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_pickle_outside_ndshare_makes_an_ordinary_copy() -> None:
    """Nothing is registered with copyreg."""
    shared = _arrays.ones(10)
    copy = pickle.loads(pickle.dumps(shared, 5))
    assert not segments.is_shared(copy)
    assert (copy == shared).all()


def test_task_of_an_unimportable_module_goes_by_value(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions and classes of a module the receiver lacks take their globals along."""
    (tmp_path / "only_here.py").write_text(
        "K = 3\nclass C:\n    def f(self): return g(1)\ndef g(x): return x + K\ndef h(): return C()\n"
    )
    with Peer() as fresh_peer:
        monkeypatch.syspath_prepend(tmp_path)
        import only_here  # type: ignore[import-not-found]

        with pytest.raises(ModuleNotFoundError):
            fresh_peer.call(only_here.g, 1)
        transport.by_value_modules.add("only_here")
        try:
            assert fresh_peer.call(only_here.g, 1) == 4
            assert type(fresh_peer.call(only_here.h)) is only_here.C
            assert fresh_peer.call(lambda m: m.C().f(), only_here) == 4
        finally:
            transport.by_value_modules.discard("only_here")


def test_tiny_task_is_tag_and_pickle() -> None:
    """No table, no blocks, no needs."""
    parcel = transport.pack((len, ([],), {})).settle()
    assert parcel.data[0] == 0
    assert (parcel.blocks, parcel.needs, parcel.descriptors()) == ((), frozenset(), [])
    assert pickle.loads(parcel.data[1:]) == (len, ([],), {})


def test_deliver_without_needs_is_nothing() -> None:
    """Tasks of importable modules cost no look at ``__main__``."""
    assert mainspace.deliver(transport.pack(len).needs, {}) is None
