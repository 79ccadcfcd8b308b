"""Update functions whose result is made in the idle slot: nobody notices, whatever they do with their arrays."""

from __future__ import annotations

import contextvars
import gc
import os
import threading

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from tests.dict.dict_tasks import LARGE, ended, forked

pytestmark = pytest.mark.once

N = LARGE


@pytest.fixture(params=[True, False], ids=["copy", "views"])
def copy(request):
    """Whether functions get private copies."""
    return request.param


@pytest.fixture
def d():
    """A dict of two large arrays."""
    with SharedDict({"a": np.arange(N, dtype=float), "b": np.zeros(N)}) as shared:
        yield shared


def _address(array):
    return array.__array_interface__["data"][0]


def _average(new, old):
    return 0.5 * new + 0.5 * old


def _average_by_calls(new, old):
    """The same without temporaries that are used again, as NumPy does it where it cannot tell them."""
    return np.add(np.multiply(0.5, new), np.multiply(0.5, old))


def _average_of_many(new, old):
    return np.mean([np.array(new), np.array(old), np.array(new), np.array(old)], axis=0)


@pytest.mark.parametrize("function", [_average, _average_by_calls, _average_of_many])
def test_lending_result_is_made_in_the_slot(d, copy, function):
    """What a function makes is at the same two addresses again and again, one for each slot.

    Which of the blocks that it asks for is the result's is learned from the first call.
    """
    seen = []

    def average(new, old):
        result = function(new, old)
        seen.append(_address(result))
        return result

    expected = d["a"]
    for i in range(11):
        returned = d.update({"a": np.full(N, i)}, average, copy=copy)["a"]
        expected = function(np.full(N, i), expected)
        assert (returned == expected).all()
        assert returned.flags.writeable == copy
        assert (d["a"] == expected).all()
    assert len(set(seen[1:])) == 2
    assert seen[1:3] * 5 == seen[1:]


def test_lending_functions_that_ask_for_other_blocks_in_turn(d, copy):
    """What was learned of one function may be wrong for the next one: values are right, whoever it is."""
    expected = d["a"]
    for i in range(12):
        function = (_average, _average_by_calls, _average_of_many, lambda new, old: new)[i % 4]
        returned = d.update({"a": np.full(N, i)}, function, copy=copy)["a"]
        expected = function(np.full(N, i), expected)
        assert (returned == expected).all()
        assert (d["a"] == expected).all()


def _kept(keep, new, old):
    keep.append(old + new)
    return keep[-1] * 2


def _kept_result(keep, new, old):
    keep.append(old + new)
    return keep[-1]


def _kept_view(keep, new, old):
    result = old + new
    keep.append(result[3:])
    return result


def _kept_memoryview(keep, new, old):
    result = old + new
    keep.append(memoryview(result))
    return result


def _part(keep, new, old):
    return np.concatenate((old + new, old))[:N]


def _reversed(keep, new, old):
    return (old + new)[::-1]


def _reshaped(keep, new, old):
    return (old + new).reshape(2, -1).reshape(-1)


def _other_dtype(keep, new, old):
    return (old + new).astype(np.float32)


def _scalar(keep, new, old):
    keep.append(old + new)
    return 3


def _new_itself(keep, new, old):
    keep.append(old + new)
    return new


def _old_itself(keep, new, old):
    keep.append(old.copy())
    return old


def _zeros(keep, new, old):
    keep.append(np.zeros(N))
    result = np.zeros_like(old)
    result[5] = 1
    return result


def _resized(keep, new, old):
    result = old + new
    result.resize(N + 7, refcheck=False)
    result.resize(N, refcheck=False)
    return result


def _text(keep, new, old):
    keep.append(np.empty(N, "S8"))
    keep[-1][:] = b"text"
    return old + new


@pytest.mark.parametrize(
    "function",
    [
        *(
            _kept,
            _kept_result,
            _kept_view,
            _kept_memoryview,
            _part,
            _reversed,
            _reshaped,
            _other_dtype,
            _scalar,
        ),
        *(_new_itself, _old_itself, _zeros, _resized, _text),
    ],
)
def test_lending_any_function_has_private_arrays(d, copy, function):
    """Whatever a function returns and keeps: values are right, later ones do not change what was kept."""
    new = np.full(N, 2.0)
    keep, model = [], []
    old = d["a"]
    for _ in range(5):
        expected = np.array(np.broadcast_to(function(model, new, old.copy()), N), float)
        returned = d.update({"a": new}, lambda n, o: function(keep, n, o), copy=copy)["a"]
        assert (returned == expected).all()
        if copy:
            returned[:] = -1  # of the caller alone
        assert (d["a"] == expected).all()
        old = expected
    for kept, wanted in zip(keep, model, strict=True):
        assert np.array_equal(np.asarray(kept), np.asarray(wanted))
        np.asarray(kept)[:] = 0  # of the function alone
    assert (d["a"] == old).all()
    assert (new == 2).all()
    d.close()
    for kept in keep:
        assert not np.asarray(kept, np.asarray(kept).dtype).any() or np.asarray(kept).dtype.kind == "S"


def test_lending_function_that_fails_keeps_its_arrays(d, copy):
    """After an exception nothing is stored, and what the function had made is its own."""

    def fail(new, old):
        made = old + new
        raise ZeroDivisionError(made)

    before = d["a"]
    with pytest.raises(ZeroDivisionError) as caught:
        d.update({"a": 1}, fail, copy=copy)
    d["a"] = 7
    d["a"] = 8
    assert (caught.value.args[0] == before + 1).all()
    assert d.version("a") == 3


def test_lending_fork_in_the_function(d, copy):
    """The child of a fork inside the function goes on with a private copy; the parent publishes its own."""

    def fork(new, old):
        made = old + new

        def change():
            made[:] = -5
            assert (made == -5).all()

        assert ended(forked(change)) == 0
        return made

    expected = d["a"] + 1
    for _ in range(2):
        assert (d.update({"a": 1}, fork, copy=copy)["a"] == expected).all()
        assert (d["a"] == expected).all()
        expected = expected + 1


def test_lending_child_that_returns_from_the_function_stores_nothing(d, copy):
    """In the child of a fork inside the function, update raises: the lock is its parent's."""

    def fork(new, old):
        made = old + new
        pid = os.fork()
        if pid == 0:
            made[:] = -5
            return made
        assert ended(pid) == 0
        return made

    parent = os.getpid()
    before = d["a"]
    try:
        d.update({"a": 1}, fork, copy=copy)
    except RuntimeError:
        os._exit(0 if os.getpid() != parent else 1)
    except BaseException:
        if os.getpid() != parent:
            os._exit(1)
        raise
    assert os.getpid() == parent
    assert (d["a"] == before + 1).all()


def test_lending_nested_updates(d, copy):
    """A function may update a later key and another dict; each value goes where it belongs."""
    with SharedDict({"c": np.ones(N)}) as other:

        def inner(new, old):
            return old + new

        def outer(new, old):
            made = old + new
            d.update({"b": 5.0}, inner, copy=copy)
            other.update({"c": 6.0}, inner, copy=copy)
            return made * 2

        expected = d["a"]
        for i in range(1, 4):
            d.update({"a": 1.0}, outer, copy=copy)
            expected = (expected + 1) * 2
            assert (d["a"] == expected).all()
            assert (d["b"] == 5 * i).all()
            assert (other["c"] == 1 + 6 * i).all()


def test_lending_leaves_the_memory_of_others_alone(d, copy):
    """Inside `shared_memory()` what a function makes is shared; afterwards NumPy's allocator is what it was."""
    made = []

    def add(new, old):
        made.append(old + new)
        return made[-1]

    before = np._core.multiarray.get_handler_name()
    with ndshare.shared_memory():
        d.update({"a": 1.0}, add, copy=copy)
        assert ndshare.is_shared(made[0])
    d.update({"a": 1.0}, add, copy=copy)
    assert not ndshare.is_shared(made[1])
    assert np._core.multiarray.get_handler_name() == before
    assert (d["a"] == np.arange(N) + 2).all()


def test_lending_threads_update_different_keys(d, copy):
    """Two threads of a process, a key each, and a reader: every update counts."""
    keep = {"a": [], "b": []}

    def work(key):
        for i in range(100):

            def add(new, old):
                made = old + new
                if i % 10 == 0:
                    keep[key].append((made, float(made[0])))
                return made

            d.update({key: 1.0}, add, copy=copy)

    threads = [threading.Thread(target=work, args=(key,)) for key in "ab"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        b = d["b"]
        assert (b == b[0]).all()
    for thread in threads:
        thread.join()
    assert (d["a"] == np.arange(N) + 100).all()
    assert (d["b"] == 100).all()
    assert all(made[0] == value for key in "ab" for made, value in keep[key])


def test_lending_context_that_lives_on_in_another_thread(d, copy):
    """Arrays made in a copy of the function's context, by another thread, are never in a slot."""
    contexts = []

    def keep_context(new, old):
        contexts.append(contextvars.copy_context())
        return old + new

    for _ in range(2):  # one for each slot
        d.update({"a": 1.0}, keep_context, copy=copy)
    made = []

    def work(context):
        made.append(context.run(np.full, N, 3.0))

    def meanwhile(new, old):
        for context in contexts:
            thread = threading.Thread(target=work, args=(context,))
            thread.start()
            thread.join()
        return old + new

    for i in range(4):
        d.update({"a": 1.0}, meanwhile, copy=copy)
        assert (d["a"] == np.arange(N) + 3 + i).all()
    assert all((array == 3).all() for array in made)


def test_lending_arrays_outlive_the_dict():
    """What a function kept stays readable when the dict is closed and gone."""
    keep = []
    with SharedDict({"a": np.zeros(N)}) as d:
        for _ in range(300):  # more than there are second mappings
            d.update({"a": 1.0}, lambda new, old: _kept_result(keep, new, old))
    del d
    gc.collect()
    assert [made[-1] for made in keep] == list(range(1, 301))
