"""``alloc(like=...)``: shape, dtype and order of whatever defines them; what does not is refused by name."""

from __future__ import annotations

import array as arrays
from typing import Any

import numpy as np
import pytest

import ndshare
import ndshare.compat.pasha as psh

pytestmark = pytest.mark.once

pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")

FORTRAN = np.zeros((2, 3), np.float32, "F")


class Tensor:
    """What a torch tensor shows of itself."""

    def __init__(self, array: np.ndarray[Any, Any], dtype: str) -> None:
        self._array = array
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, dtype

    def stride(self) -> tuple[int, ...]:
        return self._array.strides

    def is_contiguous(self) -> bool:
        return self._array.flags.c_contiguous

    def permute(self, *axes: int) -> Tensor:
        return Tensor(self._array.transpose(axes), self.dtype)


LIKES: dict[str, tuple[Any, tuple[int, ...], str, str]] = {
    "Series": (pd.Series([1.0, 2.0]), (2,), "f8", "C"),
    "nullable Series": (pd.Series([1, None], dtype="Int16"), (2,), "i2", "C"),
    "Series of times": (pd.Series(pd.to_datetime(["2026-01-01"])).astype("M8[ns]"), (1,), "M8[ns]", "C"),
    "Index": (pd.Index([1, 2]), (2,), "i8", "C"),
    "DataFrame": (pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), (2, 2), "f8", "C"),
    "DataFrame of numbers": (pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]}), (2, 2), "f8", "C"),
    "DataArray": (xr.DataArray(np.zeros((2, 3), "f4")), (2, 3), "f4", "C"),
    "DataArray in Fortran order": (xr.DataArray(FORTRAN), (2, 3), "f4", "F"),
    "masked array": (np.ma.masked_array([1, 2], [0, 1], dtype="i4"), (2,), "i4", "C"),
    "masked array in Fortran order": (np.ma.masked_array(FORTRAN), (2, 3), "f4", "F"),
    "matrix": (np.array([[1.0, 2.0]]).view(np.matrix), (1, 2), "f8", "C"),
    "scalar": (np.float32(1), (), "f4", "C"),
    "list": ([1.0, 2.0], (2,), "f8", "C"),
    "nested list": ([[1, 2], [3, 4], [5, 6]], (3, 2), "i8", "C"),
    "tuple": ((True, False), (2,), "?", "C"),
    "number": (1.5, (), "f8", "C"),
    "array.array": (arrays.array("h", [1, 2]), (2,), "i2", "C"),
    "memoryview": (memoryview(np.zeros((2, 3), "u2")), (2, 3), "u2", "C"),
    "tensor": (Tensor(np.zeros((2, 3)), "torch.float16"), (2, 3), "f2", "C"),
    "tensor in Fortran order": (Tensor(FORTRAN, "torch.bool"), (2, 3), "?", "F"),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "Series of text": (pd.Series(["a"]), r"pandas\.\S*Series, (of|whose) dtype (str|object)"),
    "Series of categories": (
        pd.Series(["a"]).astype("category"),
        "Series, whose dtype category NumPy does not have",
    ),
    "Series with a time zone": (
        pd.Series(pd.to_datetime(["2026-01-01"], utc=True)),
        "UTC. NumPy does not have",
    ),
    "DataFrame with text": (pd.DataFrame({"a": [1], "b": ["x"]}), "DataFrame, of dtype object"),
    "Dataset": (xr.Dataset({"a": ("x", [1.0])}), "Dataset, of which NumPy makes no array"),
    "tensor of a dtype of its own": (Tensor(FORTRAN, "torch.bfloat16"), "Tensor, whose dtype torch.bfloat16"),
    "ragged list": ([[1], [2, 3]], "list, of which NumPy makes no array"),
    "list of objects": ([None, 1], "list, of dtype object"),
    "dict": ({"a": 1}, "dict, which has no shape"),
    "text": ("abc", "str, which has no shape"),
    "generator": ((i for i in range(3)), "generator, which has no shape"),
}


@pytest.mark.parametrize("alloc", [ndshare.alloc, psh.alloc], ids=["ndshare", "pasha"])
@pytest.mark.parametrize("kind", LIKES)
def test_what_is_defined_is_taken(alloc, kind):
    """Shape, dtype and order."""
    like, shape, dtype, order = LIKES[kind]
    made = alloc(like=like)
    assert (made.shape, made.dtype, made.flags.fnc) == (shape, np.dtype(dtype), order == "F")
    assert type(made) is np.ndarray
    assert ndshare.is_shared(made)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_defined_is_refused_by_name(kind):
    """With what to do about it."""
    like, text = REFUSED[kind]
    with pytest.raises(TypeError, match=rf"^alloc: like is of class .*{text}.*; give (shape|dtype)="):
        ndshare.alloc(like=like)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "object" not in kind and "text" not in kind])
def test_pasha_refuses_alike(kind):
    """Arrays of objects apart, which its threads may have."""
    with pytest.raises(TypeError, match=f"^alloc: like is of class .*{REFUSED[kind][1]}"):
        psh.ThreadContext(2).alloc(like=REFUSED[kind][0])


def test_only_what_is_not_given_is_asked_for():
    """A dtype or shape of one's own makes up for what is missing."""
    assert ndshare.alloc(dtype="f4", like=pd.Series(["a", "b"])).shape == (2,)
    assert ndshare.alloc(3, int, like=object()).shape == (3,)
    assert ndshare.alloc(3, like=pd.Series([1, 2])).dtype == np.int64
    assert ndshare.alloc(like=pd.Series([1.0, 2.0]), per_worker=True).shape[1:] == (2,)


def test_object_arrays_of_pasha_threads_stay():
    """As with pasha."""
    made = psh.ThreadContext(2).alloc(like=pd.Series([None, "a"], dtype=object))
    assert made.dtype == object
