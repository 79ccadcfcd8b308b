"""What goes to the workers of a map and comes back: jobs, reports, kernels of every origin."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types

import numpy as np
import pytest

from ndshare import SerialContext, zeros
from ndshare._map import _loop
from ndshare._map.job import Job, WorkerReport
from ndshare._map.runner import run_job
from ndshare._map.watch import captured
from ndshare._pickling import pickler
from ndshare._system.board import Board
from ndshare.functors import SequenceFunctor
from tests.peer import to_oneself


def test_job_and_report_come_back_whole() -> None:
    """Every field survives pickling, also those with a default."""
    report = WorkerReport(
        3, 77, 5, 2, 0.25, 1 << 20, [(4, ValueError("x"), "text")], [("a", "list")], [(0, 5, 0.5, 1.5)]
    )
    found = pickle.loads(pickle.dumps(report))
    assert repr(found) == repr(report)
    assert found.plus(report).items == 10
    functor = SequenceFunctor(range(4))
    job = Job(
        len, functor, Board(np.zeros(Board.nbytes(1, 4), np.uint8), 1, 4), "collect", 2, 3, True, True, 9, 100
    )
    copy = Job.of_facts(*pickle.loads(pickle.dumps(job.facts())))
    for field in dataclasses.fields(Job):
        if field.name not in ("functor", "board"):
            assert getattr(copy, field.name) == getattr(job, field.name), field.name
    assert (copy.board.items, copy.board.num_workers) == (4, 1)
    assert list(copy.functor.sequence) == [0, 1, 2, 3]


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(
        "factor = 3\ndef make(offset):\n    def kernel(x):\n        return factor * x + offset\n    return kernel\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_closure_of_main_needs_no_search(monkeypatch) -> None:
    """The word that makes a pickle be searched for names is not in that of a closure; its module is right."""
    main = _module("__main__", monkeypatch)
    kernel = main.make(5)
    recording = pickler.record(kernel)
    assert b"__main__" not in b"".join(recording.parts)
    assert recording.needs == {"factor"}
    found = to_oneself(kernel)
    assert found(2) == 11
    assert found.__module__ == "__main__"


def test_closure_of_a_module_arrives_with_what_it_uses(monkeypatch) -> None:
    """A function made by one of a module is sent by its code, twice alike, and with its module's name."""
    kernel = _module("some_library", monkeypatch).make(7)
    first, second = to_oneself(kernel), to_oneself(kernel)
    assert first(2) == second(2) == 13
    assert first.__module__ == "some_library"
    assert first.__code__ is second.__code__  # what a worker remembers of a kernel, it remembers by this
    assert first is not second


def test_closure_over_data_arrives_whole(monkeypatch) -> None:
    """Name, documentation, annotations and variables; two functions still share the variable they shared."""
    module = _module("some_library", monkeypatch)
    exec(
        "def make():\n"
        "    total = 0\n"
        "    def add(x: int) -> None:\n"
        "        'Adds.'\n"
        "        nonlocal total\n"
        "        total += x\n"
        "    def get():\n"
        "        return total\n"
        "    return add, get\n",
        module.__dict__,
    )
    add, get = to_oneself(module.make())
    assert (add.__qualname__, add.__doc__) == ("make.<locals>.add", "Adds.")
    assert add.__annotations__ == {"x": "int", "return": "None"}
    add(5)
    assert get() == 5


def test_closure_over_an_array_that_holds_it_arrives(monkeypatch) -> None:
    """An object array may refer to the very function in whose closure it is."""
    module = _module("some_library", monkeypatch)
    exec(
        "def make(box):\n    def kernel(x):\n        return box, x\n    box[0] = kernel\n    return kernel\n",
        module.__dict__,
    )
    found = to_oneself(module.make(np.empty(1, object)))
    box, x = found(3)
    assert box[0] is found
    assert x == 3


def test_report_of_nothing_special_is_short() -> None:
    """What is empty does not travel; everything else does."""
    plain = WorkerReport(1, 77, 5, 2, 0.25, 1 << 20)
    assert len(plain.facts()) == 6
    assert repr(WorkerReport(*plain.facts())) == repr(plain)
    for field in ("errors", "lost_writes", "timeline", "failures"):
        special = dataclasses.replace(plain, **{field: [("a", "b")]})
        assert repr(WorkerReport(*special.facts())) == repr(special)


@pytest.mark.parametrize("count", [1, 3, 16, 17])
def test_references_to_shared_memory_arrive(count: int) -> None:
    """Few or many, in segments of their own or in one, writable or not."""
    for items in (10, 1000, 100_000):
        arrays = [zeros(items) for _ in range(count)]
        arrays[0].flags.writeable = False
        found = to_oneself(arrays)
        assert all(map(np.shares_memory, arrays, found))
        assert [array.flags.writeable for array in found] == [False] + [True] * (count - 1)


def test_shared_array_is_accounted_without_being_pickled(monkeypatch) -> None:
    """What kernels write to goes by reference, views included; the rest is counted as it travels."""
    shared, plain = zeros((10, 4)), np.zeros(10_000)

    def kernel(_worker_id, index, value):
        part[index] = plain[index] + value

    part = shared[:, 1]
    found = captured.account(kernel, SequenceFunctor(range(10)))
    assert found["part"] == (part.nbytes, 0, 0)
    assert found["plain"][:2] == (0, plain.nbytes)


def test_shares_of_tiny_items_grow_at_once() -> None:
    """The first item, which takes longest, does not keep the shares after it small."""
    items = 100_000
    board = Board(np.zeros(Board.nbytes(1, items), np.uint8), 1, items)
    report = run_job(Job(max, SequenceFunctor(range(items)), board))
    assert report.items == items
    assert report.shares < 100


@pytest.mark.parametrize("shares", [1, 2, 5])
@pytest.mark.parametrize("values", [range(10, -8, -2), range(2**70, 2**70 + 9), range(1), range(0)], ids=repr)
def test_values_of_a_range_are_those_of_a_loop(values: range, shares: int) -> None:
    """Any step, any size of number, cut in any way."""
    found: list[tuple[int, int]] = []
    report = SerialContext().map(lambda _, index, value: found.append((index, value)), values, shares=shares)
    assert found == list(enumerate(values))
    assert report.done.all()


def test_error_in_a_range_has_the_right_index() -> None:
    """The items after the one that failed have their own values."""
    found = []

    def kernel(_worker_id, index, value):
        if index in (3, 7):
            raise ValueError(value)
        found.append((index, value))

    report = SerialContext().map(kernel, range(100, 120, 2), shares=1, on_error="collect")
    assert [(index, error.args) for index, error in report.errors] == [(3, (106,)), (7, (114,))]
    assert found == [(index, 100 + 2 * index) for index in range(10) if index not in (3, 7)]


def test_range_that_is_too_short_is_an_error() -> None:
    """A share beyond the end raises as indexing does."""
    board = Board(np.zeros(Board.nbytes(1, 10), np.uint8), 1, 10)
    with pytest.raises(IndexError, match="no item 4"):
        _loop.run(max, 0, range(4), True, board.memory, board.slot(0), board.mask_at, 0, 10, False)
    assert board.finished() == 4
    assert board.current(0) == 4


def test_function_that_documents_itself_by_itself_arrives(monkeypatch) -> None:
    """What refers to the function is filled in last, wherever it is."""
    kernel = _module("some_library", monkeypatch).make(7)
    kernel.__doc__ = kernel
    found = to_oneself(kernel)
    assert found.__doc__ is found
    assert found(2) == 13
