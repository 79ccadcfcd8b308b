"""Any array comes through a worker as it was: content, dtype, layout and kind of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ndshare
from tests import array_tasks
from tests.array_tasks import Record, echo, fingerprint, layout

# Sizes between which something else happens inside: in the pickle, in the message, in a segment
# that is copied out, in a segment of its own, made by NumPy in a by-value segment.
_TARGET_BYTES = (0, 0, 0, 5_000, 60_000, 100_000, 300_000, 1_200_000)

_UNITS = ["Y", "M", "D", "h", "s", "ms", "ns", "25us"]


def _scalars() -> st.SearchStrategy[np.dtype]:
    plain = st.sampled_from(
        ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "G"]
    )
    dated = st.builds("{}8[{}]".format, st.sampled_from("mM"), st.sampled_from(_UNITS))
    sized = st.builds("{}{}".format, st.sampled_from("SUV"), st.integers(1, 9))
    orders = st.sampled_from("=<>")
    return st.builds(lambda code, order: np.dtype(code).newbyteorder(order), plain | dated | sized, orders)


@st.composite
def _structures(draw: st.DrawFn, inner: st.SearchStrategy[np.dtype]) -> np.dtype:
    fields: list[Any] = []
    for number in range(draw(st.integers(1, 3))):
        name: Any = f"f{number}"
        if draw(st.booleans()):
            name = (f"title {number}", name)
        shape = draw(st.sampled_from([(), (), (2,), (1, 3)]))
        fields.append((name, draw(inner), shape) if shape else (name, draw(inner)))
    how = draw(st.sampled_from(["packed", "aligned", "gaps", "record"]))
    if how == "packed":
        return np.dtype(fields)
    if how == "aligned":
        return np.dtype(fields, align=True)
    if how == "record":
        return np.dtype((np.record, np.dtype(fields)))
    packed = np.dtype(fields)
    offsets = [3 + packed.fields[name][1] + 5 * n for n, name in enumerate(packed.names)]
    formats = [packed.fields[name][0] for name in packed.names]
    end = max(o + f.itemsize for o, f in zip(offsets, formats, strict=True))
    return np.dtype({"names": packed.names, "formats": formats, "offsets": offsets, "itemsize": end + 4})


_dtypes = st.recursive(_scalars(), _structures, max_leaves=4)
_slices = st.sampled_from(
    [
        slice(None),
        slice(1, None),
        slice(None, -1),
        slice(None, None, 2),
        slice(None, None, -1),
        slice(-2, None, -2),
        slice(0, 0),
    ]
)


@st.composite
def _recipes(draw: st.DrawFn) -> tuple[np.dtype, tuple[int, ...], int, list[tuple[Any, ...]]]:
    """Draw dtype, shape and seed of a dense array, and the views to take of it."""
    dtype = draw(_dtypes)
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    if shape and 0 not in shape:
        target = draw(st.sampled_from(_TARGET_BYTES))
        axis = draw(st.integers(0, len(shape) - 1))
        rest = dtype.itemsize * int(np.prod([n for i, n in enumerate(shape) if i != axis]))
        shape[axis] = max(shape[axis], target // rest)
    steps: list[tuple[Any, ...]] = []
    now = np.empty(shape, np.uint8)
    for _ in range(draw(st.integers(0, 4))):
        kinds = ["newaxis", "readonly"]
        if now.ndim:
            kinds += ["index", "index", "index", "transpose", "fortran"]
            if now.shape[-1] >= 2 and now.size < 1000 and dtype.fields is None:  # NumPy refuses gaps
                kinds.append("window")
        if now.size < 1000:
            kinds.append("broadcast")
        kind = draw(st.sampled_from(kinds))
        step: tuple[Any, ...] = (kind,)
        if kind == "index":
            step = (kind, tuple(draw(_slices) for _ in range(draw(st.integers(1, now.ndim)))))
        elif kind == "transpose":
            step = (kind, tuple(draw(st.permutations(range(now.ndim)))))
        elif kind in ("broadcast", "window"):
            step = (kind, draw(st.integers(1, 4)))
        after = array_tasks.apply(now, [step])
        if after.ndim > 6:
            break
        steps.append(step)
        now = after
    return np.dtype(dtype), tuple(shape), draw(st.integers(0, 1 << 16)), steps


def _dense(a: np.ndarray) -> tuple[int, ...]:
    """Return the layout an ordinary copy of an array has: the same order of axes, without gaps."""
    return layout(np.asarray(a).copy(order="K"))


def _check_ordinary(got: np.ndarray, sent: np.ndarray, before: array_tasks.Fingerprint) -> None:
    assert fingerprint(got) == before
    assert layout(got) in (_dense(sent), layout(sent))
    assert not ndshare.is_shared(got)
    assert not np.shares_memory(got, sent)
    if 0 not in got.strides or not got.size:  # a broadcast view may well be a view again
        assert got.flags.writeable
        array_tasks.scribble(got)
        assert fingerprint(sent) == before


# Shrinking sends the same large array again and again.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::ndshare.RepeatedCopyWarning")]


@pytest.fixture
def executor():
    """Return an executor with one worker."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        yield executor


_here = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_here
@given(recipe=_recipes())
def test_argument_ordinary_is_equal_writable_and_private(executor, recipe):
    """An ordinary argument of any dtype and layout is the worker's own equal array."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.fill(dtype, shape, seed), steps)
    before = fingerprint(a)
    seen = executor.submit(array_tasks.look, a).result()
    assert seen.print == before
    assert seen.layout == _dense(a)
    assert seen.writeable
    assert not seen.shared
    assert fingerprint(a) == before  # the worker has written all over its own


@_here
@given(recipe=_recipes())
def test_argument_ordinary_echoed_is_equal_and_another(executor, recipe):
    """An ordinary array that goes to a worker and back is equal, writable and not the same memory."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.fill(dtype, shape, seed), steps)
    before = fingerprint(a)
    _check_ordinary(executor.submit(echo, a).result(), a, before)


@_here
@given(recipe=_recipes())
def test_result_made_in_worker_is_equal(executor, recipe):
    """A result of any dtype and layout arrives as it was in the worker."""
    got, seen, strides = executor.submit(array_tasks.make, *recipe, False).result()
    assert fingerprint(got) == seen
    here = array_tasks.apply(array_tasks.fill(*recipe[:3]), recipe[3])
    assert fingerprint(here) == seen
    assert layout(here) == strides
    assert layout(got) in (strides, _dense(here))
    assert not ndshare.is_shared(got)


@_here
@given(recipe=_recipes())
def test_shared_array_goes_and_comes_as_the_same_memory(executor, recipe):
    """A shared array keeps its exact strides on both ways, and stays the same memory."""
    dtype, shape, seed, steps = recipe
    a = array_tasks.apply(array_tasks.shared_fill(dtype, shape, seed), steps)
    before = fingerprint(a)
    seen = executor.submit(array_tasks.look, a).result()
    assert seen == (before, layout(a), a.flags.writeable, True)
    got = executor.submit(echo, a).result()
    assert fingerprint(got) == before
    assert layout(got) == layout(a)
    assert got.flags.writeable == a.flags.writeable
    assert ndshare.is_shared(got)
    assert np.shares_memory(got, a) or not a.size


@_here
@given(recipe=_recipes())
def test_shared_array_made_in_worker_stays_shared(executor, recipe):
    """A shared array made by a worker arrives shared, and a later task sees what the caller writes."""
    got, seen, strides = executor.submit(array_tasks.make, *recipe, True).result()
    assert fingerprint(got) == seen
    assert layout(got) == strides
    assert ndshare.is_shared(got)
    if got.flags.writeable and got.size:
        array_tasks.scribble(got)
        assert executor.submit(array_tasks.look, got).result().print == fingerprint(got)


@settings(_here, max_examples=60)
@given(recipes=st.lists(st.tuples(_recipes(), st.booleans()), min_size=1, max_size=5))
def test_nested_arrays_arrive_in_their_containers(executor, recipes):
    """Ordinary and shared arrays in dicts, lists, tuples and dataclasses arrive in place."""
    arrays = []
    for (dtype, shape, seed, steps), shared in recipes:
        make = array_tasks.shared_fill if shared else array_tasks.fill
        arrays.append(array_tasks.apply(make(dtype, shape, seed), steps))
    prints = [fingerprint(a) for a in arrays]
    nested = {"list": arrays, 7: (arrays[0], {"last": arrays[-1]}), "record": Record("r", arrays[0], arrays)}
    got = executor.submit(echo, nested).result()
    assert list(got) == ["list", 7, "record"]
    assert type(got["record"]) is Record
    assert got["record"].name == "r"
    assert got[7][0] is got["list"][0]
    assert got["record"].data is got["list"][0]
    assert got["record"].more is got["list"]
    assert got[7][1]["last"] is got["list"][-1]
    for a, b, before, (_, shared) in zip(arrays, got["list"], prints, recipes, strict=True):
        assert fingerprint(b) == before
        assert ndshare.is_shared(b) == shared
        if shared and a.size:
            assert np.shares_memory(a, b)
            assert layout(b) == layout(a)


def test_empty_view_of_shared_array_comes_home_to_its_own_block(executor):
    """An empty view, which has no bytes to be found by, is still known to belong to its array."""
    for nbytes in (8, 1000, 70_000, 3_000_000):
        # The first slots of their slabs are free again by the time the view comes home.
        early = [ndshare.zeros(nbytes, "u1") for _ in range(5)]
        a = ndshare.zeros((nbytes // 8, 8), "u1")
        del early
        for view in (a[:0], a[1:1], a[nbytes:], a[:, 8:], a[::-1][:0], a.T[8:], ndshare.empty((0, 3))):
            got = executor.submit(echo, {"view": view}).result()["view"]
            assert got.shape == view.shape
            assert ndshare.is_shared(got)
