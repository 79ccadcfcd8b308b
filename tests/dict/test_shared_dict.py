"""What a SharedDict holds, gives and takes."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import copy
import ctypes
import multiprocessing
import pickle
import threading

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from tests.dict.dict_tasks import ended, forked

_DTYPES = [
    "?",
    "i1",
    "<u2",
    ">i4",
    "f2",
    "f8",
    "c16",
    "S3",
    "U4",
    "M8[ns]",
    "m8[25s]",
    "V5",
    [("x", "f4"), ("y", "i2", (2, 3))],
    [("a", [("b", "u1"), ("c", ">f8")])],
    np.dtype([("x", "u1"), ("y", "f8")], align=True),
]


def _some(dtype: object, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    dtype = np.dtype(dtype)
    n = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(bytes(i % 2 for i in range(n)), dtype).reshape(shape)


@pytest.fixture
def d():
    """A dict of two keys."""
    with SharedDict({"a": np.arange(4.0), "b": np.zeros((2, 3), int)}) as shared:
        yield shared


def _content(array):
    """Return what an array means: between the fields of a record there may be anything."""
    names = array.dtype.names
    return [array[name].tobytes() for name in names] if names else array.tobytes()


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_shared_dict_every_dtype_there_and_back(dtype):
    """A value of each kind of dtype is the same for who made the dict, who attaches, and after a write."""
    value = _some(dtype)
    with SharedDict({"x": value, "y": value[0, 0]}) as made, SharedDict.attach(made.name) as seen:
        for shared in (made, seen):
            assert shared["x"].dtype == value.dtype
            assert _content(shared["x"]) == _content(value)
            assert shared["y"].shape == ()
        made["x"] = value[::-1]
        assert _content(seen["x"]) == _content(value[::-1])
        assert _content(seen.view("x")) == _content(value[::-1])
        with seen.locked("x") as x:
            x[...] = value
        assert _content(made["x"]) == _content(value)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3, 4), (1,) * 20])
def test_shared_dict_every_shape(shape):
    """0-d, empty and many-dimensional arrays."""
    with SharedDict({"x": np.ones(shape)}) as made, SharedDict.attach(made.name) as seen:
        assert seen["x"].shape == shape
        assert seen.update({"x": 1}, lambda new, old: old + new)["x"].shape == shape
        assert (made["x"] == 2).all()
        assert made.version("x") == 2


def test_shared_dict_keys_of_each_kind():
    """Keys that can be written are the same for who attaches, in the same order."""
    keys = ["text", "", "\u00e4\udc80", 3, -(2**70), True, None, ("a", 1), ("a", ("b", None, False)), ()]
    with SharedDict(dict.fromkeys(keys, 1.0)) as made, SharedDict.attach(made.name) as seen:
        assert list(seen) == keys == list(made.keys())
        assert [type(key) for key in seen] == [type(key) for key in keys]
        assert ("a", 1) in seen
        assert len(seen) == 10
        seen["a", 1] = 2.0
        assert made["a", 1] == 2.0


def test_shared_dict_other_keys_go_by_their_index():
    """A hashable key that cannot be written is its index for who attaches, and itself after a pickle."""
    keys = ["a", 2.5, frozenset({1}), np.int64(7)]
    with SharedDict(dict(zip(keys, range(4), strict=True))) as made, SharedDict.attach(made.name) as seen:
        assert list(made) == keys
        assert list(seen) == ["a", 1, 2, 3]
        seen[2] = 20
        assert made[frozenset({1})] == 20
        with pickle.loads(pickle.dumps(made)) as twin:
            assert list(twin) == keys
        arrays = dict(zip(keys, range(4), strict=True))
        with SharedDict.open(made.name, arrays) as other:
            assert other[2.5] == 1
    with pytest.raises(ValueError, match="is a key too"):
        SharedDict({"a": 0, 2.5: 1, 1: 2})


def test_shared_dict_values_are_private_copies(d):
    """What is read or returned is nobody else's; what was written is not the writer's."""
    mine = np.ones(4)
    d["a"] = mine
    mine[:] = 9
    assert (d["a"] == 1).all()
    d["a"][:] = 9
    d.read()["a"][:] = 9
    dict(d.items())["a"][:] = 9
    given = np.full(4, 3.0)
    out = d.update({"a": given}, lambda new, old: new)["a"]
    out[:] = 9
    assert (given == 3).all()
    out = d.update({"a": given}, lambda new, old: old)["a"]
    out[:] = 9
    assert (d["a"] == 3).all()


def test_shared_dict_update_results(d):
    """The function gets (new, old) as they are, its result is cast, stored and returned, in the order given."""
    seen = []

    def func(new, old):
        seen.append((new, type(old), old.flags.writeable))
        return new

    out = d.update({"b": 2, "a": "12"}, lambda new, old: func(int(new), old))
    assert list(out) == ["b", "a"]
    assert out["a"].dtype == float
    assert (out["a"] == 12).all()
    assert (out["b"] == 2).all()
    assert seen == [(2, np.ndarray, True), (12, np.ndarray, True)]
    views = d.update({"a": 1.5}, lambda new, old: (old.flags.writeable, new)[1], copy=False)
    assert not views["a"].flags.writeable
    assert d.is_intact(views["a"])
    assert (views["a"] == 1.5).all()


def test_shared_dict_update_failing_function_changes_nothing(d):
    """An error in the function leaves key and lock as they were."""
    for atomic in (False, True):
        with pytest.raises(ZeroDivisionError):
            d.update({"a": 0}, lambda new, old: 1 // 0, atomic=atomic)
    assert (d["a"] == np.arange(4)).all()
    assert d.version("a") == 1
    with SharedDict.attach(d.name) as other:
        other.update({"a": 1}, lambda new, old: old + new, timeout=0)

    def second_fails(new, old):
        if new == 2:
            raise KeyError("no")
        return new

    with pytest.raises(KeyError):
        d.update({"a": 1, "b": 2}, second_fails, atomic=True)
    assert (d["a"] == np.arange(4) + 1).all()
    with pytest.raises(KeyError):
        d.update({"a": 1, "b": 2}, second_fails)
    assert (d["a"] == 1).all()


def test_shared_dict_casting_and_broadcasting_as_numpy(d):
    """What NumPy would refuse is refused in its words, with the key, before anything is written."""
    d["a"] = np.float32(2)
    d["b"] = [[1], [2]]
    assert d["b"].tolist() == [[1] * 3, [2] * 3]
    with pytest.raises(TypeError, match="same_kind") as refused:
        d.write({"a": 1, "b": 0.5})
    assert "key 'b'" in "\n".join(refused.value.__notes__)
    with pytest.raises(ValueError, match="broadcast"):
        d.write({"a": 1, "b": np.zeros(2, int)})
    assert (d["a"] == 2).all()
    with pytest.raises(TypeError, match="return the new value"):
        d.update({"a": 1}, lambda new, old: None)
    assert d.version("a") == 2


def test_shared_dict_unknown_key_names_the_known_ones(d):
    """A key that is not there: KeyError, before anything is written."""
    for use in (
        lambda: d["c"],
        lambda: d.write({"a": 7, "c": 1}),
        lambda: d.locked("c"),
        lambda: d.read(["c"]),
    ):
        with pytest.raises(KeyError, match=r"'c' is not a key.*'a', 'b'"):
            use()
    assert d.version("a") == 1
    assert "c" not in d
    assert d.get("c") is None
    with pytest.raises(TypeError, match="several keys"):
        d.read("a")
    with pytest.raises(TypeError, match="cannot be deleted"):
        del d["a"]


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"a": np.array([None])}, TypeError),
        ({"a": np.array([1, 2], "O")}, TypeError),
        ({"a": np.array(["x"], np.dtypes.StringDType())}, TypeError),
        ([1, 2], TypeError),
        (None, TypeError),
        ({"a": [[1], [1, 2]]}, ValueError),
    ],
)
def test_shared_dict_what_cannot_be_shared_is_refused(arrays, error):
    """Objects, and what is no mapping, are refused; nothing is left."""
    with pytest.raises(error):
        SharedDict(arrays)


@pytest.mark.parametrize("name", ["", ".a", "a/b", "../a", "a b", "a\0", "x" * 201, "-a", "ä"])
def test_shared_dict_name_is_checked(name):
    """A name that is no plain file name is refused."""
    for use in (lambda: SharedDict({}, name), lambda: SharedDict.attach(name)):
        with pytest.raises(ValueError, match="cannot be named"):
            use()
    with pytest.raises(TypeError):
        SharedDict({}, 3)


def test_shared_dict_locked_publishes_or_drops(d):
    """A block publishes at its end, an exception drops; afterwards the arrays are read-only."""
    with d.locked("a") as a:
        a += 1
        assert (d["a"] == np.arange(4)).all()
    assert (d["a"] == np.arange(4) + 1).all()
    assert not a.flags.writeable
    with pytest.raises(KeyError), d.locked("b", "a") as (b, a):
        a += 5
        b += 5
        raise KeyError
    assert (d["a"] == np.arange(4) + 1).all()
    with d.locked("b", "a") as (b, a):
        assert a.shape == (4,)
        assert (a == np.arange(4) + 1).all()
        b += 1
    assert (d["b"] == 1).all()
    assert (d.version("a"), d.version("b")) == (3, 2)
    with pytest.raises(TypeError, match="at least one"):
        d.locked()


@pytest.mark.parametrize("n", [4, 40_000], ids=["small", "large"])
def test_shared_dict_what_is_made_of_locked_arrays_reaches_nothing_afterwards(n):
    """Views, views of views, memoryviews, pointers: after the block the dict and its arrays do not follow them."""

    def everything(array):
        strided = np.lib.stride_tricks.as_strided(array, (n // 2,), (16,))
        return [
            array[:2],
            array[1:][:2],
            array.reshape(2, -1).T[:2],
            array.view("u1"),
            array.base,
            strided,
            memoryview(array),
            memoryview(array[1:3]).cast("B"),
            np.frombuffer(array, "i8"),
            (ctypes.c_double * n).from_buffer(array),
            np.ctypeslib.as_array(array.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), (n,)),
            array.flat,
            np.ma.masked_array(array, copy=False),
            np.from_dlpack(array),
        ]

    with SharedDict({"a": np.zeros(n), "b": np.zeros(n)}) as d, SharedDict.attach(d.name) as other:
        for round_ in range(4):
            for leave_by_error in (False, True):
                with contextlib.suppress(ZeroDivisionError), d.locked("b", "a") as arrays:
                    made = [everything(array) for array in arrays]
                    for array in arrays:
                        array += 1
                    if leave_by_error:
                        raise ZeroDivisionError
                for array, things in zip(arrays, made, strict=True):
                    assert not array.flags.writeable
                    with pytest.raises(ValueError, match="WRITEABLE"):
                        array.flags.writeable = True
                    with pytest.raises(ValueError, match="own its"):
                        array.resize(2, refcheck=False)
                    for thing in things:
                        with contextlib.suppress(ValueError):  # read-only, or of nobody else
                            thing[0] = 99
                for key in "ab":
                    assert (d[key] == round_ + 1).all()
                    assert (other[key] == round_ + 1).all()


def test_shared_dict_locked_arrays_keep_their_value():
    """After the block they show what was published, whatever is published later."""
    for n in (4, 40_000):
        with SharedDict({"a": np.zeros(n)}) as d:
            kept = []
            for _ in range(4):
                with d.locked("a") as a:
                    a += 1
                kept.append(a[1:])
            assert [int(part.max()) for part in kept] == [int(part.min()) for part in kept] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")  # NumPy 2.5 and later advise against it
def test_shared_dict_locked_array_of_other_shape_is_published_by_its_bytes(d):
    """Setting shape and dtype of the array in place changes how it is seen, not how much memory is published."""
    with d.locked("a") as a:
        a.shape = (2, 2)
        a[1] = 7
        a.dtype = a.dtype.newbyteorder("=")
    assert d["a"].tolist() == [0, 1, 7, 7]
    with pytest.raises(RuntimeError, match="was resized"), d.locked("a") as a:
        a.base.resize(7, refcheck=False)
    assert d["a"].tolist() == [0, 1, 7, 7]


@pytest.mark.parametrize("n", [4, 40_000], ids=["small", "large"])
def test_shared_dict_lends_nothing_that_can_be_written(n):
    """Views, in every way they are had, and what is made of them, stay read-only."""
    with SharedDict({"a": np.zeros(n)}) as d:
        seen = []
        d.update({"a": 0.0}, lambda new, old: (seen.append(old), old + new)[1], copy=False)
        seen += [d.view("a"), d.update({"a": 0.0}, lambda new, old: old + new, copy=False)["a"]]
        seen += [d.update({"a": 0.0}, lambda new, old: old + new, copy=False, atomic=True)["a"]]
        for view in seen:
            for thing in (view, view[1:], np.lib.stride_tricks.as_strided(view), view.reshape(2, -1)):
                with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
                    thing[...] = 1
                with pytest.raises(ValueError, match="WRITEABLE"):
                    thing.flags.writeable = True
            assert memoryview(view).readonly
            assert not np.frombuffer(view, "u1").flags.writeable
            with pytest.raises((TypeError, BufferError)):
                (ctypes.c_double * n).from_buffer(view)
        assert (d["a"] == 0).all()


def test_shared_dict_view_is_valid_until_the_second_update(d):
    """A view shows one value; the check tells when it does not any more; it outlives the dict."""
    view = d.view("a")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    part = view[1:3]
    d["a"] = 5
    assert d.is_intact(part)
    assert (part == [1, 2]).all()
    d["a"] = 6
    assert not d.is_intact(part)
    assert not SharedDict.is_intact(view)
    with pytest.raises(TypeError, match="no view"):
        d.is_intact(np.zeros(3))
    fresh = d.view("a")
    d.close()
    assert (fresh == 6).all()


def test_shared_dict_wait_wakes_for_a_newer_version(d):
    """wait() returns when a newer value is there, at once if it is already, and gives up in time."""
    assert d.wait("a", 0) == 1
    with pytest.raises(TimeoutError, match=r"newer than version 1.*within 0\.01 s"):
        d.wait("a", 1, timeout=0.01)
    with pytest.raises(ndshare.KeyTimeoutError):
        d.wait("a", timeout=0)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        waiters = [threads.submit(d.wait, "a", 1, 60) for _ in range(3)]
        name = d.name

        def write_once():
            with SharedDict.attach(name) as other:
                other["a"] = 4

        pid = forked(write_once)
        assert [waiter.result() for waiter in waiters] == [2, 2, 2]
    assert ended(pid) == 0
    with pytest.raises(ValueError, match="timeout"):
        d.wait("a", timeout=-1)


def test_shared_dict_facts(d):
    """repr, specs, nbytes, name, path, closed."""
    assert repr(d).startswith(f"<ndshare.SharedDict '{d.name}', 80 bytes: {{'a': float64 (4,), 'b': int64")
    assert d.specs["b"].shape == (2, 3)
    assert d.specs["b"].dtype == int
    assert d.nbytes == 80
    assert d.path is None
    assert not d.closed
    assert d == d
    assert d != SharedDict
    assert len({d}) == 1
    assert isinstance(d, collections.abc.Mapping)
    d.close()
    assert "closed" in repr(d)
    assert d.closed
    d.close()
    for use in (
        lambda: d["a"],
        d.read,
        lambda: d.write({"a": 1}),
        lambda: d.update({"a": 1}, max),
        lambda: d.locked("a"),
        lambda: d.version("a"),
        lambda: d.view("a"),
        d.__enter__,
    ):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_shared_dict_travels_as_its_name(d):
    """Pickle, copy, executors of ndshare: all see the same values."""
    for twin in (pickle.loads(pickle.dumps(d)), copy.copy(d), copy.deepcopy(d)):
        with twin:
            assert twin.name == d.name
            twin.update({"a": 1}, lambda new, old: old + new)
    assert (d["a"] == np.arange(4) + 3).all()
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_double, d).result()
    assert (d["a"] == 2 * (np.arange(4) + 3)).all()


def _double(d: SharedDict) -> None:
    with d:
        d.update({"a": None}, lambda _, old: 2 * old)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_shared_dict_last_user_in_multiprocessing_removes_it(method):
    """A process of multiprocessing that ends without closing has closed, also as the last user."""
    context = multiprocessing.get_context(method)
    d = SharedDict({"a": np.zeros(3)})
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(d, ready, go))
    process.start()
    assert ready.wait(60)
    name = d.name
    d.close()
    with SharedDict.attach(name) as again:
        assert (again["a"] == 1).all()
    go.set()
    process.join()
    assert process.exitcode == 0
    with pytest.raises(FileNotFoundError, match="there is no SharedDict"):
        SharedDict.attach(name)


def _hold(d, ready, go):
    d["a"] = 1
    ready.set()
    go.wait(60)


def test_shared_dict_without_keys():
    """No keys at all is a dict, too."""
    with SharedDict({}) as d, SharedDict.attach(d.name) as e:
        assert e.read() == {}
        assert list(e) == []
        e.write({}, atomic=True)
        assert e.update({}, max, atomic=True) == {}


def test_shared_dict_threads_share_one(d):
    """Threads update one key at once: no update is lost."""
    barrier = threading.Barrier(4)

    def add(_):
        barrier.wait()
        for _ in range(200):
            d.update({"a": 1}, lambda new, old: old + new)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(4)))
    assert (d["a"] == np.arange(4) + 800).all()
    assert d.version("a") == 801


def test_shared_dict_ten_thousand_keys():
    """Many keys work, one by one, all together, and as one store."""
    with SharedDict({i: np.full(2, i) for i in range(10_000)}) as d, SharedDict.attach(d.name) as e:
        d.write(dict.fromkeys(range(10_000), 7), atomic=True)
        assert all((value == 7).all() for value in e.read().values())
        e.update(dict.fromkeys(range(0, 10_000, 100), 1), lambda new, old: old + new)
        assert sum(int(value[0]) for value in d.values()) == 70_100


# SHMArrays' README, with native names --------------------------------------------------------------------


def test_shared_dict_does_what_shmarrays_documents():
    """Init with a dict, attach elsewhere, read, and update with a function of new and old."""
    array_dict = collections.OrderedDict(
        [(k, np.random.default_rng(k).normal(size=(10, 10))) for k in range(10)]
    )
    with SharedDict(array_dict) as shm_array, SharedDict.attach(shm_array.name) as shm_array2:
        read_vals = shm_array2.read()
        assert list(read_vals) == list(range(10))
        results = shm_array2.update(array_dict, lambda new, old: 0.1 * new + 0.9 * old)
        for k in range(10):
            assert np.allclose(results[k], array_dict[k])
            assert (shm_array[k] == results[k]).all()


def test_shared_dict_distributed_gradient_descent_sums_every_update():
    """4 processes of 1,000 updates each: the exact sum of all of them, on every key."""
    state = {"w": np.zeros((20, 5)), "b": np.zeros(5)}
    with SharedDict(state) as shared:

        def descend(rank):
            with SharedDict.attach(shared.name) as state_shm:
                for i in range(1000):
                    gradient = {"w": np.full((20, 5), float(i % 7)), "b": np.full(5, float(rank))}
                    state_shm.update(gradient, lambda grad, state: state - 2.0 * grad)

        pids = [forked(lambda rank=rank: descend(rank)) for rank in range(4)]
        assert [ended(pid) for pid in pids] == [0] * 4
        assert (shared["w"] == -2.0 * 4 * sum(i % 7 for i in range(1000))).all()
        assert (shared["b"] == -2.0 * 1000 * (0 + 1 + 2 + 3)).all()
        assert shared.version("w") == 4001
