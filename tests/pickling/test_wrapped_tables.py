"""PyArrow tables and torch tensors: argument, result, message, `share`, and views of shared arrays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ndshare
from tests.array_tasks import echo

pytestmark = pytest.mark.once

N = 300_000
_MESSAGES_MAX_BYTES = 60_000  # for all ways of some megabytes


@pytest.fixture
def executor() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Return an executor with one worker that has done something."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(echo, 0).result()
        yield executor


@pytest.fixture
def q() -> Iterator[ndshare.Queue]:
    """Return a queue."""
    made = ndshare.Queue()
    yield made
    made.close()


# ---- PyArrow


def _table() -> Any:
    pa = pytest.importorskip("pyarrow", reason="PyArrow is not installed")
    return pa.table(
        {
            "x": np.arange(float(N)),
            "n": pa.array([1, None, 3] * (N // 3)),
            "s": ["abc", "d", None] * (N // 3),
            "words": pa.array(["one", "two", "one"] * (N // 3)).dictionary_encode(),
            "lists": pa.array([[1, 2], None, []] * (N // 3)),
            "when": pa.array(np.arange(N).astype("M8[s]")),
        }
    ).replace_schema_metadata({"made by": "a test"})


def _column(table: Any, name: str = "x") -> np.ndarray:
    """Return the memory of a column without gaps."""
    column: np.ndarray = table[name].chunk(0).to_numpy(zero_copy_only=True)
    return column


def test_table_is_argument_result_and_message(executor: Any, q: ndshare.Queue) -> None:
    """Type, schema and content are kept, and the buffers go through segments."""
    table = _table()
    before = executor._pool.delivery.bytes_sent
    back = executor.submit(echo, table).result()
    assert executor._pool.delivery.bytes_sent - before < _MESSAGES_MAX_BYTES
    q.put(table)
    for got in (back, q.get(timeout=10)):
        assert type(got) is type(table)
        assert got.equals(table)
        assert got.schema.equals(table.schema, check_metadata=True)
        got.validate(full=True)
        assert not np.shares_memory(_column(got), _column(table))


def test_table_is_shared(executor: Any, q: ndshare.Queue) -> None:
    """`share` gives a table in shared memory; every way leads to the same memory."""
    table = _table()
    shared = ndshare.share(table)
    assert type(shared) is type(table)
    assert shared.equals(table)
    assert ndshare.is_shared(_column(shared))
    assert executor.submit(_is_shared_table, shared).result()
    q.put(shared)
    for got in (q.get(timeout=10), executor.submit(echo, shared).result()):
        assert got.equals(table)
        for name in ("x", "when"):
            assert np.shares_memory(_column(got, name), _column(shared, name))


def _is_shared_table(table: Any) -> bool:
    return ndshare.is_shared(_column(table))


def test_slices_batches_and_chunks_of_tables_arrive_equal(executor: Any) -> None:
    """Parts of a table, several chunks, single columns and record batches."""
    pa = pytest.importorskip("pyarrow", reason="PyArrow is not installed")
    table = _table()
    parts = [
        table.slice(1000, 77),
        pa.concat_tables([table, table.slice(5)]),
        table["s"],
        table["n"].chunk(0),
        table.to_batches()[0],
        table.schema,
        table.slice(0, 0),
    ]
    for part in parts:
        got = executor.submit(echo, part).result()
        assert type(got) is type(part)
        assert got.equals(part)


def test_column_over_a_shared_array_is_a_view_of_it(executor: Any, q: ndshare.Queue) -> None:
    """`pyarrow.py_buffer` of a shared array: its memory, also when the array is gone."""
    pa = pytest.importorskip("pyarrow", reason="PyArrow is not installed")
    array = ndshare.share(np.arange(float(N)))
    column = pa.Array.from_buffers(pa.float64(), N, [None, pa.py_buffer(array)])
    q.put(column)
    got = q.get(timeout=10)
    assert np.shares_memory(got.to_numpy(), array)
    array[3] = -3
    assert got[3].as_py() == -3
    del array
    gc.collect()
    others = [ndshare.zeros(N) for _ in range(3)]
    assert column[3].as_py() == -3
    assert executor.submit(echo, column).result()[N - 1].as_py() == N - 1
    del others


# ---- torch


def test_tensor_is_message_and_shared(executor: Any, q: ndshare.Queue) -> None:
    """Ordinary tensors arrive as the receiver's own, shared ones as the same memory."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ordinary = torch.arange(float(N))
    q.put(ordinary)
    got = q.get(timeout=10)
    got += 1
    assert ordinary[0] == 0
    assert not ndshare.is_shared(got.numpy())
    shared = ndshare.share(ordinary)
    assert type(shared) is torch.Tensor
    assert torch.equal(shared, ordinary)
    q.put(shared[::2])
    view = q.get(timeout=10)
    assert view.stride() == (2,)
    view[0] = 99
    assert shared[0] == 99
    assert executor.submit(_add_one, shared).result()
    assert shared[0] == 100
    assert np.shares_memory(executor.submit(echo, shared).result().numpy(), shared.numpy())


def _add_one(tensor: Any) -> bool:
    tensor += 1
    return ndshare.is_shared(tensor.numpy())


def test_module_keeps_its_parameters(executor: Any, q: ndshare.Queue) -> None:
    """A network arrives with equal weights that still learn; `share` puts them into shared memory."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    network = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 1))
    q.put(network)
    for got in (q.get(timeout=10), executor.submit(echo, network).result()):
        for one, other in zip(got.parameters(), network.parameters(), strict=True):
            assert type(one) is torch.nn.Parameter
            assert one.requires_grad
            assert torch.equal(one, other)
    shared = ndshare.share(network)
    assert all(ndshare.is_shared(one.detach().numpy()) for one in shared.parameters())
    assert executor.submit(_set_to_zero, shared).result()
    assert not any(one.detach().any() for one in shared.parameters())


def _set_to_zero(network: Any) -> bool:
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return True


def test_tensor_over_a_shared_array_is_a_view_of_it(executor: Any) -> None:
    """`torch.from_numpy` and DLPack: the same memory, also when the array is gone."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    array = ndshare.zeros(N)
    tensor = torch.from_numpy(array)
    assert executor.submit(_add_one, tensor).result()
    assert array[0] == 1
    again = np.from_dlpack(tensor)
    assert ndshare.is_shared(again)
    del array, tensor
    gc.collect()
    others = [ndshare.full(N, 7.0) for _ in range(3)]
    assert (again == 1).all()
    del others
