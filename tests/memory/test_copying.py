"""Large copies by several threads."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare._memory import _heap
from ndshare._memory.copying import copy_array

pytestmark = pytest.mark.once

_LARGE = 3 << 20  # items of eight bytes: three threads' worth and more


def _layouts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(source, target) of one layout or two."""
    rng = np.random.default_rng(3)
    flat = rng.normal(size=_LARGE)
    cube = flat.reshape(64, 128, -1)
    record = np.zeros(1 << 20, np.dtype([("a", "u1"), ("b", ">f8"), ("c", "i4", (2,))], align=True))
    record["b"] = flat[: 1 << 20]
    dates = flat.view(np.int64).view("M8[ns]")
    return {
        "C": (cube, np.empty_like(cube)),
        "F": (np.asfortranarray(cube), np.empty_like(cube, order="F")),
        "permuted": (cube.transpose(1, 0, 2), np.empty_like(cube).transpose(1, 0, 2)),
        "C to F": (cube, np.empty_like(cube, order="F")),
        "reversed": (flat[::-1], np.empty_like(flat)),
        "every other": (np.repeat(flat, 2)[::2], np.empty_like(flat)),
        "structured": (record, np.empty_like(record)),
        "datetime64": (dates, np.empty_like(dates)),
        "odd length": (flat.view(np.uint8)[5:-2], np.empty(flat.nbytes - 7, np.uint8)),
        "broadcast": (np.broadcast_to(flat[:1024], (4096, 1024)), np.empty((4096, 1024))),
    }


@pytest.mark.parametrize("name", list(_layouts()))
def test_copy_equals_numpys(name: str) -> None:
    """Whatever the layouts, the values are NumPy's."""
    source, target = _layouts()[name]
    copy_array(target, source)
    assert np.array_equal(target, source)


def test_memory_between_the_items_is_left_alone() -> None:
    """Strides whose extent happens to be the size of the array do not make it dense, such as (0, 24)."""

    def make(fill: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        memory = np.full(64, fill)
        return memory, np.lib.stride_tricks.as_strided(memory[32:], shape, strides)

    copied = 0
    for shape in [(2, 2), (3, 2), (1, 2), (2, 3), (4, 1), (2, 2, 2)]:
        for strides in itertools.product((0, 8, -8, 16, 24), repeat=len(shape)):
            (_, source), (ours, target), (theirs, expected) = (make(f, shape, strides) for f in (7, 1, 1))
            if _heap.copy(target, source, 3):
                copied += 1
                np.copyto(expected, source)
                assert (ours == theirs).all(), (shape, strides)
    assert copied > 10


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8, 100])
def test_number_of_threads_does_not_matter(threads: int) -> None:
    """Every number of threads copies every byte, and not one more."""
    source = np.random.default_rng(4).integers(0, 255, 10_000_019, dtype=np.uint8)
    room = np.zeros(source.size + 2, np.uint8)
    assert _heap.copy(room[1:-1], source, threads)
    assert np.array_equal(room[1:-1], source)
    assert room[0] == room[-1] == 0


def test_what_is_not_dense_is_left_to_numpy() -> None:
    """Nothing is written if the answer is False."""
    source = np.arange(100.0)
    refused = [
        (np.zeros(50), source[::2]),
        (np.zeros((10, 10), order="F"), source.reshape(10, 10)),
        (np.zeros(100, np.float32), source),
        (np.zeros(99), source),
        (np.zeros((100, 1)), source),
        (np.array([None] * 100), np.array([None] * 100)),
    ]
    for target, origin in refused:
        before = target.copy()
        assert not _heap.copy(target, origin, 2)
        assert np.array_equal(target, before)
    assert not _heap.copy(source[1:], source[:-1], 2)  # they overlap
    frozen = np.zeros(100)
    frozen.flags.writeable = False
    assert not _heap.copy(frozen, source, 2)
    with pytest.raises(TypeError, match="two arrays"):
        _heap.copy(frozen, b"", 2)


def test_threads_end_with_the_copy() -> None:
    """No thread is left, and none is one of Python's."""
    source = np.ones(8 << 20)
    target = np.empty_like(source)
    before = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        assert _heap.copy(target, source, 8)
        assert len(os.listdir("/proc/self/task")) == before


def test_signals_are_the_callers() -> None:
    """A signal in the middle of copies is handled by Python's main thread, and disturbs none of them."""
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(threading.current_thread()))
    source = np.random.default_rng(5).normal(size=4 << 20)
    target = np.empty_like(source)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            target[:] = 0
            assert _heap.copy(target, source, 4)
            assert np.array_equal(target, source)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(seen) == {threading.main_thread()}


_NO_THREADS = """
import resource, numpy as np
from ndshare._memory import _heap
source = np.arange(4 << 20)
target = np.zeros_like(source)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages, pages))
assert _heap.copy(target, source, 8)
assert np.array_equal(target[::4096], source[::4096])
print("copied")
"""


@pytest.mark.unsanitized  # takes the address space away, of which a sanitizer needs terabytes
def test_copy_is_made_where_no_thread_can_be_started() -> None:
    """Without memory for a thread's stack the caller copies everything itself."""
    done = subprocess.run([sys.executable, "-c", _NO_THREADS], capture_output=True, text=True, check=False)
    assert done.stdout == "copied\n", done.stderr


@pytest.mark.unsanitized  # a fork between threads can leave the sanitizer's own locks taken
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_copies_finds_its_own_memory() -> None:
    """A child that is forked while another thread copies can copy as well."""
    source = np.random.default_rng(6).normal(size=4 << 20)
    stop = threading.Event()

    def keep_copying() -> None:
        own = np.empty_like(source)
        while not stop.is_set():
            _heap.copy(own, source, 4)

    thread = threading.Thread(target=keep_copying)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                mine = np.empty_like(source)
                ok = _heap.copy(mine, source, 2) and bool((mine[::4096] == source[::4096]).all())
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_large_arguments_and_shared_arrays_are_equal() -> None:
    """What uses it: `ndshare.array` and an argument of a task."""
    x = np.random.default_rng(7).normal(size=(2, 2 << 20))
    assert np.array_equal(ndshare.array(x), x)
    assert np.array_equal(ndshare.share(np.asfortranarray(x)), x)
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert np.array_equal(executor.submit(np.negative, x).result(), -x)
