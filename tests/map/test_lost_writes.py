"""A kernel that writes to what is not shared is found out, and named, in processes of every kind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import types
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import ndshare
from ndshare._map.watch import differences

_LARGE = 300_000  # elements: a segment of its own


def _told(kernel: Callable[..., object], start: str, collection: Any = range(40)) -> list[str]:
    """Names that are warned about, each at this file's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ndshare.ProcessContext(2, start=start).map(kernel, collection)
    for warning in caught:
        assert warning.category is ndshare.SilentWriteWarning
        assert warning.filename == __file__
    return sorted(warning.message.name for warning in caught)


@pytest.fixture(params=["pool", "fork"])
def start(request: pytest.FixtureRequest) -> str:
    """Start method of the workers."""
    return request.param


def test_small_array_is_named_with_shape_and_remedy(start: str) -> None:
    """The classic: counts that stay zero."""
    counts = np.zeros(10)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        counts[index % 10] += 1

    with pytest.warns(ndshare.SilentWriteWarning, match=r"counts.*shape \(10,\).*ndshare\.alloc") as caught:
        ndshare.ProcessContext(2, start=start).map(kernel, range(40))
    assert len(caught) == 1
    assert not counts.any()


@pytest.mark.parametrize("size", [1, 100, 5000, _LARGE])
def test_one_element_and_whole_arrays_are_found_at_any_size(start: str, size: int) -> None:
    """First, last, all of it."""
    first, last, whole, read = (np.zeros(size) for _ in range(4))
    total = ndshare.alloc(())

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        first[0] = 1
        last[-1] = 1
        whole[:] = 2
        if index == 0:
            total[()] = read.sum()

    assert _told(kernel, start) == ["first", "last", "whole"]


def test_two_arrays_in_one_page_are_told_apart(start: str) -> None:
    """Many small ones, one of them written to."""
    table = {name: np.zeros(700) for name in "abcdefgh"}

    def kernel(_worker_id: int, _index: int, _value: int) -> None:
        table["e"][350] = 1

    assert _told(kernel, start) == ["table['e']"]


@pytest.mark.parametrize("size", [10, _LARGE])
def test_equal_bytes_are_no_writes(start: str, size: int) -> None:
    """Only read, rewritten with what was there, NaN included."""
    kept = np.full(size, np.nan)
    rewritten = np.arange(float(size))
    total = ndshare.alloc(40)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        total[index] = kept[0] + rewritten.sum()
        rewritten[5] = rewritten[5]
        kept[:] = np.nan

    assert _told(kernel, start) == []


def test_lists_dicts_attributes_and_globals_are_named(start: str) -> None:
    """What a kernel fills is lost just as silently."""
    found: list[int] = []
    by_index: dict[int, int] = {}

    class Model:
        def __init__(self) -> None:
            self.weights = np.zeros(3)
            self.bias = np.zeros(3)

        def kernel(self, _worker_id: int, index: int, value: int) -> None:
            self.weights += 1
            found.append(value)
            by_index[index] = value

    assert _told(Model().kernel, start) == ["by_index", "found", "self.weights"]


def test_writes_to_the_mapped_collection_are_named(start: str) -> None:
    """In-place work on the values themselves needs a shared collection."""
    images = np.zeros((40, 5))

    def kernel(_worker_id: int, _index: int, value: Any) -> None:
        value += 1

    assert _told(kernel, start, images) == ["the mapped collection"]
    shared = ndshare.share(images)
    assert _told(kernel, start, shared) == []
    assert (shared == 1).all()


def test_scratch_and_shared_arrays_are_meant(start: str) -> None:
    """No warning for them."""
    work = ndshare.scratch(np.zeros(100))
    shared = ndshare.zeros(100)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        work[:] = index
        shared[index] = work[0]

    assert _told(kernel, start) == []
    assert shared[:40].tolist() == list(range(40))


def test_no_warning_where_nothing_is_lost() -> None:
    """Serial and threads write to the caller's own."""
    counts = np.zeros(10)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        counts[index % 10] += 1

    ndshare.SerialContext().map(kernel, range(40))
    assert counts.sum() == 40
    ndshare.ThreadContext(2).map(kernel, range(40))


@pytest.mark.parametrize("size", [40, _LARGE])
def test_mapped_array_that_is_reached_by_a_detour_is_named(start: str, size: int) -> None:
    """The kernel has it in an object of the standard library, where nobody looks."""
    array = np.zeros(size)
    somewhere = types.MappingProxyType({"found": array})

    def kernel(_worker_id: int, index: int, _value: float) -> None:
        if index == 3:
            somewhere["found"][3] = 1

    assert _told(kernel, start, array) == ["the mapped collection"]


class _Sum:
    def __init__(self) -> None:
        self.total = 0.0
        self._seen = 0

    def add(self, value: float) -> None:
        self.total += value
        self._seen += 1


def test_attributes_of_captured_objects_that_are_bound_anew_are_named(start: str) -> None:
    """The object that adds up, in a list as well; an attribute of a function, a text; not what is private."""
    one, several, plain = _Sum(), [_Sum(), _Sum()], types.SimpleNamespace(last=0, kept=[])
    text = ""

    def kernel(_worker_id: int, index: int, value: int) -> None:
        nonlocal text
        one.add(value + 1)
        several[1].total = 3.0
        plain.last = value + 1
        plain.kept.append(value)
        kernel.calls += 1  # type: ignore[attr-defined]
        text += "x"

    kernel.calls = 0  # type: ignore[attr-defined]
    assert _told(kernel, start) == [
        "kernel.calls", "one.total", "plain.kept", "plain.last", "several[1].total", "text",
    ]  # fmt: skip

    def careful(_worker_id: int, _index: int, _value: int) -> None:
        one._seen += 1

    assert _told(careful, start) == []


class _Counts:
    array = np.zeros(4)
    listed: ClassVar[list[int]] = []
    number = 0
    _cache: ClassVar[dict[int, int]] = {}

    def in_array(self, *_: object) -> None:
        self.array[0] += 1

    def in_list(self, *_: object) -> None:
        _Counts.listed.append(1)

    def in_number(self, *_: object) -> None:
        _Counts.number += 1

    @classmethod
    def in_class(cls, *_: object) -> None:
        cls.array[1] = 1

    def in_cache(self, *_: object) -> None:
        self._cache[1] = 2


def test_what_classes_keep_is_named(start: str) -> None:
    """By ``self``, by the class, by a class method; private containers are caches."""
    assert _told(_Counts().in_array, start) == ["_Counts.array"]
    assert _told(_Counts().in_list, start) == ["_Counts.listed"]
    assert _told(_Counts().in_number, start) == ["_Counts.number"]
    assert _told(_Counts.in_class, start) == ["_Counts.array"]
    assert _told(_Counts().in_cache, start) == []
    assert not _Counts.array.any()


_MODULE = """
import numpy as np
rng = np.random.default_rng(7)
table = [0]
plain = np.zeros(4)
out = None
_memo = {}
def remember(i): return _memo.setdefault(i, i)
def draw(): return rng.normal()
def write(i): out[i] = 1
"""

_OF_MODULES = """
import sys, warnings
import numpy as np
import ndshare, settings

def told(kernel, start):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ndshare.ProcessContext(2, start=start).map(kernel, range(4))
    return [w.message.name for w in seen]

settings.out = ndshare.alloc(4)
for start in ("pool", "fork", "auto"):
    assert told(lambda w, i, v: settings.draw(), start) == ["settings.rng"]
    assert told(lambda w, i, v: settings.rng.normal(), start) == ["settings.rng"]
    assert told(lambda w, i, v: settings.table.append(1), start) == ["settings.table"]
    assert told(lambda w, i, v: settings.remember(i), start) == []
    assert told(lambda w, i, v: settings.plain.__setitem__(i, 1), start) == ["settings.plain"]
    for kernel in (lambda w, i, v: settings.out.__setitem__(i, 1), lambda w, i, v: settings.write(i)):
        settings.out[:] = 0
        assert told(kernel, start) == []
        assert settings.out.all(), start
print("works")
"""


def test_what_modules_of_the_user_keep_is_named_or_shared(run_script, tmp_path) -> None:
    """Reached as an attribute of the module, or by a function of it."""
    (tmp_path / "settings.py").write_text(_MODULE)
    done = run_script(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{_OF_MODULES}", timeout=90)
    assert (done.stdout, done.stderr) == ("works\n", "")


_FOREIGN = """
import mmap, multiprocessing, warnings
import numpy as np
import ndshare
from multiprocessing import shared_memory

def told(kernel, start):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ndshare.ProcessContext(2, start=start).map(kernel, range(4))
    return [w.message.name for w in seen]

raw, single = multiprocessing.RawArray("d", 4), multiprocessing.RawValue("d", 0)
named = shared_memory.SharedMemory(create=True, size=4096)
targets = [raw, np.frombuffer(raw), np.ctypeslib.as_array(raw), np.frombuffer(mmap.mmap(-1, 4096), "f8", 4),
           np.ndarray(4, "f8", named.buf)]
for target in targets:
    def kernel(worker_id, index, value):
        target[index] = 1
    for start in ("fork", "auto"):
        target[0:4] = [0] * 4
        assert told(kernel, start) == []
        assert list(target[:4]) == [1] * 4
    if target is not raw:  # a pool has copies
        target[0:4] = [0] * 4
        assert told(kernel, "pool") == ["target"]
        assert list(target) == [0] * 4
def kernel(worker_id, index, value):
    single.value = 5
assert told(kernel, "fork") == [] and single.value == 5
target = targets = None
named.close()
named.unlink()
print("works")
"""


def test_memory_that_others_share_with_forked_workers_is_no_copy(run_script) -> None:
    """Of multiprocessing and mmap: what a forked worker writes arrives, and the default of pasha forks for it."""
    done = run_script(_FOREIGN, timeout=90)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_forked_worker_compares_only_what_it_has_written_to() -> None:
    """Large arrays of before the fork: one byte at either end or within is found, reading and equal bytes are not."""
    size = (3 << 20) + 5  # bytes: ends within a page
    first, last, within, equal, read = (np.ones(size, np.uint8) for _ in range(5))
    out = ndshare.alloc(1, np.int64)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 0:
            first[0] = last[-1] = within[size // 2] = 2
            equal[:] = 1
            out[0] = read.sum()

    assert _told(kernel, "fork") == ["first", "last", "within"]
    assert out[0] == size


def test_forked_worker_that_forks_in_turn_is_found_out() -> None:
    """Its pages are another process's as well, as those that nobody wrote to are."""
    written, read = np.zeros(_LARGE), np.zeros(_LARGE)

    def kernel(_worker_id: int, index: int, _value: int) -> None:
        if index == 0:
            written[1000] = read[1000] + 1
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.put(pid)

    children = multiprocessing.SimpleQueue()
    try:
        assert _told(kernel, "fork") == ["written"]
    finally:
        os.kill(children.get(), signal.SIGKILL)
        children.close()


def test_array_that_a_forked_worker_shares_with_nobody_is_compared_with_its_digest() -> None:
    """The caller writes to it between the fork and the first look: there is nothing to compare with any more."""
    array = np.zeros(_LARGE)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            forker = differences.Forker(memory)
            assert forker.watch(array) is not None
            array[100_000] = 1  # a page of its own from now on
            assert forker.watch(array) is None
            question = differences.watch_array(array, forker)
            assert not question()
            array[7] = 1
            assert question()
            status = 0
        finally:
            os._exit(status)
    os.close(memory)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_functions_write_to_that_a_kernel_calls_is_named(
    start: str, run_script: Callable[..., Any]
) -> None:
    """Globals, classes and generators of helpers, of methods, of what a partial or a closure brings."""
    source = f"""
import functools, sys, warnings
import numpy as np, ndshare

class Store:
    kept = {{}}
    count = 0
    rng = np.random.default_rng(1)
    @classmethod
    def put(cls, i): cls.kept[i] = 1
class Log:
    def line(self, i): lines.append(i)
    @staticmethod
    def draw(): Store.rng.normal()
lines, log, total = [], Log(), 0
def add(i):
    global total
    total += i
def save(i): Store.kept[i] = 1
def save_more(i): save(i)
@functools.lru_cache
def cached(i): Store.put(i)
class Kernel:
    def __call__(self, w, i, v): save(i)
    def method(self, w, i, v): log.line(i)
def calling(f):
    return lambda w, i, v: f(i)
def harmless(w, i, v): len(lines), Store.count
kernels = {{
    "total": [lambda w, i, v: add(i), calling(add)],
    "Store.kept": [lambda w, i, v: save_more(i), Kernel(), functools.partial(lambda f, w, i, v: f(i), save),
                   calling(functools.partial(save_more)), calling(Store.put), lambda w, i, v: cached(i)],
    "lines": [lambda w, i, v: log.line(i), Kernel().method, calling(log.line), lambda w, i, v: Log().line(i)],
    "Store.rng": [lambda w, i, v: log.draw()],
}}
for name, those in kernels.items():
    for number, kernel in enumerate(those):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ndshare.ProcessContext(2, start={start!r}).map(kernel, range(1, 9))
        told = sorted({{warning.message.name for warning in caught}})
        assert told == [name], (name, number, told)
warnings.simplefilter("error")
ndshare.ProcessContext(2, start={start!r}).map(harmless, range(8))
print("works")
"""
    done = run_script(source, timeout=90)
    assert (done.stdout, done.stderr) == ("works\n", "")
