"""ndshare.compat.shared_numpy keeps what callers of shared_numpy rely on, and has not its faults."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer

import numpy as np
import pytest

import ndshare
from ndshare.compat import shared_numpy as snp
from tests.compat import snp_tasks

RunScript = Callable[..., subprocess.CompletedProcess[str]]
_SPAWN = multiprocessing.get_context("spawn")

_README = """
import numpy as np
from ndshare.compat import shared_numpy as snp

def f(q):
    for i in range(10):
        a = snp.array([1, 2, 3, 4, 5])
        q.put(a)
        a.close()
    q.put(None)

import multiprocessing as mp

if __name__ == "__main__":
    q = snp.Queue()
    p = mp.Process(target=f, args=(q,))
    p.start()
    count = 0
    while True:
        out = q.get()
        if out is None: break
        assert out.tolist() == [1, 2, 3, 4, 5]
        count += 1
        out.close()
        out.unlink()
    p.join()
    assert count == 10

a = np.zeros((10, 10))
b = snp.from_array(a)
assert b.shape == (10, 10)
assert snp.SharedMemory and snp.ShareableList
"""


def test_documented_example_runs_with_one_import_line_changed(run_script: RunScript) -> None:
    """The README's pieces, as one script; the main guard is for the standard library's processes."""
    run_script(_README)


def test_documented_example_runs_unchanged_after_install(run_script: RunScript) -> None:
    """The same with the original's own import line, and its submodule."""
    line = "from ndshare.compat import shared_numpy as snp"
    head = "import ndshare.compat; ndshare.compat.install('shared_numpy')\n"
    tail = "\nfrom shared_numpy import shared_memory\nassert shared_memory.SharedMemory is snp.SharedMemory\n"
    run_script(head + _README.replace(line, "import shared_numpy as snp") + tail)


@pytest.fixture
def q() -> Iterator[snp.Queue]:
    """Return a queue."""
    made = snp.Queue()
    yield made
    made.close()
    made.join_thread()


def test_keep_producer_closes_at_once_and_consumer_unlinks(q) -> None:
    """In another process that does not come from a fork."""
    child = _SPAWN.Process(target=snp_tasks.fill, args=(q,))
    child.start()
    for number in range(10):
        out = q.get(timeout=60)
        assert out.tolist() == [number, 2, 3, 4, 5]
        assert type(out) is snp.SharedNDArray
        out.close()
        out.unlink()
    assert q.get(timeout=60) is None
    child.join()
    child.close()


def test_keep_name_shape_and_dtype_survive_close() -> None:
    """And what is in it can be read."""
    a = snp.array([1, 2, 3], dtype="i2")
    name = a.shm.name
    a.close()
    assert (a.shm.name, a.shape, a.dtype) == (name, (3,), np.dtype("i2"))
    assert a.tolist() == [1, 2, 3]


def test_keep_any_picklable_rides_the_queue(q) -> None:
    """None, dicts, ordinary arrays, arrays in lists."""
    items = [None, {"a": 1}, [snp.array([1, 2])], np.arange(3)]
    for item in items:
        q.put(item)
    assert q.get() is None
    assert q.get() == {"a": 1}
    assert type(q.get()[0]) is snp.SharedNDArray
    assert type(q.get()) is np.ndarray


def test_keep_double_close_is_harmless_and_double_unlink_raises() -> None:
    """FileNotFoundError, as for a file."""
    a = snp.array([1])
    a.close()
    a.close()
    a.unlink()
    with pytest.raises(FileNotFoundError):
        a.unlink()


def test_keep_plain_pickle_makes_a_private_copy() -> None:
    """Of the same class."""
    a = snp.array([1, 2])
    b = pickle.loads(pickle.dumps(a))
    b[0] = 9
    assert a[0] == 1
    assert type(b) is snp.SharedNDArray


def test_keep_results_keep_the_class() -> None:
    """``a + 1``, slices, copies."""
    a = snp.array([1, 2])
    assert type(a + 1) is type(a[1:]) is type(a.copy()) is snp.SharedNDArray


def test_keep_arrays_are_arguments_of_processes_and_go_through_pipes() -> None:
    """By reference, under every start method."""
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        a = snp.array([1, 2, 3])
        child = context.Process(target=snp_tasks.write_first, args=(a, 7))
        child.start()
        child.join()
        child.close()
        assert a[0] == 7
    a = snp.array([1, 2, 3])
    ours, theirs = _SPAWN.Pipe()
    child = _SPAWN.Process(target=snp_tasks.answer, args=(theirs,))
    child.start()
    ours.send(a)
    back = ours.recv()
    back[2] = 43
    assert a.tolist() == [1, 42, 43]
    ours.send(None)
    child.join()
    child.close()
    ours.close()
    theirs.close()
    resource_sharer.stop()  # the thread by which multiprocessing passes descriptors on


_LAYOUTS = {
    "F order": np.asfortranarray([[1, 2, 3], [4, 5, 6]]),
    "strided": np.arange(24).reshape(4, 6)[::2, 1::2],
    "transposed": np.arange(6).reshape(2, 3).T,
    "0-d": np.array(4.5),
    "empty": np.zeros((0, 3)),
    "structured": np.ones(3, [("a", "i4"), ("b", "f8")]),
    "dates": np.array(["2020-01-01"], "M8[D]"),
}


@pytest.mark.parametrize("name", _LAYOUTS)
def test_gone_order_and_strides_are_corrupted(q, name: str) -> None:
    """Whatever the layout, elements arrive as sent; no dimensions and no elements are fine."""
    array = _LAYOUTS[name]
    for sent in (
        snp.from_array(array),
        snp.array(array),
        snp.from_array(np.repeat(array, 1).reshape(array.shape)),
    ):
        q.put(sent)
        got = q.get()
        assert np.array_equal(got, array)
        assert got.dtype == array.dtype
    assert snp.from_array(array).flags.f_contiguous == array.copy("K").flags.f_contiguous


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_gone_arrays_of_no_dimensions_or_elements_fail(q, shape) -> None:
    """Made in each way, sent, written to, closed and unlinked as others."""
    for made in (snp.ndarray(shape), snp.array(np.zeros(shape)), snp.from_array(np.zeros(shape))):
        made[...] = 4.5
        q.put(made)
        got = q.get()
        assert type(got) is snp.SharedNDArray
        assert got.shape == shape
        assert got.tolist() == np.full(shape, 4.5).tolist()
        got[...] = 5.5
        assert made.tolist() == np.full(shape, 5.5).tolist()
        for side in (made, got):
            side.close()
            side.unlink()


def test_gone_slices_and_results_lack_shm(q) -> None:
    """They have one, and go through the queue."""
    a = snp.array(np.arange(6.0).reshape(2, 3))
    assert a[0].shm is a.shm
    assert (a + 1).shm is not a.shm
    for sent in (a[:, ::2], a.T, a + 1, np.sin(a)):
        q.put(sent)
        assert np.array_equal(q.get(), sent)
        sent.close()
    q.put(a[1])
    q.get()[0] = 99
    assert a[1, 0] == 99


def test_gone_messages_are_lost() -> None:
    """What cannot be pickled raises in `put`, and the next message arrives."""
    q = snp.Queue()
    with pytest.raises((TypeError, AttributeError)):
        q.put([snp.array([1]), (number for number in range(3))])
    q.put(1)
    assert q.get(timeout=60) == 1
    q.close()


def test_gone_use_after_close_crashes() -> None:
    """Reading and writing go on until the array is let go."""
    a = snp.array(np.arange(300_000))
    view = a[5:]
    a.close()
    a.unlink()
    a[5] = 1
    del a
    assert view[0] == 1
    assert view.sum() == sum(range(6, 300_000)) + 1


def test_gone_typo_in_all() -> None:
    """``import *`` works."""
    space: dict[str, object] = {}
    exec("from ndshare.compat.shared_numpy import *", space)
    assert {"array", "ndarray", "from_array", "Queue", "SharedMemory", "ShareableList"} <= set(space)


def test_gone_object_dtype_shares_pointers() -> None:
    """Refused, with what to do."""
    for make in (snp.array, snp.from_array):
        with pytest.raises(TypeError, match="Python objects"):
            make([{}])
    with pytest.raises(TypeError, match="Python objects"):
        snp.ndarray(3, object)


def test_gone_from_array_of_a_list() -> None:
    """Anything that can be made an array; always a copy."""
    assert snp.from_array([1, 2]).tolist() == [1, 2]
    a = snp.array([1, 2])
    snp.from_array(a)[0] = 5
    assert a[0] == 1


_ALLOCATIONS = """
import tracemalloc
import numpy as np
import ndshare
from ndshare.compat import shared_numpy as snp

shape, nbytes = (2048, 4096), 1 << 26
ordinary = np.ones(shape)

def pss():
    with open("/proc/self/smaps_rollup") as file:
        [line] = [line for line in file if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024

def cost(make):
    "Segments taken, segments and bytes that are shared now, resident memory, what NumPy had at most; in arrays."
    ndshare.trim()
    before, memory = ndshare.stats(), pss()
    tracemalloc.start()
    made = make()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    made[...] = 2
    now = ndshare.stats()
    assert ndshare.is_shared(made) and made.shape == shape and made.dtype == np.float64
    return (
        now.fresh + now.recycled - before.fresh - before.recycled,
        now.shared_segments - before.shared_segments,
        round((now.shared_bytes - before.shared_bytes) / nbytes, 1),
        round((pss() - memory) / nbytes, 1),
        round(peak / nbytes, 1),
    )

# What is not filled has a file of its own, to which pages come when they are written to.
unfilled = (0, 1, 1.0, 1.0, 1.0)
for make in (lambda: snp.ndarray(shape), lambda: snp.ndarray(shape, dtype=float, order="F")):
    seen = cost(make)
    assert seen == unfilled, seen
once = (1, 1, 1.0, 1.0, 1.0)
for number, make in enumerate((
    lambda: snp.array(ordinary),
    lambda: snp.from_array(ordinary),
    lambda: snp.from_array(ordinary.T).T,
)):
    seen = cost(make)
    assert seen == once, (number, seen)
# What is measured shows twice as much where there is twice as much: beside shared memory, and in it.
assert cost(lambda: ndshare.share(np.ndarray(shape))) == (1, 1, 1.0, 1.0, 2.0)
assert cost(lambda: snp.from_array(snp.array(ordinary)))[0] == 2
"""


def test_gone_ndarray_allocates_twice(run_script: RunScript) -> None:
    """Once, and in shared memory: counted by segments, resident pages and NumPy's own allocations."""
    a = snp.ndarray((1000, 1000), dtype=np.float32, order="F")
    assert (a.shape, a.dtype, a.flags.f_contiguous) == ((1000, 1000), np.float32, True)
    assert ndshare.is_shared(a)
    run_script(_ALLOCATIONS)


def test_gone_nobody_unlinks(q) -> None:
    """Nothing has a name: a producer that was killed leaves nothing, and its message arrives."""
    before = set(os.listdir("/dev/shm"))
    child = _SPAWN.Process(target=snp_tasks.put_and_die, args=(q,))
    child.start()
    child.join()
    child.close()
    assert q.get(timeout=60).sum() == np.arange(200_000).sum()
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith(("psm_", "wnsm"))}


def test_gone_build_fails_on_new_pythons(run_script: RunScript) -> None:
    """`SharedMemory` and `ShareableList` are there; who only attaches does not unlink."""
    script = """
        import subprocess, sys
        from ndshare.compat.shared_numpy import SharedMemory, ShareableList
        shm = SharedMemory(create=True, size=100)
        shm.buf[0] = 5
        items = ShareableList([1, "two", None, 2.5])
        code = (
            "import sys; from ndshare.compat.shared_numpy import SharedMemory, ShareableList;"
            "shm, items = SharedMemory(sys.argv[1]), ShareableList(name=sys.argv[2]);"
            "assert shm.buf[0] == 5 and list(items) == [1, 'two', None, 2.5];"
            "shm.buf[1] = 6; shm.close(); items.shm.close()"
        )
        done = subprocess.run([sys.executable, "-c", code, shm.name, items.shm.name], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        again = SharedMemory(shm.name, track=False)
        assert again.buf[1] == 6
        again.close()
        assert list(ShareableList(name=items.shm.name)) == [1, "two", None, 2.5]
        shm.close(); shm.unlink()
        items.shm.close(); items.shm.unlink()
        try:
            SharedMemory(shm.name)
        except FileNotFoundError:
            pass
        else:
            raise AssertionError
        mine = SharedMemory(create=True, size=10, track=False)
        mine.close(); mine.unlink()
    """
    assert run_script(textwrap.dedent(script)).stderr == ""


def test_memory_that_is_closed_in_use_is_kept() -> None:
    """An array on it can be used: in the standard library that ends the process."""
    shm = snp.SharedMemory(create=True, size=80_000, track=False)
    array = np.ndarray(10_000, buffer=shm.buf)
    shm.close()
    shm.close()
    array[:] = 1
    assert array.sum() == 10_000
    assert shm.buf is None
    shm.unlink()


def _pages(array: np.ndarray) -> int:
    """Bytes that the file behind an array takes."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, inode = line.split()[:5]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= address < high:
                break
    for fd in os.listdir("/proc/self/fd"):
        facts = os.stat(f"/proc/self/fd/{fd}")
        if facts.st_ino == int(inode):
            return facts.st_blocks * 512
    raise AssertionError(line)


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_that_nobody_fills_takes_no_pages(order: str) -> None:
    """As in the original: memory comes with the first write, here and in another process."""
    ndshare.trim()
    a = snp.ndarray((300, 10_000), np.int32, order=order)
    assert (a.shape, a.dtype, type(a)) == ((300, 10_000), np.int32, snp.SharedNDArray)
    assert a.flags.f_contiguous == (order == "F")
    assert ndshare.is_shared(a)
    assert _pages(a) < 100_000
    queue = snp.Queue()
    queue.put(a)
    b = queue.get()
    b[7, 9] = 5
    assert a[7, 9] == 5
    assert a.sum() == 5
    assert _pages(a) < 13_000_000
    a[...] = 3
    assert (b == 3).all()
    queue.close()
