"""Objects that are buffers keep their type and meaning wherever they go, or are refused."""

from __future__ import annotations

import array
import collections
import ctypes
import mmap
import pickle
import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ndshare
from tests.peer import to_oneself

RunScript = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.filterwarnings("ignore:The 'u' type code:DeprecationWarning")

_TIMEOUT_S = 90


class _Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int), ("b", ctypes.c_double * 2)]


_VIEWS: dict[str, Callable[[], memoryview]] = {
    "doubles": lambda: memoryview(np.array([1.5, 2.5, 3.5])),
    "two axes": lambda: memoryview(np.arange(6.0).reshape(2, 3)),
    "Fortran order": lambda: memoryview(np.asfortranarray(np.arange(6).reshape(2, 3))),
    "every other": lambda: memoryview(np.arange(10))[::2],
    "backwards": lambda: memoryview(bytearray(b"abcdef"))[::-1],
    "no axis": lambda: memoryview(np.array(4.0)),
    "empty": lambda: memoryview(np.zeros((0, 3))),
    "large": lambda: memoryview(np.arange(300_000.0)),
    "bytes": lambda: memoryview(b"abc"),
    "no bytes": lambda: memoryview(b""),
    "large bytes": lambda: memoryview(bytes(300_000)),
    "read-only": lambda: memoryview(bytearray(b"abc")).toreadonly(),
    "cast": lambda: memoryview(b"abcdefgh").cast("I"),
    "characters": lambda: memoryview(b"abc").cast("c"),
    "signed characters": lambda: memoryview(b"abc").cast("b"),
    "native sizes": lambda: memoryview(bytes(16)).cast("n"),
    "truth": lambda: memoryview(b"\0\1").cast("?"),
    "cast to two axes": lambda: memoryview(bytes(range(8))).cast("B", (2, 4)),
    "array.array": lambda: memoryview(array.array("h", [1, -2])),
    "floats": lambda: memoryview(array.array("f", [1, -2])),
    "big-endian": lambda: memoryview(np.array([1.0, 2.0], ">f8")),
    "complex": lambda: memoryview(np.array([1 + 2j])),
    "half": lambda: memoryview(np.array([1.5], "f2")),
    "mapped": lambda: memoryview(mmap.mmap(-1, 4096)),
}


@pytest.mark.parametrize("name", _VIEWS)
def test_memoryview_arrives_as_it_is(name: str) -> None:
    """Format, shape, whether it may be written to, and what is in it."""
    view = _VIEWS[name]()
    arrived = to_oneself([view])[0]
    assert type(arrived) is memoryview
    assert (arrived.format, arrived.shape, arrived.readonly) == (view.format, view.shape, view.readonly)
    assert np.asarray(arrived).tolist() == np.asarray(view).tolist()
    if not view.readonly and view.nbytes:
        before = view.tobytes()
        np.asarray(arrived)[...] = np.zeros((), np.asarray(arrived).dtype)
        assert view.tobytes() == before, "a copy of the receiver's own"


@pytest.mark.parametrize(
    "view",
    [
        lambda: memoryview((ctypes.c_double * 3)(1, 2, 3)),
        lambda: memoryview(array.array("u", "ab")),
        lambda: memoryview((_Pair * 2)(_Pair(1), _Pair(2))),
        lambda: memoryview(np.zeros(2, np.dtype([("a", "i4"), ("b", "f8")], align=True))),
    ],
)
def test_memoryview_of_structures_means_the_same(view: Callable[[], memoryview]) -> None:
    """Their format is spelled in another way."""
    sent = view()
    arrived = to_oneself(sent)
    assert type(arrived) is memoryview
    assert (arrived.shape, arrived.itemsize) == (sent.shape, sent.itemsize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # ctypes describes gaps wrongly
        expected = np.asarray(sent)
    assert np.asarray(arrived).dtype == expected.dtype
    assert str(np.asarray(arrived)) == str(expected)


def test_memoryview_of_shared_memory_is_shared() -> None:
    """It goes by reference, and `share` makes one."""
    shared = ndshare.zeros(3000)
    arrived = to_oneself(memoryview(shared)[10:20])
    arrived[3] = 5
    assert shared[13] == 5
    made = ndshare.share({"view": memoryview(np.arange(3.0))})["view"]
    assert type(made) is memoryview
    assert made.tolist() == [0, 1, 2]
    assert ndshare.is_shared(np.asarray(made))


@pytest.mark.parametrize(
    "view",
    [
        lambda: memoryview(np.array([None, 1], object)),
        lambda: memoryview((ctypes.c_void_p * 2)()),
    ],
)
def test_memoryview_of_what_is_no_number_is_refused(view: Callable[[], memoryview]) -> None:
    """Objects, and addresses."""
    with pytest.raises(TypeError, match=r"memoryview|pointers"):
        to_oneself(view())


@pytest.mark.parametrize("size", [3, 100_000])
def test_other_buffers_keep_their_type(size: int) -> None:
    """Those that pickle knows; a mapping of memory is refused."""
    sent: list[Any] = [
        array.array("d", [1.5] * size),
        array.array("u", "ab" * size),
        bytearray(b"ab" * size),
        (ctypes.c_double * size)(1, 2, 3),
        _Pair(4, (1, 2)),
        collections.deque([bytearray(b"x")]),
    ]
    arrived = to_oneself(sent)
    assert [type(x) for x in arrived] == [type(x) for x in sent]
    assert arrived[:3] == sent[:3]
    assert arrived[0].typecode == "d"
    assert arrived[1].typecode == "u"
    assert list(arrived[3]) == list(sent[3])
    assert (arrived[4].a, list(arrived[4].b)) == (4, [1, 2])
    with pytest.raises((TypeError, pickle.PicklingError), match=r"np\.memmap of its file.*ndshare\.zeros"):
        to_oneself([mmap.mmap(-1, 100)])
    for refused in (mmap.mmap(-1, 100), ctypes.pointer(ctypes.c_int(1))):
        with pytest.raises((TypeError, ValueError, pickle.PicklingError)):
            to_oneself(refused)


_ROUTES = """
import asyncio, functools, warnings
import numpy as np, ndshare
from ndshare import ProcessPoolExecutor as Executor

def make(): return memoryview(np.array([[1.5, 2.5, 3.5]]))
view = make()
flat = memoryview(np.array([1.5, 2.5, 3.5]))
def told(v): return type(v).__name__, v.format, v.shape, v.tolist()
right = ("memoryview", "d", (1, 3), [[1.5, 2.5, 3.5]])
class Holder:
    held = view
    def __init__(self, v): self.v = v
    def look(self): return told(self.v), told(self.held)
def init(v):
    global kept
    kept = v
def with_default(v=view): return told(v)
def main():
    with Executor(2, initializer=init, initargs=(view,)) as executor:
        call = lambda f, *args: executor.submit(f, *args).result()
        assert call(told, view) == right, "argument"
        assert told(call(make)) == right, "result"
        assert call(lambda: told(view)) == right, "global"
        assert call(lambda: told(kept)) == right, "initializer"
        assert call(with_default) == right, "default"
        assert call(functools.partial(told, view)) == right, "partial"
        assert call((lambda v: lambda: told(v))(view)) == right, "closure"
        assert call(Holder(view).look) == (right, right), "attributes"
        assert list(executor.map(told, [view] * 3)) == [right] * 3, "map of an executor"
        async def one():
            return await asyncio.get_running_loop().run_in_executor(executor, told, {"v": view}["v"])
        assert asyncio.run(one()) == right, "asyncio"
        queue = ndshare.Queue()
        queue.put(view)
        queue.put([view, np.zeros(300_000)])
        assert told(queue.get()) == right and told(queue.get()[0]) == right, "queue"
    for context in (ndshare.SerialContext(), ndshare.ThreadContext(2), ndshare.ProcessContext(2)):
        out = ndshare.alloc(3)
        context.map(lambda w, i, v: out.__setitem__(i, v), flat)
        assert list(out) == [1.5, 2.5, 3.5], "mapped"
        context.map(lambda w, i, v: out.__setitem__(i, flat[i] + (told(view) == right)), range(3))
        assert list(out) == [2.5, 3.5, 4.5], "captured"
    try:
        import joblib
    except ImportError:
        return
    import ndshare.integrations.joblib as backend
    backend.register()
    with joblib.parallel_config("ndshare", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(told)(view) for _ in range(2)) == [right] * 2
main()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import ctypes
    numbers = (ctypes.c_int * 3)()
    def kernel(worker_id, index, value):
        flat[index] = 9
        numbers[index] = 9
    ndshare.ProcessContext(2).map(kernel, range(3))
assert sum("flat" in str(w.message) for w in seen) == 1, seen
assert sum("numbers" in str(w.message) for w in seen) == 1, seen
print("works")
"""


def test_memoryview_on_every_route(run_script: RunScript) -> None:
    """Arguments, results, globals, closures, attributes, queues, maps; writes in vain are told."""
    done = run_script(_ROUTES, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")
