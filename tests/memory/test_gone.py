"""What is kept of processes that are gone: nothing; and what is kept at all: `stats` knows every byte of it."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

import ndshare
from ndshare import _arrays
from ndshare._memory import segments
from ndshare._system import process_memory
from tests.peers import Peer, staged

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("fresh_heap")]

MB = 1 << 20


def shmem() -> int:
    """Bytes of shared memory that are mapped here, in proportion."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Pss_Shmem"))


def make(value: int) -> np.ndarray:
    """A result of 16 MB."""
    return np.full(2_000_000, value)


def test_memory_of_a_dead_owner_is_unmapped_when_its_last_array_goes():
    """Killed while what it made is in use here, whoever it was: nobody has to say so."""
    with Peer() as peer:
        peer.run("x = _arrays.full(1 << 20, 3.0); y = x[:10]")
        x, y = peer.fetch("x"), peer.fetch("y")
        assert np.shares_memory(x, y)
        peer.kill()
    assert x.sum() == 3 << 20
    del x
    assert segments.stats().held_bytes >= 8 * MB
    assert y.sum() == 30
    del y
    s = segments.stats()
    assert (s.held_segments, s.held_bytes, s.cached_mappings, s.cached_bytes) == (0, 0, 0, 0)


def test_mapping_of_a_living_owner_is_kept_for_the_next_message():
    """It costs more than a copy to map it anew."""
    with Peer() as peer:
        peer.run("x = _arrays.full(1 << 20, 3.0)")
        assert peer.fetch("x").sum() == 3 << 20
        s = segments.stats()
        assert (s.held_segments, s.cached_mappings) == (0, 1)
        assert s.cached_bytes == 8 * MB
        peer.kill()
    # The next thing that is given back finds out, once a second at most.
    with Peer() as other:
        other.run("x = _arrays.full(1000, 3.0)")
        deadline = time.monotonic() + 60
        while segments.stats().cached_bytes >= MB:
            assert other.fetch("x")[5] == 3
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert segments.stats().cached_mappings == 1


def test_memory_of_a_stranger_with_its_number_is_not_mistaken():
    """A pid that is used again is another process: the time it started is part of the number."""
    a = _arrays.ones(MB)
    with Peer() as peer:
        peer.give("x", a)
        mine = segments.owner_prefix()
        assert mine >> 9 == os.getpid()
        peer.run("del x")
        assert peer.run("result = segments.stats().cached_mappings") == 1


def test_pools_whose_workers_come_and_go_leave_nothing():
    """Workers that are replaced every three tasks, pools that end, and workers killed while results are kept."""
    before = shmem()
    for _ in range(3):
        with ndshare.ProcessPoolExecutor(2, max_tasks_per_child=3) as executor:
            results = list(executor.map(make, range(12)))
        assert [int(r[0]) for r in results] == list(range(12))
        del results
    with ndshare.ProcessPoolExecutor(2, initializer=int) as executor:
        results = list(executor.map(make, range(6)))
        pids = set(executor.map(getpid, range(8)))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert executor.submit(abs, -1).result() == 1
    del results
    assert shmem() - before < 20 * MB
    s = segments.stats()
    assert s.held_segments == 0
    assert s.cached_bytes <= 4 * MB


def getpid(_: int) -> int:
    """Say which worker this is, and let the others have a turn."""
    time.sleep(0.02)
    return os.getpid()


def test_shutdown_gives_back_what_was_kept():
    """The results of the shared workers; the memory of their arguments is this process's own."""
    before = shmem()
    with ndshare.ProcessPoolExecutor(2) as executor:
        for n in range(0, 16, 4):
            for result in executor.map(np.negative, [make(i) for i in range(n, n + 4)]):
                assert result.size == 2_000_000
    del result
    assert segments.stats().cached_bytes + segments.stats().idle_bytes > 16 * MB
    ndshare.shutdown()
    s = segments.stats()
    assert (s.cached_mappings, s.cached_bytes, s.held_bytes) == (0, 0, 0)
    ndshare.trim()
    assert segments.stats().idle_bytes == 0
    assert shmem() - before < MB


def accounted(where: str) -> None:
    """Compare our figures with the kernel's, within one percent."""
    for left in reversed(range(100)):  # workers that are just mapping or giving back change both in between
        s, kernel = segments.stats(), shmem()
        total = s.own_bytes + s.held_bytes + s.cached_bytes + s.detached_bytes + s.other_bytes
        known = abs(total - s.mapped_bytes) <= max(s.mapped_bytes // 100, 128 << 10)
        equal = abs(s.proportional_bytes - kernel) <= max(kernel // 100, 128 << 10)
        if known and equal:
            return
        assert left, (where, total, s.mapped_bytes, s.proportional_bytes, kernel, s)
        time.sleep(0.05)


def test_stats_know_every_byte_whatever_the_program_does(chaos_rng):
    """Arrays of all kinds and sizes, results kept and dropped, workers killed, forks, dicts, queues, trims."""
    kept: list[object] = []
    sizes = [100, 70_000, 900_000, 3 * MB, 17 * MB]
    queue: ndshare.Queue = ndshare.Queue()
    executor = ndshare.ProcessPoolExecutor(2)

    def results(n: int) -> None:
        kept.extend(executor.map(np.ones, [n // 8] * chaos_rng.randrange(1, 7)))

    def kill() -> None:
        os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)

    def through_the_queue(n: int) -> None:
        queue.put(np.ones(n // 8))
        kept.append(queue.get())

    def in_context(n: int) -> None:
        with ndshare.shared_memory():
            kept.append(np.ones(n // 8))

    def a_dict(n: int) -> None:
        with ndshare.SharedDict({"a": np.ones(n // 8)}) as d:
            kept.append(d["a"].copy())
            accounted("dict")

    def drop() -> None:
        chaos_rng.shuffle(kept)
        del kept[len(kept) // 3 :]

    acts = [
        lambda n: kept.append(_arrays.ones(n, np.uint8)),
        lambda n: kept.append(ndshare.share(np.ones(n // 8), mode="r")),
        lambda n: kept.append(staged(n)),
        in_context, results, results, through_the_queue, a_dict,
        lambda _: drop(), lambda _: drop(), lambda _: kill(), lambda _: segments.trim(),
    ]  # fmt: skip
    try:
        for step in range(60):
            chaos_rng.choice(acts)(chaos_rng.choice(sizes))
            if step % 3 == 0:
                accounted(str(step))
    finally:
        executor.shutdown()
        queue.close()
    accounted("end of the pool")
    kept.clear()
    ndshare.shutdown()
    accounted("end")


def test_stats_know_every_byte_of_a_child_and_of_its_parent(run_script):
    """Memory that became private at a fork is counted as far as it is still shared."""
    done = run_script("""
import os
import numpy as np, ndshare
from ndshare._memory import segments
from ndshare._system import process_memory
from tests.memory.test_gone import accounted
with ndshare.ProcessPoolExecutor(1) as executor:
    results = list(executor.map(np.ones, [1 << 20] * 3))
    shared = [ndshare.ones(1 << 20), ndshare.ones(100_000, "u1")]
    pid = os.fork()
    if pid == 0:
        accounted("child")
        for a in results + shared: a.sum()
        accounted("child has read")
        for a in results + shared: a[::2] = 3
        accounted("child has written")
        del a, results, shared
        accounted("child has dropped")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    accounted("parent")
    results[0][: 1 << 19] = results[1].sum()
    accounted("parent has written")
    assert segments.stats().detached_bytes > 0
ndshare.shutdown()
accounted("no workers")
del results, shared
accounted("idle")
ndshare.trim()
accounted("nothing")
print(segments.stats().mapped_bytes - segments.stats().other_bytes < 1 << 20)
""")
    assert done.stdout == "True\n", done.stderr


def many(n: int) -> list[np.ndarray]:
    """Results of 0.4 to 1 MB."""
    return [np.full(50_000 + 75_000 * (i % 7) // 6, float(i)) for i in range(n)]


@pytest.mark.unsanitized  # a sanitizer keeps what was freed
def test_many_results_are_in_memory_once():
    """What is copied out, because too much is held already, is not kept as a mapping as well."""
    segments.trim()
    # Mappings up to an eighth of what this process has in ordinary memory may stay: after many tests that is much.
    eighth = process_memory(os.getpid()).anonymous / 8
    with ndshare.ProcessPoolExecutor(2) as executor:
        results = executor.submit(many, 400).result() + [a for r in executor.map(many, [20] * 10) for a in r]
        nbytes = sum(a.nbytes for a in results)
        assert nbytes > 400_000_000
        s = segments.stats()
        assert s.held_bytes + s.cached_bytes < nbytes / 5 + eighth
        assert [float(a[-1]) for a in results[:400]] == list(range(400))
    del results
