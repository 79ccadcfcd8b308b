"""What users of npshmex want gone is gone from ndshare.compat.npshmex."""

from __future__ import annotations

import concurrent.futures
import os
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

import ndshare
from ndshare._memory import segments
from ndshare.compat import npshmex

pytestmark = pytest.mark.once


class Wrapper:
    """Something with an array in it."""

    def __init__(self, data):
        self.data = data


@pytest.fixture
def ex() -> Iterator[npshmex.ProcessPoolExecutor]:
    """Return an executor."""
    with npshmex.ProcessPoolExecutor(2) as made:
        yield made


def same(x):
    """Return what arrives."""
    return x


def _left() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("npshmex")}


def test_gone_submit_replaces_the_wrapper_attribute_by_a_key(ex) -> None:
    """The caller's object stays as it is, and may be submitted again; so for `shm_put`."""
    npshmex.register_array_wrapper(Wrapper, "data")
    try:
        wrapper = Wrapper(np.arange(5))
        for _ in range(2):
            assert ex.submit(same, wrapper).result().data.sum() == 10
            assert wrapper.data.tolist() == [0, 1, 2, 3, 4]
            assert npshmex.shm_pop(npshmex.shm_put(wrapper, temp=True)).data.sum() == 10
            assert wrapper.data.tolist() == [0, 1, 2, 3, 4]
    finally:
        npshmex._array_wrappers.clear()


_ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
_LAYOUTS = {
    "structured 2-d": np.ones((2, 3), [("a", "i4"), ("b", "f8", (2,))]),
    "structured aligned": np.ones(3, _ALIGNED),
    "datetime64": np.array(["2020-01-01", "2021-02-03"], "M8[D]"),
    "timedelta64": np.array([1, 2], "m8[ms]"),
    "0-d": np.array(4.5),
    "empty": np.zeros((0, 3)),
    "F order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(24).reshape(4, 6)[::2, 1::2],
    "text": np.array(["a", "bcd"]),
    "records": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
}


@pytest.mark.parametrize("name", _LAYOUTS)
def test_gone_layouts_that_fail(ex, name: str) -> None:
    """Type, dtype, order and elements arrive as sent, by argument and by key."""
    array = _LAYOUTS[name]
    for got in (
        ex.submit(same, array).result(),
        npshmex.shm_pop(npshmex.shm_put(array, temp=True)),
        ex.submit(same, npshmex.shm_put(array, temp=True)).result(),
    ):
        assert type(got) is type(array)
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert np.array_equal(got, array)
        assert got.flags.f_contiguous == array.flags.f_contiguous or name == "strided"


def test_gone_masked_arrays_lose_their_mask(ex) -> None:
    """They arrive masked."""
    array = np.ma.masked_array(np.arange(4), mask=[0, 1, 0, 1])
    for got in (ex.submit(same, array).result(), npshmex.shm_pop(npshmex.shm_put(array, temp=True))):
        assert type(got) is np.ma.MaskedArray
        assert got.mask.tolist() == [False, True, False, True]


def _in_segments(*arrays: np.ndarray) -> bool:
    return all(segments.block_of(array) is not None for array in arrays)


def seen_and_made(values):
    """Tell whether nested arguments lie in segments and which are shared; return others, nested."""
    arrays = values["list"][0], values["inner"]["tuple"][1], values["shared"][0]["deep"]
    made = np.arange(200_000.0)
    return (
        _in_segments(*arrays),
        [ndshare.is_shared(a) for a in arrays],
        {"deep": [(made,)], "list": [made + 1]},
    )


def test_gone_lists_tuples_and_nested_dicts_are_not_shared(ex) -> None:
    """Arrays in them go through segments, not through pickle; a shared one is the same memory there."""
    shared = ndshare.share(np.ones(200_000))
    values = {
        "list": [np.ones(200_000)],
        "inner": {"tuple": (0, np.ones(300_000))},
        "shared": [{"deep": shared}],
    }
    in_segments, is_shared, results = ex.submit(seen_and_made, values).result()
    assert in_segments
    assert is_shared == [False, False, True]
    assert _in_segments(results["deep"][0][0], results["list"][0])
    assert np.array_equal(results["deep"][0][0] + 1, results["list"][0])
    assert not _in_segments(np.ones(200_000))  # ordinary memory is told from it


def look_and_return(x):
    """Tell whether the argument lies in a segment; return it."""
    return _in_segments(x), x


def test_gone_map_is_not_shared(ex) -> None:
    """It moves arrays as `submit` does."""
    arrays = [np.full(200_000, number) for number in range(4)]
    for number, (in_segments, result) in enumerate(ex.map(look_and_return, arrays)):
        assert in_segments
        assert _in_segments(result)
        result += 1  # writable: the caller's own
        assert (result == number + 1).all()
    assert [array[0] for array in arrays] == [0, 1, 2, 3]


def test_gone_output_without_input_refuses_arrays(ex) -> None:
    """Any combination of the options takes any argument."""
    for shm_input in (False, True):
        for shm_output in (False, True):
            future = ex.submit(same, np.arange(3), shm_input=shm_input, shm_output=shm_output)
            assert future.result().tolist() == [0, 1, 2]


def test_gone_random_stream_is_advanced(ex) -> None:
    """The program's random numbers are its own."""
    random.seed(5)
    expected = [random.random() for _ in range(2)]
    random.seed(5)
    first = random.random()
    ex.submit(same, np.arange(3)).result()
    npshmex.shm_del(npshmex.shm_put(np.arange(3)))
    assert [first, random.random()] == expected


def test_gone_segments_leak_on_input_errors_and_cancel() -> None:
    """Nothing has a name, so nothing stays."""
    before = _left()
    with npshmex.ProcessPoolExecutor(1) as ex:
        ex.submit(time.sleep, 0.3)
        futures = [ex.submit(same, np.ones(1000)) for _ in range(6)]
        assert all(future.cancel() for future in futures[1:])
        bad = ex.submit(same, np.ones(1000), (number for number in range(3)))
        with pytest.raises(TypeError):
            bad.result()
    with pytest.raises(ValueError, match="Python objects"):
        npshmex.shm_put(np.array([{}]))
    assert _left() == before


def test_gone_future_of_all_executors_is_patched() -> None:
    """A key stays a key in everybody else's futures."""
    assert npshmex.Future is concurrent.futures.Future is concurrent.futures._base.Future
    key = npshmex.shm_put(np.arange(3))
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        assert other.submit(same, key).result() == key
    npshmex.shm_del(key)


def names(f=0, shm_out=0, shm_input=0, shm_output=0):
    """Has the parameters that clash."""
    return f, shm_out, shm_input, shm_output


def test_gone_keyword_arguments_clash(ex) -> None:
    """A function may have parameters of these names."""
    assert ex.submit(names, f=1, shm_out=2, shm_input=3, shm_output=4).result() == (1, 2, 3, 4)
    assert ex.submit(np.sum, np.arange(3), shm_input=True, shm_output=True).result() == 3


def test_gone_every_call_copies_the_same_array_again(ex) -> None:
    """A shared one is not copied at all; an ordinary one is, and a warning says what to do."""
    shared = ndshare.share(np.zeros(1000))
    for number in range(3):
        ex.submit(write_first, shared, number).result()
        assert shared[0] == number
    ordinary = np.zeros(2_000_000)
    with pytest.warns(ndshare.RepeatedCopyWarning, match="share"):
        wait_for_all([ex.submit(np.max, ordinary) for _ in range(5)])


def wait_for_all(futures):
    """Return results."""
    return [future.result() for future in futures]


def write_first(x, value):
    """Write to an argument."""
    x[0] = value


def test_gone_dead_worker_breaks_the_pool(ex) -> None:
    """One task fails; the name in the error is that of the function."""
    with pytest.raises(ndshare.WorkerDiedError, match="_exit"):
        ex.submit(os._exit, 3).result()
    assert ex.submit(same, 1).result() == 1
