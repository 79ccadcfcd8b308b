"""What every functor promises: shares, counts, values."""

from __future__ import annotations

import numpy as np
import pytest

import ndshare
from ndshare import functors
from ndshare.functors import Functor, count_items, find, gen_split_slices, values_of
from tests.functors.functor_tasks import entries

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("functor_types")]


# ---- shares


@pytest.mark.parametrize(("n", "k"), [(0, 1), (0, 3), (1, 1), (1, 4), (3, 7), (10, 3), (100, 8)])
def test_split_shares_cover_everything_once(n, k):
    """Share i of k starts at i*n//k; empty ones are allowed."""
    functor = find(range(n))
    shares = functor.split(k)
    assert shares == [slice(i * n // k, (i + 1) * n // k) for i in range(k)]
    assert [entry for share in shares for entry in functor.iterate(share)] == [(i, i) for i in range(n)]


@pytest.mark.parametrize("number", [0, -1])
def test_split_among_nobody_is_refused(number):
    """The number of workers is at least 1."""
    with pytest.raises(ValueError, match=f"num_workers is {number}; it must be at least 1"):
        find([1]).split(number)
    with pytest.raises(TypeError, match="num_workers is 'two'"):
        find([1]).split("two")


def test_gen_split_slices_by_length_and_by_number():
    """Parts are at most part_len long; part_len wins."""
    assert gen_split_slices(10, part_len=4) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert gen_split_slices(10, part_len=4, n_parts=1) == gen_split_slices(10, part_len=4)
    assert gen_split_slices(0, part_len=4) == []
    assert gen_split_slices(np.int64(4), n_parts=np.int64(2)) == [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "must specify either part_len or n_parts"),
        ({"part_len": 0}, "part_len is 0; it must be at least 1"),
        ({"n_parts": -2}, "n_parts is -2; it must be at least 1"),
    ],
)
def test_gen_split_slices_bad_number_is_refused(arguments, text):
    """Every number is checked."""
    with pytest.raises(ValueError, match=text):
        gen_split_slices(3, **arguments)
    with pytest.raises(ValueError, match="total_len is -1"):
        gen_split_slices(-1, n_parts=1)


def test_functor_without_methods_says_what_is_missing():
    """The base class divides what has a length and iterates over nothing."""

    class Empty(Functor):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define split, or __len__"):
        Empty().split(2)
    with pytest.raises(NotImplementedError, match="Empty must define iterate"):
        Empty().iterate(slice(0))
    assert Functor.wrap(3) is None


# ---- what a map may rely on


def test_count_items_is_none_for_shares_of_their_own():
    """A subclass that divides in its own way is not asked for other shares."""

    class ByList(functors.SequenceFunctor):
        def split(self, num_workers):
            return [[0, 2], [1]]

        def iterate(self, share):
            return ((i, self.sequence[i]) for i in share)

    class ByListCounted(ByList):
        def __len__(self):
            return 3

    assert count_items(find([1, 2])) == 2
    assert count_items(find(x for x in "a")) is None
    assert count_items(ByList("abc")) is None
    assert count_items(ByListCounted("abc")) == 3


def test_values_are_hidden_by_a_way_of_ones_own():
    """The fast path is closed as soon as a subclass iterates, divides or counts in its own way."""

    class Triple(functors.SequenceFunctor):
        def iterate(self, share):
            yield from ((i, value, 3 * value) for i, value in super().iterate(share))

    class Plain(functors.SequenceFunctor):
        def __init__(self, sequence):  # as pasha's own subclasses do, without super().__init__
            self.sequence = sequence
            self.values = "something else"

    assert values_of(Triple([1])) is None
    assert not hasattr(Triple([1]), "values")
    assert entries(Triple([5])) == [(0, 5, 15)]
    plain = Plain([1, 2])
    assert values_of(plain) == [1, 2]
    assert plain.values == "something else"


def test_top_level_names_are_those_of_the_package():
    """Five names are at the top, all are in `ndshare.functors`."""
    for name in ("Functor", "SequenceFunctor", "NdarrayFunctor", "DataArrayFunctor", "ExtraDataFunctor"):
        assert getattr(ndshare, name) is getattr(functors, name)
    assert functors.__all__ == sorted(set(functors.__all__))


def test_import_and_search_import_no_library(run_script):
    """Neither the package nor a search imports what the caller has not."""
    script = (
        "import sys\nfrom ndshare import functors\n"
        "functors.find([1]); functors.find(iter([]))\n"
        "try: functors.find(object())\nexcept ValueError: pass\n"
        "print([m for m in ('pandas', 'xarray', 'h5py', 'zarr', 'extra_data') if m in sys.modules])\n"
    )
    assert run_script(script).stdout.strip() == "[]"
