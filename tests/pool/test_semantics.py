"""The two rules: shared arrays go by reference, everything else by value, whatever the size."""

from __future__ import annotations

import copy
import ctypes
import io
import itertools
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import ndshare
from tests.array_tasks import echo
from tests.pool import semantics_tasks as tasks
from tests.pool.semantics_tasks import is_pattern, pattern

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore::ndshare.RepeatedCopyWarning")]

KB, MB = 1024, 1024 * 1024
SIZES = (0, 1 * KB, 64 * KB, 1 * MB, 64 * MB)
_CHURN = (1 * KB, 64 * KB, 300 * KB, 1 * MB, 1 * MB, 5 * MB)


@pytest.fixture
def executor():
    """Return an executor with one worker: a later task runs where the earlier one ran."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        yield executor


def _arrays(result):
    if isinstance(result, np.ndarray):
        return [result]
    return [a for item in (result.values() if isinstance(result, dict) else result) for a in _arrays(item)]


def _copies(result):
    return [a.copy() for a in _arrays(result)]


def _same(result, copies):
    return all(np.array_equal(a, b) for a, b in zip(_arrays(result), copies, strict=True))


# ---- what the worker keeps


@pytest.mark.parametrize("nbytes", SIZES)
def test_result_of_kept_array_never_changes(executor, nbytes):
    """Whatever a task keeps of its argument or its result, writing there shows in no result."""
    ways = tasks.WAYS if nbytes <= MB else ("itself", "the array and return a view", "as memoryview")
    for way in ways:
        seen = []
        for seed, task in enumerate((tasks.keep_argument, tasks.keep_own)):
            given = (pattern(nbytes, seed),) if task is tasks.keep_argument else (nbytes, seed)
            result = executor.submit(task, way, *given).result()
            seen.append((result, _copies(result)))
            if task is tasks.keep_argument:
                assert is_pattern(given[0], seed)
        poked = executor.submit(tasks.poke, (nbytes, *_CHURN)).result()
        if nbytes and way not in ("only weakly", "in a cycle"):
            assert poked, way
        for result, copies in seen:
            assert _same(result, copies), way
        executor.submit(tasks.forget).result()
        executor.submit(tasks.poke, (nbytes, *_CHURN)).result()
        for result, copies in seen:
            assert _same(result, copies), way
            for a in _arrays(result):
                a += 1  # and the caller may write


def test_result_of_a_cache_is_a_new_copy_each_time(executor):
    """A task that returns the same cached array gives arrays that have nothing to do with each other."""
    for nbytes in SIZES:
        first = executor.submit(tasks.keep_cached, nbytes, 5).result()
        second = executor.submit(tasks.keep_cached, nbytes, 5).result()
        assert not np.shares_memory(first, second)
        first[:] = -3
        third = executor.submit(tasks.keep_cached, nbytes, 5).result()
        executor.submit(tasks.poke).result()
        assert (first == -3).all()
        assert is_pattern(second, 5)
        assert is_pattern(third, 5)
        executor.submit(tasks.forget).result()


def test_caller_writing_a_result_does_not_change_what_the_worker_keeps(executor):
    """The caller's result is the caller's own in the other direction too."""
    for nbytes in SIZES:
        result = executor.submit(tasks.keep_own, "itself", nbytes, 3).result()
        result[...] = -1
        again = executor.submit(tasks.keep_argument, "itself", pattern(nbytes, 9)).result()
        again[...] = -1
        assert is_pattern(executor.submit(tasks.kept).result(), 9)
        executor.submit(tasks.forget).result()


def test_argument_changed_later_does_not_change_what_the_worker_keeps(executor):
    """Neither the caller's writes nor the recycling of what arguments travelled in reach a kept argument."""
    for nbytes in SIZES:
        a = pattern(nbytes, 21)
        executor.submit(tasks.keep_argument, "a view and return the array", a).result()
        executor.submit(tasks.keep_argument, "itself", a).result()
        a[...] = -1
        for _ in range(3 if nbytes > MB else 10):  # takes the same memory again if it wrongly can
            executor.submit(tasks.total, [a, a + 1]).result()
        assert is_pattern(executor.submit(tasks.kept).result(), 21), nbytes
        executor.submit(tasks.forget).result()


def test_results_kept_by_the_caller_survive_many_tasks(executor):
    """Hundreds of results of all sizes keep their content while some are dropped and more are made."""
    rng = np.random.default_rng(7)
    alive: dict[int, tuple[np.ndarray, int]] = {}
    for seed in range(400):
        nbytes = int(rng.choice([8, 4096, 40_000, 70_000, 262_144, 300_000, 1_000_000, 3_000_000]))
        result = executor.submit(pattern, nbytes, seed).result()
        start = 0 if seed % 3 else result.size // 2
        alive[seed] = result[start:], start
        if len(alive) > 40:
            for victim in rng.choice(list(alive), 15, replace=False):
                del alive[int(victim)]
        if seed % 50 == 49:
            assert all(is_pattern(a, s, start) for s, (a, start) in alive.items())


def test_two_results_of_one_task_may_share_with_each_other_only(executor):
    """An array and a view of it arrive equal, and do not change with later tasks of the worker."""
    for nbytes in SIZES[1:]:
        whole, part = executor.submit(tasks.keep_own, "with a view", nbytes, 1).result()
        executor.submit(tasks.poke, _CHURN).result()
        assert is_pattern(whole, 1)
        assert is_pattern(part, 1, 1)


def test_map_results_are_as_independent_as_those_of_submit(executor):
    """The rules hold for `map` and its chunks."""
    results = list(executor.map(pattern, [64 * KB] * 20 + [MB] * 6, range(26), chunksize=5))
    executor.submit(tasks.poke, _CHURN * 3).result()
    assert all(is_pattern(a, seed) for seed, a in enumerate(results))
    same = pattern(MB, 4)
    results = list(executor.map(tasks.keep_argument, ["itself"] * 6, [same] * 6, chunksize=3))
    executor.submit(tasks.poke, _CHURN * 3).result()
    assert all(is_pattern(a, 4) for a in results)
    assert is_pattern(same, 4)


# ---- results after the end


def test_result_stays_valid_after_executor_and_shutdown():
    """Results are readable, writable and resizable when executor and workers are gone."""
    results = {}
    with ndshare.ProcessPoolExecutor(1) as executor:
        for nbytes in SIZES:
            results[nbytes] = executor.submit(pattern, nbytes, 11).result()
        shared = executor.submit(tasks.shared_segments, 3).result()
    del executor
    assert all(is_pattern(a, 11) for a in results.values())
    ndshare.shutdown()
    ndshare.trim()
    assert all(is_pattern(a, 11) for a in results.values())
    with ndshare.ProcessPoolExecutor(1) as executor:
        for nbytes in SIZES:
            executor.submit(pattern, nbytes, 12).result()
            executor.submit(tasks.total, results[nbytes]).result()
        assert [executor.submit(tasks.total, a).result() for a in shared] == [0, 3, 6]
    for nbytes, a in results.items():
        assert is_pattern(a, 11)
        a += 1
        assert is_pattern(a, 12), nbytes


def test_result_resizes_like_any_array():
    """`resize` works in both directions, across every threshold, on arguments and results."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for nbytes in SIZES:
            for new in (0, 10, 5000, 40_000, 200_000):
                a = executor.submit(pattern, nbytes, 2).result()
                assert a.flags.owndata
                a.resize(new, refcheck=False)
                n = min(new, nbytes // 8)
                assert is_pattern(a[:n], 2)
                assert not a[n:].any()
                a[...] = 1
        grown = executor.submit(_resize_argument, pattern(64 * KB, 3), 100_000).result()
        assert is_pattern(grown[: 8 * KB], 3)
        assert grown.size == 100_000


def _resize_argument(a, n):
    a.resize(n, refcheck=False)
    return a


def test_arrays_alive_at_interpreter_exit_are_no_trouble(run_script):
    """A script that ends with results, shared arrays, views and an open executor ends quietly."""
    done = run_script("""
import numpy as np, ndshare
executor = ndshare.ProcessPoolExecutor(2)
results = [executor.submit(np.ones, n).result() for n in (0, 10, 10_000, 1_000_000, 5_000_000)]
shared = [ndshare.share(r) for r in results] + [ndshare.share(r, mode="r") for r in results]
views = [a[::2] for a in results + shared]
kept = executor.submit(np.add, shared[4], 1)
class Late:
    def __del__(self):
        assert self.a[0] == self.a[-1] == 1
        self.a.resize(3, refcheck=False)
late = Late()
late.a = executor.submit(np.ones, 5_000_000).result()
late.me = late
print(kept.result()[0])
""")
    assert done.stdout == "2.0\n"
    assert done.stderr == ""


# ---- copies outside ndshare


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_of_shared_array_is_an_ordinary_copy(protocol):
    """Pickle, deepcopy and np.save take the content of shared memory, not its place."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        result = executor.submit(pattern, MB, 6).result()
    for a in (ndshare.share(pattern(MB, 6)), ndshare.share(pattern(MB, 6), mode="r"), result):
        data = pickle.dumps(a, protocol)
        assert len(data) > a.nbytes
        copies = [pickle.loads(data), copy.deepcopy(a), copy.copy(a)]
        file = io.BytesIO()
        np.save(file, a)
        file.seek(0)
        copies.append(np.load(file))
        for b in copies:
            assert not ndshare.is_shared(b)
            assert not np.shares_memory(a, b)
            assert is_pattern(b, 6)
            if b.flags.writeable:
                b[...] = 0
            assert is_pattern(a, 6)


# ---- share


def test_share_of_array_is_found_again_by_every_view():
    """Views, slices, transposes and reshapes of a shared array are shared; copies are not."""
    a = ndshare.share(np.arange(24.0).reshape(4, 6))
    for view in (
        a,
        a[1:],
        a[::-1, ::2],
        a.T,
        a.reshape(2, 12),
        a[2, 3:4],
        a.view("u1"),
        a.ravel(),
        a[None],
        a[:0],
    ):
        assert ndshare.is_shared(view)
    for other in (a.copy(), a + 1, a[[0, 1]], np.zeros(3), [1], a.tolist()):
        assert not ndshare.is_shared(other)
    assert ndshare.share(a) is a
    assert ndshare.share(a.T).base is a or ndshare.share(a[1:]).base is not None


def test_share_of_containers_moves_their_arrays():
    """dict, list and nested containers keep their form, and only their arrays move."""
    original = {"a": np.arange(5), "l": [np.ones(70_000), "text", {"d": np.zeros((2, 2), "F")}], "n": None}
    for mode in ("rw", "r"):
        shared = ndshare.share(original, mode=mode)
        assert list(shared) == list(original)
        assert shared["l"][1] == "text"
        assert shared["n"] is None
        for a, b in zip(_arrays_of(original), _arrays_of(shared), strict=True):
            assert not ndshare.is_shared(a)
            assert ndshare.is_shared(b)
            assert b.flags.writeable == (mode == "rw")
            assert np.array_equal(a, b)
            assert a.dtype == b.dtype
        assert ndshare.share(shared, mode=mode) is shared


def _arrays_of(container):
    return [container["a"], container["l"][0], container["l"][2]["d"]]


def test_share_changes_mode_by_a_copy():
    """A writable shared array is copied to become read-only, and the other way round."""
    a = ndshare.share(np.arange(1000))
    b = ndshare.share(a, mode="r")
    assert not np.shares_memory(a, b)
    a[0] = 77
    assert b[0] == 0
    c = ndshare.share(b)
    assert c.flags.writeable
    assert not np.shares_memory(b, c)
    assert ndshare.share(b, mode="r") is b


@pytest.mark.parametrize("nbytes", SIZES)
def test_read_only_refuses_everybody(executor, nbytes):
    """mode="r" cannot be written by its maker nor by a worker, in any way NumPy knows."""
    a = ndshare.share(pattern(nbytes, 8), mode="r")
    assert ndshare.is_shared(a)
    got = executor.submit(echo, a).result()
    assert np.shares_memory(a, got) or not nbytes
    if nbytes:
        assert tasks.try_to_write(a) == []
        assert tasks.try_to_write(a[1:]) == []
        assert tasks.try_to_write(got) == []
        assert executor.submit(tasks.try_to_write, a).result() == []
    assert is_pattern(a, 8)


_TRICKS = """
import ctypes, mmap, os, sys
import numpy as np, ndshare
a = ndshare.share(np.zeros(100_000), mode="r")
address = a.__array_interface__["data"][0]
libc = ctypes.CDLL(None, use_errno=True)
page = address & -4096
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
assert libc.mprotect(page, 800_000, 3) == -1, "mprotect made it writable"
for fd in os.listdir("/proc/self/fd"):
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        continue
    if "memfd:ndshare" in name and os.fstat(int(fd)).st_size >= 800_000:
        for again in (int(fd), os.open(f"/proc/self/fd/{fd}", os.O_RDWR)):
            for attempt in (
                lambda: os.pwrite(again, b"x", 0),
                lambda: mmap.mmap(again, 4096),
                lambda: os.ftruncate(again, 0),
                lambda: os.posix_fallocate(again, 0, 1 << 30),
            ):
                try:
                    attempt()
                except OSError:
                    continue
                sys.exit("a trick worked")
        print("tried")
        break
assert not a.any()
sys.stdout.flush()
ctypes.memset(address, 1, 8)  # the kernel ends this
"""


def test_read_only_is_enforced_by_the_kernel(run_script):
    """mprotect, a second mapping, writing through the descriptor and a plain poke are refused."""
    done = run_script(_TRICKS, check=False)
    assert done.stdout == "tried\n", done.stderr
    assert done.returncode == -11


def test_object_arrays_are_refused_at_once():
    """What holds Python objects cannot be shared; inside a container it stays ordinary."""
    objects = np.array([1, None, "x"], object)
    structured = np.zeros(2, [("a", "i4"), ("o", object)])
    for refused in (
        lambda: ndshare.share(objects),
        lambda: ndshare.share(objects, mode="r"),
        lambda: ndshare.share(structured),
        lambda: ndshare.empty(3, object),
        lambda: ndshare.zeros(3, "O"),
        lambda: ndshare.full(3, None),
        lambda: ndshare.array([None, 1]),
        lambda: ndshare.empty_like(objects),
        lambda: ndshare.empty(2, structured.dtype),
    ):
        with pytest.raises(TypeError, match="cannot be shared"):
            refused()
    shared = ndshare.share({"o": objects, "n": np.arange(3)})
    assert ndshare.is_shared(shared["n"])
    assert not ndshare.is_shared(shared["o"])
    assert shared["o"].tolist() == objects.tolist()
    with pytest.raises(ValueError, match="'rw' and 'r'"):
        ndshare.share(np.arange(3), mode="w")


# ---- shared_memory()


def test_shared_memory_context_catches_what_libraries_make(executor, tmp_path):
    """np.load, h5py, SciPy and pandas make shared arrays inside without knowing; nothing is copied."""
    h5py = pytest.importorskip("h5py")
    ndimage = pytest.importorskip("scipy.ndimage")
    pd = pytest.importorskip("pandas")
    content = np.random.default_rng(0).random((300, 400))
    np.save(tmp_path / "a.npy", content)
    np.savez(tmp_path / "a.npz", a=content)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = content
    frame = pd.DataFrame(content)
    with ndshare.shared_memory():
        made = {
            "load": np.load(tmp_path / "a.npy"),
            "npz": np.load(tmp_path / "a.npz")["a"],
            "ufunc": content * 1.0,
            "copy": content.copy(),
            "tiny": np.zeros(1),
            "empty": np.zeros((0, 3)),
            "text": np.array(["ab", "c"]),
            "blur": ndimage.gaussian_filter(content, 1.0),
            "frame": (frame * 2).to_numpy(),
            "fancy": content[[1, 2, 3]],
            "concatenated": np.concatenate([content, content]),
        }
        with h5py.File(tmp_path / "a.h5") as file:
            made["h5"] = file["x"][:]
        objects = np.array([None, "x"], object)
    assert not ndshare.is_shared(np.zeros(3))
    assert {name: ndshare.is_shared(a) for name, a in made.items()} == dict.fromkeys(made, True)
    assert np.array_equal(made["load"], content)
    assert np.array_equal(made["h5"], content)
    before = executor._pool.delivery.bytes_copied
    for a in made.values():
        got = executor.submit(echo, a).result()
        assert np.shares_memory(got, a) or not a.size
        assert np.array_equal(got, a)
    assert executor._pool.delivery.bytes_copied == before
    assert executor.submit(echo, objects).result().tolist() == [None, "x"]


def test_shared_memory_context_grows_and_shrinks_arrays():
    """`resize` inside, outside and across the context keeps content."""
    with ndshare.shared_memory():
        a = pattern(8 * KB, 1)
        a.resize(300_000, refcheck=False)
    assert ndshare.is_shared(a)
    assert is_pattern(a[:KB], 1)
    assert not a[KB:].any()
    a.resize(20, refcheck=False)
    assert is_pattern(a, 1)
    plain = pattern(8 * KB, 1)
    with ndshare.shared_memory():
        plain.resize(2 * KB, refcheck=False)
    assert is_pattern(plain[:KB], 1)


def test_shared_memory_context_is_left_on_errors_and_nests():
    """An exception leaves the context; nested ones are left one by one; threads take no part."""
    seen = []
    with pytest.raises(ZeroDivisionError), ndshare.shared_memory():
        raise ZeroDivisionError
    assert not ndshare.is_shared(np.zeros(9))
    with ndshare.shared_memory():
        with ndshare.shared_memory():
            assert ndshare.is_shared(np.zeros(9))
        assert ndshare.is_shared(np.zeros(9))
        thread = threading.Thread(target=lambda: seen.append(ndshare.is_shared(np.zeros(9))))
        thread.start()
        thread.join()
    assert seen == [False]
    assert not ndshare.is_shared(np.zeros(9))


# ---- statistics


def test_stats_tell_what_is_there(executor):
    """stats() sees shared, read-only and by-value memory come and go, and trim gives the idle back."""
    ndshare.trim()
    before = ndshare.stats()
    shared = ndshare.zeros(8 * MB, "u1")
    sealed = ndshare.share(np.zeros(4 * MB, "u1"), mode="r")
    now = ndshare.stats()
    assert now.shared_bytes - before.shared_bytes >= 8 * MB
    assert now.shared_segments == before.shared_segments + 1
    assert now.sealed_bytes - before.sealed_bytes >= 4 * MB
    result = executor.submit(pattern, 16 * MB, 0).result()
    now = ndshare.stats()
    assert now.value_bytes + now.held_bytes >= 16 * MB
    executor.submit(tasks.total, result).result()
    now = ndshare.stats()
    assert now.idle_bytes + now.lent_bytes >= 16 * MB  # what the argument travelled in
    assert now.available > 0
    assert now.limit
    text = repr(now)
    assert "shared" in text
    assert "MB" in text
    assert now.limit in text
    del shared, sealed, result
    ndshare.shutdown()
    given = ndshare.trim()
    after = ndshare.stats()
    assert given >= 8 * MB
    assert after.shared_bytes == before.shared_bytes
    assert after.sealed_bytes == before.sealed_bytes
    assert after.idle_bytes == 0
    assert after.own_bytes <= before.own_bytes


def test_trim_leaves_what_is_in_use(executor):
    """trim() while arrays are alive here and there touches none of them."""
    shared = [ndshare.share(pattern(n, n)) for n in (100, 5000, 70_000, 2 * MB)]
    dropped = [ndshare.share(pattern(n, n)) for n in (100, 5000, 70_000, 2 * MB)]
    for a in dropped:
        executor.submit(tasks.keep_argument, "itself", a).result()
    results = [executor.submit(pattern, n, n).result() for n in (100, 5000, 70_000, 2 * MB)]
    del dropped, a
    ndshare.trim()
    executor.submit(ndshare.trim).result()
    more = [ndshare.share(np.zeros(n // 8)) for n in (100, 5000, 70_000, 2 * MB) for _ in range(20)]
    for n, mine, theirs in zip((100, 5000, 70_000, 2 * MB), shared, results, strict=True):
        assert is_pattern(mine, n)
        assert is_pattern(theirs, n)
    assert executor.submit(_kept_are_patterns, (100, 5000, 70_000, 2 * MB)).result()
    assert not any(a.any() for a in more)
    executor.submit(tasks.forget).result()


def _kept_are_patterns(sizes):
    return all(is_pattern(a, n) for a, n in zip(tasks.KEPT, sizes, strict=True))


# ---- snapshot


def _sum_later(gate, a):
    while not gate[0]:
        time.sleep(0.001)
    return int(a[0]), int(a[-1])


@pytest.mark.parametrize("nbytes", SIZES[1:])
def test_snapshot_at_submit_reads_a_reused_buffer_at_once(nbytes):
    """With snapshot="submit" a buffer may be refilled after submit; with "start" the last content travels."""
    for snapshot, retries in (("submit", 0), ("submit", 1), ("start", 0)):
        gate = ndshare.zeros(1)
        with ndshare.ProcessPoolExecutor(1, snapshot=snapshot, retries=retries) as executor:
            executor.submit(echo, 1).result()
            try:
                buffer = np.empty(nbytes // 8, np.int64)
                futures = [executor.submit(_sum_later, gate, np.zeros(1))]
                for i in range(4):
                    buffer[:] = i
                    futures.append(executor.submit(_sum_later, gate, buffer))
                mapped = executor.map(_sum_later, [gate] * 2, [buffer] * 2)
                buffer[:] = 9
            finally:
                gate[0] = 1
            values = [future.result() for future in futures[1:]] + list(mapped)
        if snapshot == "submit":
            assert values == [(i, i) for i in (0, 1, 2, 3, 3, 3)]
        else:
            assert values[-3:] == [(9, 9)] * 3  # they waited, so they were read after the change


# ---- shared arrays


def test_shared_writes_are_seen_by_all():
    """What one process writes to a shared array, the others see, whichever made it."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        for nbytes in SIZES[1:]:
            a = ndshare.share(pattern(nbytes, 0))
            executor.submit(tasks.add_to, a, 0, 10, 1, 5).result()
            assert is_pattern(a[:10], 5)
            assert is_pattern(a[10:], 0, 10)
            b = executor.submit(ndshare.share, pattern(nbytes, 1)).result()
            for _ in range(4):  # both workers, most likely
                executor.submit(tasks.add_to, b, 0, 1, 1, 1).result()
            assert b[0] == 5
            b[0] = 100
            assert executor.submit(tasks.total, b[:1]).result() == 100


def test_shared_slices_are_written_by_several_workers_at_once():
    """Writes of several workers to disjoint slices, down to neighbouring items, are all there."""
    with ndshare.ProcessPoolExecutor(3) as executor:
        for n in (7, 1000, 300_000):
            blocks, strided = ndshare.zeros(n, np.int32), ndshare.zeros(n, np.int32)
            bounds = np.linspace(0, n, 8).astype(int).tolist()
            futures = [
                executor.submit(tasks.add_to, blocks, low, high, 20, number)
                for number, (low, high) in enumerate(itertools.pairwise(bounds), 1)
            ]
            futures += [executor.submit(tasks.add_to, strided[i::3], 0, n, 20, i + 1) for i in range(3)]
            for future in futures:
                future.result()
            assert np.array_equal(blocks, 20 * np.repeat(np.arange(1, 8), np.diff(bounds)))
            assert np.array_equal(strided, 20 * (np.arange(n) % 3 + 1))


def test_shared_array_outlives_its_maker():
    """A shared array made by a worker stays when the worker is gone, and can be sent on."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        made = [executor.submit(ndshare.share, pattern(n, 4)).result() for n in SIZES]
    ndshare.shutdown()
    with ndshare.ProcessPoolExecutor(1) as executor:
        for a in made:
            assert ndshare.is_shared(a)
            assert is_pattern(a, 4)
            if a.size:
                executor.submit(tasks.add_to, a, 0, a.size, 1, 1).result()
                assert is_pattern(a, 5)


def test_shared_array_dropped_here_lives_on_in_the_worker(executor):
    """Memory of a shared array that only a worker still has is not given to anybody else."""
    sizes = (100, 5000, 70_000, 2 * MB)
    for n in sizes:
        executor.submit(
            tasks.keep_argument, "a view and return the array", ndshare.share(pattern(n, n))
        ).result()
        tasks.forget()
    others = [ndshare.full(n // 8, -1) for n in sizes for _ in range(30)]
    heads = [executor.submit(_kept_at, i).result() for i in range(len(sizes))]
    for n, head in zip(sizes, heads, strict=True):
        assert head.tolist() == [n]
        assert ndshare.is_shared(head)
    assert all((a == -1).all() for a in others)
    executor.submit(tasks.forget).result()


def _kept_at(i):
    return tasks.KEPT[i]


def test_shared_array_in_another_program_is_a_copy():
    """What a pickle file carries into a fresh interpreter is an ordinary array."""
    data = pickle.dumps(ndshare.share(pattern(KB, 2)))
    code = "import pickle, sys; a = pickle.load(sys.stdin.buffer); print(a.sum(), 'ndshare' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.split() == [str(pattern(KB, 2).sum()).encode(), b"False"]


def test_ctypes_pointer_into_result_stays_put(executor):
    """A result does not move or change while a raw pointer into it is used, whatever runs meanwhile."""
    result = executor.submit(pattern, MB, 1).result()
    pointer = result.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    for _ in range(20):
        executor.submit(pattern, MB, 2).result()
    assert pointer[5] == 6
