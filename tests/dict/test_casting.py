"""What is stored is what NumPy's casting makes of the plain expression: any dtype, order, shape, view and size."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as some

from ndshare import SharedDict
from ndshare._dict._store import LARGE_BYTES

pytestmark = pytest.mark.once

_DTYPES = (
    *("?", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4", "q", "l"),
    *(
        "S4",
        "S8",
        "U2",
        "V8",
        "M8[s]",
        "M8[ms]",
        "m8[s]",
        [("a", "f4"), ("b", "i4")],
        [("b", "i4"), ("a", "f4")],
    ),
)


def _values(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    count = int(np.prod(shape))
    numbers = (np.arange(count) * 7919 + seed) % 97
    if dtype.kind in "biufcmM":
        return numbers.astype("i8").astype(dtype).reshape(shape)
    if dtype.kind in "SU":
        return numbers.astype("S2").astype(dtype).reshape(shape)
    return np.ndarray(shape, dtype, (np.arange(count * dtype.itemsize) % 251).astype("u1").tobytes()).copy()


_keep = []


def _kept(new, old):
    _keep[:] = [np.array(new)]
    return _keep[0]


@pytest.fixture(autouse=True)
def _nothing_kept():
    yield
    _keep.clear()


#: What update functions return: made of their arguments, of the dtype of either, or of another.
FUNCTIONS = {
    "new": lambda new, old: new,
    "old": lambda new, old: old,
    "copy": lambda new, old: new.copy(),
    "copy of old": lambda new, old: old.copy(),
    "transposed": lambda new, old: new.T.copy("K"),
    "transposed, in C order": lambda new, old: new.T.copy("C"),
    "Fortran order": lambda new, old: np.array(new, order="F"),
    "old in Fortran order": lambda new, old: np.array(old, order="F"),
    "sum": lambda new, old: new + old,
    "sum transposed": lambda new, old: (old + new).T,
    "scaled": lambda new, old: 0.5 * new.T,
    "of one array": lambda new, old: old * 2,
    "reversed": lambda new, old: old.copy()[::-1],
    "every second": lambda new, old: np.repeat(old, 2, axis=0)[::2],
    "part": lambda new, old: np.concatenate([old, old])[: len(old)],
    "same bytes, floats": lambda new, old: np.frombuffer(old.tobytes(), "f8").copy(),
    "same bytes, ints": lambda new, old: np.frombuffer(bytearray(old.tobytes()), "i8"),
    "same bytes, of the dtype of new": lambda new, old: np.array(old).view(new.dtype),
    "empty of this size": lambda new, old: np.full(old.nbytes, 3, "u1"),
    "flat": lambda new, old: old.copy().reshape(-1),
    "wider": lambda new, old: old.copy().reshape(1, *old.shape),
    "columns": lambda new, old: old.copy().reshape(old.shape[::-1]),
    "number": lambda new, old: 3,
    "fraction": lambda new, old: 2.5,
    "row": lambda new, old: new[:1].copy(),
    "list": lambda new, old: new[:1].tolist(),
    "subclass": lambda new, old: np.ma.masked_array(new.copy(), False),
    "byte order": lambda new, old: old.astype(old.dtype.newbyteorder()),
    "dtype set": lambda new, old: _with_dtype(old.copy(), new.dtype),
    "shape set": lambda new, old: _with_shape(old.copy()),
    "kept": _kept,
}


def _with_dtype(array, dtype):
    array.dtype = dtype  # the same bytes, in the memory where they are
    return array


def _with_shape(array):
    array.shape = array.shape[::-1]
    return array


def _plain(function, new, old):
    """The expression without a dict, cast as `copyto` does it, or the class of its error."""
    try:
        target = np.empty_like(old)
        value = function(new.copy(), old.copy())
        if value is None:
            return TypeError
        np.copyto(target, value, casting="same_kind")
    except Exception as error:
        return type(error)
    return target


def _stored(function, new, old, how):
    """The same with a dict."""
    with SharedDict({"key": old}) as d:
        try:
            if how == "write":
                d.write({"key": function(new.copy(), old.copy())})
                result = d["key"]
            else:
                atomic, copy = how
                result = d.update({"key": new.copy()}, function, atomic=atomic, copy=copy)["key"]
        except Exception as error:
            assert np.array_equal(_raw(d["key"]), _raw(old)), (
                "a value was stored although an error was raised"
            )
            return type(error)
        assert np.array_equal(_raw(result), _raw(d["key"]))
        assert result.dtype == old.dtype
        return d["key"]


def _raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view("u1")


@some.composite
def _cases(draw):
    dtype = np.dtype(draw(some.sampled_from(_DTYPES)))
    other = dtype if draw(some.booleans()) else np.dtype(draw(some.sampled_from(_DTYPES)))
    rows = draw(some.sampled_from((1, 2, 8, 64)))
    threshold = LARGE_BYTES // dtype.itemsize // rows  # from here on results are made in the slot
    columns = draw(some.sampled_from((threshold - 1, threshold, threshold, threshold + 1, 2 * threshold, 5)))
    shape = (rows, columns) if draw(some.booleans()) else (columns, rows)
    function = draw(some.sampled_from(sorted(FUNCTIONS)))
    how = draw(
        some.sampled_from(
            ("write", (False, True), (False, True), (False, False), (True, True), (True, False))
        )
    )
    return dtype, other, shape, function, how, draw(some.integers(0, 96))


@hypothesis.settings(
    max_examples=150,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(_cases())
def test_stored_value_is_that_of_the_plain_expression(case):
    """Values below the threshold and above it, results in the slot and elsewhere, follow one rule."""
    dtype, other, shape, name, how, seed = case
    function = FUNCTIONS[name]
    new, old = _values(other, shape, seed), _values(dtype, shape, seed + 1)
    with np.errstate(all="ignore"):
        expected = _plain(function, new, old)
        got = _stored(function, new, old, how)
    if isinstance(expected, type):
        assert got is expected
    else:
        assert not isinstance(got, type), got
        assert np.array_equal(_raw(got), _raw(expected))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("dtype", ["f8", "i8", "M8[s]"])
def test_large_square_values_of_every_function(name, dtype):
    """Square values, for which no shape gives a wrong order away."""
    function = FUNCTIONS[name]
    shape = (400, 400)
    new, old = _values(np.dtype("f8"), shape, 3), _values(np.dtype(dtype), shape, 4)
    with np.errstate(all="ignore"):
        expected = _plain(function, new, old)
        for how in ((False, True), (False, False), (True, True), "write"):
            got = _stored(function, new, old, how)
            if isinstance(expected, type):
                assert got is expected, how
            else:
                assert not isinstance(got, type), (how, got)
                assert np.array_equal(_raw(got), _raw(expected)), how


def test_returned_array_is_not_the_one_that_the_function_kept():
    """What the caller does with a result changes nothing that the function has kept, nor the reverse."""
    for n in (5, LARGE_BYTES // 8):
        with SharedDict({"key": np.zeros(n)}) as d:
            for atomic in (False, True):
                result = d.update({"key": np.ones(n)}, _kept, atomic=atomic)["key"]
                result[:] = 7
                assert (_keep[0] == 1).all()
                assert (d["key"] == 1).all()
