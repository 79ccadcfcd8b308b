"""Functors of sequences, arrays and iterators: values, views, and the way to a worker."""

from __future__ import annotations

import threading
from collections import deque
from itertools import count

import numpy as np
import pytest

import ndshare
from ndshare.functors import IteratorFunctor, NdarrayFunctor, SequenceFunctor, find, values_of
from tests.functors.functor_tasks import all_shared, entries, sums, travelled, write_everywhere

pytestmark = pytest.mark.once

_ARRAYS = {
    "1d": np.arange(6.0),
    "2d": np.arange(12).reshape(3, 4),
    "F order": np.asfortranarray(np.arange(24).reshape(4, 3, 2)),
    "strided": np.arange(40).reshape(8, 5)[::-2, ::3],
    "structured": np.zeros(4, "i4, (2,)f8"),
    "empty": np.zeros((0, 3)),
    "one": np.ones((1, 2)),
    "dates": np.arange(3).astype("M8[D]"),
    "masked": np.ma.masked_array(np.arange(6).reshape(3, 2), mask=[[0, 1]] * 3),
}


# ---- arrays


@pytest.mark.parametrize("array", _ARRAYS.values(), ids=_ARRAYS.keys())
def test_array_entries_are_views_of_rows(array):
    """Every value equals the row, has its type, and is no copy unless it is a scalar."""
    functor = find(array)
    got = entries(functor)
    assert [index for index, _ in got] == list(range(len(array)))
    for index, value in got:
        assert type(value) is type(array[index])
        assert np.array_equal(value, array[index])
        if np.ndim(value):
            assert np.shares_memory(value, array)
    assert values_of(functor) is array
    assert functor.values is array


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -3])
def test_array_axis_is_swapped_with_the_first(axis):
    """`axis` uses swapaxes: shape (2, 3, 4), axis 2 gives values of shape (3, 2)."""
    array = np.arange(24).reshape(2, 3, 4)
    functor = NdarrayFunctor(array, axis)
    expected = array if axis is None else np.swapaxes(array, 0, axis)
    assert len(functor) == len(expected)
    for index, value in entries(functor):
        assert np.array_equal(value, expected[index])
        assert np.shares_memory(value, array)
    assert NdarrayFunctor(array, axis=2).values[0].shape == (3, 2)


@pytest.mark.parametrize("axis", [2, -3, 100])
def test_array_axis_out_of_range_is_refused_at_the_call(axis):
    """The error is NumPy's own class and names what is allowed."""
    with pytest.raises(
        np.exceptions.AxisError, match=f"axis is {axis}, .* 2 dimensions; allowed are -2 to 1"
    ):
        NdarrayFunctor(np.zeros((2, 3)), axis)
    with pytest.raises(TypeError, match="axis is 'x'"):
        NdarrayFunctor(np.zeros((2, 3)), "x")


def test_array_without_dimensions_is_refused():
    """A 0-d array has no items."""
    for make in (find, NdarrayFunctor, SequenceFunctor):
        with pytest.raises(ValueError, match="no dimensions"):
            make(np.array(5))
    with pytest.raises(np.exceptions.AxisError):
        NdarrayFunctor(np.array(5), 0)


def test_array_like_with_axis_becomes_an_array():
    """A nested list may be mapped along its second axis."""
    assert [value.tolist() for _, value in entries(NdarrayFunctor([[1, 2, 3], [4, 5, 6]], 1))] == [
        [1, 4], [2, 5], [3, 6]
    ]  # fmt: skip
    assert entries(NdarrayFunctor([[1], [2, 3]])) == [(0, [1]), (1, [2, 3])]


# ---- sequences


@pytest.mark.parametrize(
    "sequence",
    [[1, "a", None], (1,), [], "", "äb", b"ab", range(3, 30, 5), deque([1, 2]), [[1], [], [2, 3]]],
    ids=repr,
)
def test_sequence_entries_are_its_items(sequence):
    """Ragged and empty ones too; values are what an index gives."""
    functor = find(sequence)
    assert entries(functor) == list(enumerate(sequence))
    assert len(functor) == len(sequence)
    assert functor.values is sequence
    assert entries(travelled(functor)) == entries(functor)


def test_sequence_slice_follows_pythons_rules():
    """Any slice may be asked for; anything else is refused."""
    functor = find("abcdef")
    assert entries(functor, 4, 100) == [(4, "e"), (5, "f")]
    assert entries(functor, 3, 3) == []
    assert list(functor.iterate(slice(None, None, 4))) == [(0, "a"), (4, "e")]
    with pytest.raises(TypeError, match=r"the share is 3 \(int\); give a slice"):
        list(functor.iterate(3))


@pytest.mark.parametrize("obj", [5, {"a": 1}, {1}, object(), (x for x in "a")], ids=repr)
def test_sequence_of_something_else_is_refused(obj):
    """What has no order, length or index is refused when the functor is made."""
    with pytest.raises(TypeError, match=f"SequenceFunctor: needs a sequence, .* got {type(obj).__name__}"):
        SequenceFunctor(obj)


def test_sequence_with_something_unpicklable_says_so():
    """The error of the transport names the type."""
    with pytest.raises(TypeError, match="lock"):
        travelled(find([threading.Lock()]))


# ---- the way to a worker


@pytest.mark.parametrize("array", _ARRAYS.values(), ids=_ARRAYS.keys())
def test_array_functor_travels_equal(array):
    """An ordinary array arrives equal and of the same type."""
    functor = find(array)
    back = travelled(functor)
    assert type(back) is NdarrayFunctor
    assert type(back.values) is type(array)
    for (i, sent), (k, got) in zip(entries(functor), entries(back), strict=True):
        assert i == k
        assert np.array_equal(sent, got)


def test_shared_array_is_written_through_its_swapped_view():
    """A worker writes columns of a shared array, and the caller sees it."""
    shared = ndshare.zeros((3, 4))
    functor = NdarrayFunctor(shared, axis=1)
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(write_everywhere, functor).result()
        assert executor.submit(all_shared, functor).result()
        assert executor.submit(all_shared, find([shared, shared[1:]])).result()
    assert np.array_equal(shared, np.broadcast_to([0, 10, 20, 30], (3, 4)))


def test_ordinary_array_stays_private_to_the_worker():
    """What a worker writes into values of an ordinary array is not seen by the caller."""
    array = np.ones((5, 2000))
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(write_everywhere, find(array)).result()
        assert [entry[:2] for entry in executor.submit(sums, find(array), 1, 3).result()] == [
            (1, 2000.0),
            (2, 2000.0),
        ]
    assert (array == 1).all()


# ---- iterators


def test_iterator_is_taken_in_batches():
    """A batch is as long as asked for, until the end."""
    functor = find(iter("abcde"))
    assert functor.take(2) == ["a", "b"]
    assert functor.taken == 2
    assert functor.take(5) == ["c", "d", "e"]
    assert functor.take(1) == []
    assert functor.taken == 5


def test_iterator_without_end_is_taken_no_further_than_asked():
    """Look-ahead is bounded."""
    numbers = count()
    assert IteratorFunctor(numbers).take(3) == [0, 1, 2]
    assert next(numbers) == 3


def test_iterator_error_comes_after_the_values_before_it():
    """Values made before an error are handed out first; then the error, once; then the end."""

    def failing():
        yield 1
        yield 2
        raise KeyError("third")

    functor = find(failing())
    assert functor.take(10) == [1, 2]
    with pytest.raises(KeyError, match="third"):
        functor.take(10)
    assert functor.take(10) == []


def test_iterator_interrupt_loses_nothing():
    """Ctrl-C is raised at once; the values before it come with the next batch."""

    class Interrupted:
        def __init__(self):
            self.n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            if self.n == 3:
                raise KeyboardInterrupt
            return self.n

    functor = find(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        functor.take(5)
    assert functor.taken == 0
    assert functor.take(4) == [1, 2, 4, 5]
    assert functor.take(1) == [6]


def test_iterator_entries_number_what_is_left():
    """One share holds everything that has not been taken."""
    functor = find(iter("abc"))
    functor.take(1)
    assert [list(functor.iterate(share)) for share in functor.split(4)] == [[(1, "b"), (2, "c")]]
    with pytest.raises(TypeError, match="without what comes before it"):
        list(functor.iterate(slice(0, 2)))


def test_iterator_bad_argument_is_refused():
    """A count below 1 or something that is no iterator."""
    with pytest.raises(ValueError, match="count is 0; it must be at least 1"):
        IteratorFunctor(iter("a")).take(0)
    with pytest.raises(TypeError, match="needs an iterator, got list"):
        IteratorFunctor([1])


def test_iterator_is_taken_by_threads_once_each():
    """Threads share an iterator without losing or repeating a value."""
    functor = find(x for x in range(2000))
    got: list[int] = []

    def work() -> None:
        while batch := functor.take(7):
            got.extend(batch)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(2000))


def test_iterator_cannot_travel_and_is_named():
    """Pickling a generator's functor is a TypeError that names it."""

    def readings():
        yield 1

    with pytest.raises(TypeError, match=r"cannot send the generator '.*readings' to another process"):
        travelled(find(readings()))
    with pytest.raises(TypeError, match="cannot send a list_iterator"):
        travelled(find(iter([1])))
