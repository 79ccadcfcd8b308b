"""Silently wrong values, which users of other libraries get: each check as it is asked for, on the public names only."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import hypothesis
import hypothesis.strategies as some
import numpy as np
import pytest

import ndshare
from tests import jobs

pytestmark = pytest.mark.once

CONTEXTS = {
    "serial": lambda: ndshare.SerialContext(),
    "threads": lambda: ndshare.ThreadContext(2),
    "processes": lambda: ndshare.ProcessContext(2),
    "forked": lambda: ndshare.ProcessContext(2, start="fork"),
}


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_01_a_write_is_seen_or_named(run_script: Any, start: str) -> None:
    """What a kernel writes to `alloc`ed memory the caller sees; a write to anything else is named. No silent loss."""
    run_script(
        f"""
import multiprocessing, warnings
import numpy as np, ndshare
multiprocessing.set_start_method({start!r})
for context in (ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2)):
    out, lost = context.alloc(20), np.zeros(20)
    def kernel(worker_id, index, value):
        out[index] = value
        lost[index] = value
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        context.map(kernel, range(20))
    assert (out == np.arange(20)).all()
    assert (lost == out).all() or any("lost" in str(w.message) for w in told), context
"""
    )


def test_11_writeable_whatever_the_size() -> None:
    """Whether an array can be written in a worker depends on what it is, never on its size."""

    def look(*arrays: Any) -> list[bool]:
        return [array.flags.writeable for array in arrays]

    sizes = (0, 1, 100, 10_000, 300_000, 1_100_000, 64 << 20)
    with ndshare.ProcessPoolExecutor(1) as executor:
        for size in sizes:
            plain = np.zeros(size, np.uint8)
            arrays = plain, ndshare.array(plain), ndshare.share(plain, mode="r")
            assert executor.submit(look, *arrays).result() == [True, True, False], size


@pytest.fixture(scope="module")
def echo() -> Any:
    """One worker for all examples."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        yield executor
    ndshare.shutdown()


@hypothesis.settings(deadline=None, max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=some.data())
@pytest.mark.leaves("child process", "open descriptor", "thread", "mapping of a memfd")
def test_12_views_arrive_as_views(echo: Any, data: Any) -> None:
    """Any view of a shared array arrives equal, with its strides, and comes back on the same memory."""
    shape = data.draw(some.lists(some.integers(0, 5), max_size=3).map(tuple))
    base = ndshare.array(np.random.default_rng(0).random(shape))
    view = base
    for axis, length in enumerate(shape):
        start, stop = data.draw(some.integers(0, length)), data.draw(some.integers(0, length))
        step = data.draw(some.sampled_from((1, 2, -1, -2)))
        view = view[(slice(None),) * axis + (slice(start, stop, step),)]
    if data.draw(some.booleans()):
        view = view.T
    back = echo.submit(jobs.identity, view).result()
    assert back.strides == view.strides or view.size <= 1
    assert np.array_equal(back, view)
    assert np.shares_memory(back, base) or view.size == 0


def test_15_additions_are_exact() -> None:
    """8 workers add 10^4 times each, in rows of their own and under a key's lock: not one is lost."""
    context = ndshare.ProcessContext(8)
    rows = context.alloc(per_worker=True, shape=1, dtype=int)

    def add(worker_id: int, _index: int, _value: int) -> None:
        rows[worker_id, 0] += 1

    context.map(add, range(80_000))
    assert context.reduce(rows) == 80_000

    def update(name: str, times: int) -> None:
        with ndshare.SharedDict.attach(name) as d:
            for _ in range(times):
                d.update({"n": 1}, lambda new, old: old + new)

    with ndshare.SharedDict({"n": np.zeros((), int)}, "pains-15") as d, ndshare.ProcessPoolExecutor(8) as ex:
        for future in [ex.submit(update, "pains-15", 1000) for _ in range(8)]:
            future.result()
        assert d["n"] == 8000


def test_25_random_numbers_do_not_depend_on_workers() -> None:
    """With a seed, numbers of an item are the same in every context with any number of workers, and nobody else's."""
    drawn = []
    for context in (ndshare.SerialContext(), *(ndshare.ProcessContext(n) for n in (1, 3, 8))):
        out = context.alloc((50, 4))

        def kernel(_worker_id: int, index: int, _value: int, out: Any = out) -> None:
            out[index] = ndshare.item_rng().random(4)

        context.map(kernel, range(50), seed=0)
        drawn.append(out.copy())
    assert all((one == drawn[0]).all() for one in drawn)
    assert len(np.unique(drawn[0])) == 200


@pytest.mark.parametrize("name", CONTEXTS)
def test_27_errors_have_an_index(name: str) -> None:
    """Items 3 and 7 of 10 fail: 8 results and two errors with their index and the kernel's own line."""
    context = CONTEXTS[name]()
    out = context.alloc(10, fill=-1)

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if index in (3, 7):
            raise KeyError(f"item {index}")
        out[index] = value

    report = context.map(kernel, range(10), on_error="collect")
    assert sorted(index for index, _ in report.errors) == [3, 7]
    assert [int(v) for v in out] == [0, 1, 2, -1, 4, 5, 6, -1, 8, 9]
    with pytest.raises(KeyError) as caught:
        context.map(kernel, range(10))
    import traceback

    assert 'raise KeyError(f"item {index}")' in "".join(traceback.format_exception(caught.value))


def test_29_objects_that_wrap_arrays() -> None:
    """DataFrames, Datasets, sparse matrices and nests of arrays: same type, equal, and the caller's memory if shared."""
    pandas, xarray, sparse = map(pytest.importorskip, ("pandas", "xarray", "scipy.sparse"))
    values = np.arange(400_000.0)
    things = [
        pandas.DataFrame({"a": values, "b": values * 2}),
        xarray.Dataset({"a": ("x", values)}),
        sparse.csr_matrix((values, (np.arange(400_000), np.zeros(400_000, int)))),
        {"nest": [values, (values * 3, "text")]},
    ]
    with ndshare.ProcessPoolExecutor(1) as executor:
        for thing in things:
            back = executor.submit(jobs.identity, thing).result()
            assert type(back) is type(thing)
            assert pickle.dumps(back) == pickle.dumps(thing) or _equal(back, thing)
        frame = ndshare.share(things[0])
        back = executor.submit(jobs.identity, frame).result()
        assert np.shares_memory(back["a"].to_numpy(), frame["a"].to_numpy())


def _equal(a: Any, b: Any) -> bool:
    if hasattr(a, "equals"):
        return bool(a.equals(b))
    return (a != b).nnz == 0 if hasattr(a, "nnz") else repr(a) == repr(b)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (3,)])
def test_31_every_dtype_and_shape(shape: tuple[int, ...]) -> None:
    """Every kind of NumPy scalar, nested structures, subarrays, empty and 0-d; Python objects are refused at once."""
    nested = np.dtype([(("title", "a"), "i4"), ("b", [("c", "f8", (2, 2)), ("d", "S3")])])
    kinds = [
        *np.typecodes["All"].replace("O", "").replace("S", "").replace("U", "").replace("V", ""),
        "S4",
        "U3",
        "V5",
    ]
    with ndshare.ProcessPoolExecutor(1) as executor:
        for dtype in (*kinds, nested):
            array = (
                np.zeros(shape, dtype if dtype not in "mM" else f"{dtype}8[s]")
                if dtype != nested
                else np.zeros(shape, nested)
            )
            for one in (array, ndshare.share(array)):
                back = executor.submit(jobs.identity, one).result()
                assert back.dtype == array.dtype
                assert back.shape == shape
                assert back.tobytes() == array.tobytes()
    with pytest.raises(TypeError, match="object"):
        ndshare.share(np.array([None]))


def test_32_attach_by_name_alone(run_script: Any) -> None:
    """A second interpreter reads values by the name of the dict only; what is no dict is refused."""
    with ndshare.SharedDict({"x": np.arange(6.0).reshape(2, 3)}, "pains-32"):
        out = run_script(
            "import ndshare\nwith ndshare.SharedDict.attach('pains-32') as d: print(d['x'].tolist())"
        ).stdout
    assert out.strip() == "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"
    with pytest.raises(FileNotFoundError):
        ndshare.SharedDict.attach("pains-32")


@pytest.mark.parametrize("name", CONTEXTS)
def test_40_the_serial_context_behaves_the_same(name: str) -> None:
    """Values, mutability, errors and order are the same in every context, so that a kernel can be debugged serially."""
    context, seen = CONTEXTS[name](), ndshare.SerialContext()
    found = []
    for one in (context, seen):
        out = one.alloc((5, 2), dtype=int)

        def kernel(_worker_id: int, index: int, value: Any, out: Any = out) -> None:
            assert isinstance(value, np.ndarray)
            out[index] = value.sum(), index

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one.map(kernel, np.arange(15).reshape(5, 3))
        found.append(out.tolist())
    assert found[0] == found[1]
