"""Functors of xarray and pandas objects."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("xarray")

import pandas as pd
import xarray as xr

import ndshare
from ndshare.functors import (
    DataArrayFunctor,
    DataFrameFunctor,
    DatasetFunctor,
    GroupByFunctor,
    IndexFunctor,
    NdarrayFunctor,
    RollingFunctor,
    SeriesFunctor,
    XarrayGroupByFunctor,
    find,
    values_of,
)
from tests.functors.functor_tasks import all_shared, entries, travelled

pytestmark = pytest.mark.once


def _cube() -> xr.DataArray:
    return xr.DataArray(
        np.arange(24.0).reshape(2, 3, 4),
        dims=("x", "y", "z"),
        coords={"z": list("abcd"), "x": [10, 20]},
        name="cube",
    )


# ---- xarray


@pytest.mark.parametrize(("dim", "rest"), [(None, "yz"), ("x", "yz"), ("y", "xz"), ("z", "xy")])
def test_data_array_dim_is_moved_to_the_front(dim, rest):
    """`dim` transposes: the other dimensions keep their order; values are views with labels."""
    cube = _cube()
    functor = DataArrayFunctor(cube, dim)
    got = entries(functor)
    assert len(got) == len(functor) == cube.sizes[dim or "x"]
    for index, value in got:
        assert value.dims == tuple(rest)
        assert value.identical(cube.isel({dim or "x": index}))
        assert value.identical(functor.values[index])
        assert np.shares_memory(value.values, cube.values)


def test_data_array_is_found_and_is_an_ndarray_functor():
    """As in pasha, the class derives from NdarrayFunctor."""
    functor = find(_cube())
    assert type(functor) is DataArrayFunctor
    assert isinstance(functor, NdarrayFunctor)
    assert values_of(functor).identical(_cube())
    assert all(
        a.identical(b) for (_, a), (_, b) in zip(entries(functor), entries(travelled(functor)), strict=True)
    )


def test_data_array_bad_input_is_refused():
    """An unknown dimension is named with those there are; no dimension is an error too."""
    with pytest.raises(ValueError, match=r"dim is 'q', but the array has the dimensions \('x', 'y', 'z'\)"):
        DataArrayFunctor(_cube(), "q")
    with pytest.raises(ValueError, match="no dimensions"):
        find(xr.DataArray(5))
    with pytest.raises(TypeError, match=r"needs an xarray.DataArray, got ndarray"):
        DataArrayFunctor(np.zeros(3), "x")
    assert entries(find(xr.DataArray(np.zeros((0, 2))))) == []


def test_dataset_is_taken_along_its_leading_dimension():
    """Variables without the dimension are in every value; arrays are views."""
    data = xr.Dataset(
        {"image": (("run", "x"), np.arange(6.0).reshape(3, 2)), "dose": ("run", [1, 2, 3]), "unit": "Gy"},
        coords={"run": [7, 8, 9]},
    )
    functor = find(data)
    assert type(functor) is DatasetFunctor
    assert (len(functor), functor.dim) == (3, "run")
    for index, value in entries(functor):
        assert value.identical(data.isel(run=index))
        assert np.shares_memory(value.image.values, data.image.values)
    back = travelled(functor)
    assert [value.identical(data.isel(run=i)) for i, value in entries(back, 1, 3)] == [True, True]


def test_dataset_dimension_is_chosen_or_asked_for():
    """An explicit dimension wins; without one the variables have to agree."""
    data = xr.Dataset({"a": (("x", "y"), np.zeros((2, 3))), "b": (("y",), np.ones(3))})
    assert len(DatasetFunctor(data, "y")) == 3
    with pytest.raises(ValueError, match=r"different dimensions, \['x', 'y'\]; choose one by .*dim='x'"):
        find(data)
    with pytest.raises(ValueError, match=r"dim is 'q', but the Dataset has the dimensions \('x', 'y'\)"):
        DatasetFunctor(data, "q")
    with pytest.raises(ValueError, match="no dimension to map over"):
        find(xr.Dataset({"a": 3}))
    with pytest.raises(TypeError, match=r"needs an xarray.Dataset, got DataArray"):
        DatasetFunctor(_cube())
    assert len(find(xr.Dataset(coords={"t": [1, 2]}))) == 2


def test_shared_data_array_stays_shared_in_a_worker():
    """The values a worker sees lie in the caller's memory."""
    shared = ndshare.share(_cube())
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(all_shared, DataArrayFunctor(shared, "z")).result()
        assert not executor.submit(all_shared, DataArrayFunctor(_cube(), "z")).result()


# ---- rows and values of pandas


def test_data_frame_entries_are_rows():
    """A row is a Series whose name is its label."""
    frame = pd.DataFrame({"a": [1, 2, 3], "b": list("xyz")}, index=[10, 20, 30])
    functor = find(frame)
    assert type(functor) is DataFrameFunctor
    for got in (entries(functor), entries(travelled(functor))):
        assert [(i, row.name, row["a"], row["b"]) for i, row in got] == [
            (0, 10, 1, "x"),
            (1, 20, 2, "y"),
            (2, 30, 3, "z"),
        ]
    assert entries(find(frame.iloc[:0])) == []
    with pytest.raises(TypeError, match=r"needs a pandas.DataFrame, got list"):
        DataFrameFunctor([1])


def test_data_frame_of_one_dtype_gives_views():
    """Rows of a frame with one dtype are not copied."""
    frame = pd.DataFrame(np.zeros((3, 2)))
    assert all(np.shares_memory(row.to_numpy(), frame.to_numpy()) for _, row in entries(find(frame)))


@pytest.mark.parametrize(
    "series",
    [
        pd.Series([1.5, 2.5], index=["a", "b"], name="n"),
        pd.Series([1, 2]),
        pd.Series([True, False]),
        pd.Series(["a", None]),
        pd.Series(["a", 1, None], dtype=object),
        pd.Series(pd.date_range("2020", periods=3)),
        pd.Series(pd.date_range("2020", periods=3, tz="UTC")),
        pd.Series(pd.to_timedelta([1, 2], unit="s")),
        pd.Series(pd.Categorical(["x", "y", "x"])),
        pd.Series([1, None], dtype="Int64"),
        pd.Series([], dtype="f8"),
    ],
    ids=lambda series: str(series.dtype),
)
def test_series_entries_are_its_values(series):
    """Values have the types that iloc gives, also on the other side."""
    functor = find(series)
    assert type(functor) is SeriesFunctor
    assert len(functor) == len(series)
    for some in (functor, travelled(functor)):
        for index, value in entries(some):
            assert type(value) is type(series.iloc[index])
            assert value is series.iloc[index] or value == series.iloc[index] or value != value
            assert type(some.values[index]) is type(value)


def test_series_of_something_else_is_refused():
    """A frame is no series."""
    with pytest.raises(TypeError, match=r"needs a pandas.Series, got DataFrame"):
        SeriesFunctor(pd.DataFrame())


# ---- groups


def _table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "k": ["b", "a", "b", None, "a", "c"],
            "n": [1, 2, 1, 2, 1, 2],
            "v": np.arange(6.0),
            "c": pd.Categorical(list("xyxyxy"), categories=list("xyz")),
        },
        index=[5, 4, 3, 2, 1, 0],
    )


@pytest.mark.parametrize(
    "group",
    [
        lambda t: t.groupby("k"),
        lambda t: t.groupby("k", dropna=False),
        lambda t: t.groupby("k", sort=False),
        lambda t: t.groupby(["k"]),
        lambda t: t.groupby(["k", "n"]),
        lambda t: t.groupby("k", as_index=False),
        lambda t: t.groupby("k")[["v", "n"]],
        lambda t: t.groupby("k")["v"],
        lambda t: t.groupby(lambda label: label % 2),
        lambda t: t.groupby("c", observed=False),
        lambda t: t.groupby("c", observed=True),
        lambda t: t.v.groupby(t.n),
        lambda t: t.iloc[:0].groupby("k"),
        lambda t: t.iloc[:0].groupby("c", observed=False)["v"],
    ],
    ids=range(14),
)
def test_groups_are_those_of_pandas(group):
    """Keys, groups and order are those of a loop over the groupby, also on the other side."""
    expected = list(group(_table()))
    functor = find(group(_table()))
    assert type(functor) is GroupByFunctor
    assert len(functor) == len(expected)
    for some in (functor, travelled(functor)):
        got = entries(some)
        assert [index for index, _, _ in got] == list(range(len(expected)))
        for (_, key, values), (known, group_of) in zip(got, expected, strict=True):
            assert key == known or (key != key and known != known)
            assert values.equals(group_of)
            assert type(values) is type(group_of)
    assert [entry[0] for entry in entries(functor, 1, 2)] == ([1] if len(expected) > 1 else [])


def test_groups_of_something_else_are_refused():
    """A list is no groupby."""
    with pytest.raises(TypeError, match="needs the result of a pandas groupby, got list"):
        GroupByFunctor([1])


# ---- groups and windows


def _same_entries(functor, expected):
    """Compare entries with those of a loop, here and at a receiver, in two shares."""
    for one in (functor, travelled(functor)):
        assert len(one) == len(expected)
        got = [*entries(one, 0, 2), *entries(one, 2)]
        assert [entry[0] for entry in got] == list(range(len(expected)))
        for entry, parts in zip(got, expected, strict=True):
            assert len(entry) == 1 + len(parts)
            for mine, part in zip(entry[1:], parts, strict=True):
                same = getattr(part, "identical", getattr(part, "equals", None))
                assert type(mine) is type(part)
                assert same(mine) if same is not None else mine == part


def _series() -> xr.DataArray:
    times = pd.date_range("2026-01-01", periods=6, freq="12h")
    values = np.arange(24.0).reshape(6, 4)
    return xr.DataArray(
        values,
        dims=("t", "x"),
        coords={"t": times, "kind": ("t", list("aabbab")), "x": [1, 2, 3, 4]},
        name="q",
    )


@pytest.mark.parametrize("whole", [_series(), _series().to_dataset()], ids=["DataArray", "Dataset"])
def test_groups_of_xarray_are_those_of_a_loop(whole):
    """By labels, bins, parts of times; resampled, also to more times than there are."""
    for grouped in (
        whole.groupby("kind"),
        whole.groupby("x"),
        whole.groupby("t.dayofyear"),
        whole.groupby_bins("x", [0, 2, 3, 9]),
        whole.resample(t="1D"),
        whole.resample(t="6h"),
    ):
        assert type(find(grouped)) is XarrayGroupByFunctor
        _same_entries(find(grouped), list(grouped))


def test_groups_by_labels_of_two_dimensions():
    """Xarray makes one dimension of them."""
    labels = np.arange(12).reshape(3, 4) % 3
    table = xr.DataArray(np.arange(12.0).reshape(3, 4), dims=("a", "b"), coords={"l": (("a", "b"), labels)})
    _same_entries(find(table.groupby("l")), list(table.groupby("l")))


def test_groups_that_are_stretches_are_views_of_shared_memory():
    """A worker sees the memory of the caller."""
    shared = xr.DataArray(ndshare.array(np.arange(12.0)), dims="t", coords={"day": ("t", np.arange(12) // 4)})
    groups = entries(travelled(find(shared.groupby("day"))))
    assert all(ndshare.is_shared(group.values) for _, _, group in groups)
    out = ndshare.alloc(3)
    ndshare.ProcessContext(2).map(
        lambda w, i, day, group: out.__setitem__(i, group.sum() + day), shared.groupby("day")
    )
    assert out.tolist() == [6.0, 23.0, 40.0]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("least", [None, 1])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_windows_of_xarray_are_those_of_a_loop(width, least, center):
    """Shorter ones at the ends, missing values within, labels."""
    whole, holes = _series(), _series().where(_series() != 9)
    for array in (whole, holes):
        rolling = array.rolling(t=width, center=center, min_periods=least)
        assert type(find(rolling)) is RollingFunctor
        _same_entries(find(rolling), list(rolling))
    dataset = whole.to_dataset().rolling(t=width, center=center, min_periods=least)
    loop = list(whole.rolling(t=width, center=center, min_periods=least))
    assert all(
        window.q.identical(expected)
        for (_, _, window), (_, expected) in zip(entries(find(dataset)), loop, strict=True)
    )


def test_windows_with_enough_values_are_views():
    """And windows over two dimensions are refused."""
    shared = xr.DataArray(ndshare.array(np.arange(6.0)), dims="t")
    got = entries(travelled(find(shared.rolling(t=2))))
    assert [ndshare.is_shared(window.values) for _, _, window in got] == [False, True, True, True, True, True]
    with pytest.raises(ValueError, match="roll over one dimension"):
        find(_series().rolling(t=2, x=2))


@pytest.mark.parametrize(
    "index",
    [
        pd.Index([3, 1, 2]),
        pd.Index(list("abc")),
        pd.RangeIndex(3, 20, 5),
        pd.date_range("2026-01-01", periods=3, tz="UTC"),
        pd.MultiIndex.from_tuples([(1, "a"), (2, "b"), (2, "c")]),
        pd.CategoricalIndex(list("aba")),
        pd.interval_range(0, 3),
    ],
    ids=lambda index: type(index).__name__,
)
def test_index_of_pandas_gives_its_labels(index):
    """As a loop does."""
    assert type(find(index)) is IndexFunctor
    for functor in (find(index), travelled(find(index))):
        assert [value for _, value in entries(functor)] == list(index)
        assert entries(functor, 1, 2) == [(1, index[1])]


def test_resampled_pandas_is_mapped_by_groups():
    """Empty ones as well."""
    frame = pd.DataFrame({"n": range(6)}, index=pd.date_range("2026-01-01", periods=6, freq="12h"))
    for grouped in (frame.resample("1D"), frame.n.resample("1D"), frame.n.resample("6h")):
        _same_entries(find(grouped), list(grouped))
