"""The executor at the limits: descriptors, /dev/shm, memory, and what many queued tasks hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_NOBODY = 65534
_MB = 1 << 20

_HEAD = """
import os, sys, threading, time
import resource
import numpy as np
from tests import misdeeds
import ndshare
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="becoming another user, mounting and cgroups need root"
)


def _run(
    source: str,
    *,
    prefix: tuple[str, ...] = (),
    before: Callable[[], None] | None = None,
    timeout: float = 100,
    **environment: str,
) -> str:
    """Run source text in a fresh interpreter; a death by a signal is a failure of its own kind."""
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "faulthandler", "-c", _HEAD + textwrap.dedent(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=before,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---------------------------------------------------------------------- descriptors

_MANY = """
rng = np.random.default_rng(1)
sizes = rng.choice([0, 3, 100, 1000, 5_000, 20_000, 70_000], 10_000, p=[.02, .28, .3, .2, .15, .04, .01])
"""


# Another user may do nothing root may, but for reading the files of this test and of the interpreter.
_AS_NOBODY = (
    "setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search",
)  # fmt: skip


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv to become another user")
def test_ten_thousand_live_arrays_fit_under_256_descriptors_as_another_user() -> None:
    """``ulimit -n 256``, not root: 10,000 live results and 10,000 live shared arrays of mixed sizes, all right."""
    _run(
        f"""
        assert os.getuid() == {_NOBODY}
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        os.chdir("/")
        with ndshare.ProcessPoolExecutor(2) as executor:
            {textwrap.indent(textwrap.dedent(_MANY), " " * 12).strip()}
            results = list(executor.map(misdeeds.filled, sizes.tolist(), range(10_000), chunksize=7))
            # Submitted one by one as well: each result a message of its own.
            more = [f.result() for f in [executor.submit(misdeeds.filled, 40_000, float(i)) for i in range(500)]]
            for number, (size, result) in enumerate(zip(sizes, results)):
                assert result.shape == (size,) and (result == number).all(), number
            for number, result in enumerate(more):
                assert (result == number).all()
            del results, more
            arrays = [ndshare.full(int(size), float(number)) for number, size in enumerate(sizes)]
            assert all(ndshare.is_shared(array) for array in arrays if array.size)
            futures = [executor.submit(misdeeds.total, array) for array in arrays]
            for number, (array, future) in enumerate(zip(arrays, futures)):
                assert future.result() == float(number) * array.size, number
            # All of them in one message, and back.
            back = executor.submit(misdeeds.same, arrays).result()
            for array, again in zip(arrays, back):
                assert array.size == 0 or np.shares_memory(array, again)
        """,
        prefix=_AS_NOBODY,
        PYTHONDONTWRITEBYTECODE="1",
    )


def test_results_that_find_no_free_descriptor_arrive_when_there_is_one() -> None:
    """The caller's own files fill the table while results are on their way: nothing is lost."""
    _run("""
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        with ndshare.ProcessPoolExecutor(2) as executor:
            list(executor.map(misdeeds.same, range(10)))
            futures = [executor.submit(misdeeds.filled, 300_000, float(i)) for i in range(8)]
            files = []
            try:
                while True:
                    files.append(open("/dev/null"))
            except OSError:
                pass
            def relent():
                time.sleep(1)
                for file in files:
                    file.close()
            thread = threading.Thread(target=relent)
            thread.start()
            for i, future in enumerate(futures):
                assert (future.result(60) == i).all()
            thread.join()
            assert list(executor.map(misdeeds.same, range(10))) == list(range(10))
    """)


def test_submit_without_a_free_descriptor_is_an_error_of_the_task() -> None:
    """An argument that cannot be lent for lack of descriptors fails its task, clearly; the pool goes on."""
    _run("""
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        with ndshare.ProcessPoolExecutor(2) as executor:
            list(executor.map(misdeeds.same, range(10)))
            array = np.ones(1_000_000)
            shared = ndshare.ones(1_000_000)
            files = []
            try:
                while True:
                    files.append(open("/dev/null"))
            except OSError:
                pass
            errors = [executor.submit(misdeeds.total, a).exception(20) for a in (array, shared)]
            for file in files:
                file.close()
            for error in errors:
                assert error is None or isinstance(error, OSError), error
            assert any(errors), errors
            assert executor.submit(misdeeds.total, array).result(20) == 1_000_000
            assert executor.submit(misdeeds.total, shared).result(20) == 1_000_000
    """)


def test_full_sockets_in_both_directions_do_not_block_each_other() -> None:
    """Many tasks with large inline arguments and results: sender and worker never wait for each other."""
    _run("""
        import concurrent.futures
        from ndshare._processes import worker_handle
        worker_handle._SOCKET_BYTES = 1 << 16  # what systems with a small net.core.wmem_max grant
        with ndshare.ProcessPoolExecutor(1) as executor:
            for _ in range(200):
                executor.submit(misdeeds.same, 1).result()  # known to be short: they travel by the dozen
            data = os.urandom(40_000)
            for _ in range(5):
                futures = [executor.submit(misdeeds.same, data) for _ in range(300)]
                done = concurrent.futures.wait(futures, timeout=60)
                assert not done.not_done, len(done.not_done)
                assert all(future.result() == data for future in futures)
                assert list(executor.map(misdeeds.same, [data] * 300, timeout=60)) == [data] * 300
    """)


# ---------------------------------------------------------------------- /dev/shm


@needs_root
def test_one_gigabyte_works_with_64_mb_of_dev_shm() -> None:
    """In a container with the default /dev/shm, arrays of 1 GB go to a worker and back, by value and shared."""
    source = _HEAD + textwrap.dedent("""
        assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 64 << 20
        n = 1 << 27
        with ndshare.ProcessPoolExecutor(1) as executor:
            shared = ndshare.ones(n)
            assert executor.submit(misdeeds.total, shared).result() == n
            del shared
            result = executor.submit(misdeeds.filled, n, 2.0).result()
            assert result.nbytes == 1 << 30 and result[0] == 2.0 == result[-1] and result.sum() == 2 * n
            assert executor.submit(misdeeds.total, result).result() == 2 * n
    """)
    done = subprocess.run(
        [
            "unshare", "-m", "sh", "-c",
            'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" -c "$1"', sys.executable, source,
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )  # fmt: skip
    if "unshare:" in done.stderr or "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- memory

_TOO_MUCH = """
def refused(error):
    assert isinstance(error, MemoryError), error
    assert isinstance(error, ndshare.CapacityError), repr(error)
    assert error.asked >= asked, (error.asked, asked)
    assert error.available < error.asked
    assert "asked" in str(error) and "free" in str(error) and limit in str(error), str(error)

with ndshare.ProcessPoolExecutor(2) as executor:
    assert list(executor.map(misdeeds.same, range(4))) == list(range(4))
    # Made here.
    asked = 900 << 20
    try:
        ndshare.ones(asked // 8)
    except MemoryError as error:
        refused(error)
    else:
        raise AssertionError("it was granted")
    # An argument: ordinary memory, untouched zeros, that would have to be copied.
    asked = 600 << 20
    big = np.zeros(asked // 8)
    refused(executor.submit(misdeeds.total, big).exception(60))
    del big
    # Bit by bit, kept alive: the last one that fits, then the error.
    kept = []
    asked = 16 << 20
    try:
        for _ in range(200):
            kept.append(ndshare.ones(asked // 8))
    except MemoryError as error:
        refused(error)
    else:
        raise AssertionError("16 MB, 200 times, were granted")
    assert 4 <= len(kept) < 64, len(kept)
    assert all(float(array[-1]) == 1.0 for array in kept)
    # Two worker_handle at once ask for what only one of them can get, again and again: an answer each time.
    kept.clear()
    ndshare.trim()
    outcomes = [executor.submit(misdeeds.shared_total, 200 << 20) for _ in range(8)]
    outcomes = [f.exception(60) or f.result() for f in outcomes]
    for outcome in outcomes:
        assert isinstance(outcome, (float, MemoryError)), outcome
    assert any(isinstance(outcome, float) for outcome in outcomes)
    assert list(executor.map(misdeeds.same, range(4))) == list(range(4))
"""


def test_simulated_memory_limit_raises_memory_error_with_the_figures() -> None:
    """Under NDSHARE_MEMORY_LIMIT whatever cannot fit is refused with asked, free and limit; nobody is killed."""
    _run("limit = 'NDSHARE_MEMORY_LIMIT'\n" + _TOO_MUCH, NDSHARE_MEMORY_LIMIT="400M")


_CGROUP = Path("/sys/fs/cgroup/memory")


@needs_root
@pytest.mark.skipif(
    not (_CGROUP / "memory.limit_in_bytes").exists(), reason="no cgroup v1 memory controller here"
)
def test_memory_cgroup_raises_memory_error_and_kills_nobody() -> None:
    """In a memory cgroup of 512 MB an allocation that cannot fit raises; no process is killed."""
    inner = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if "memory" in line.split(":")[1].split(",")
    )
    parent = _CGROUP / inner.lstrip("/") if (_CGROUP / inner.lstrip("/")).is_dir() else _CGROUP
    group = parent / f"ndshare-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(512 * _MB))
    except OSError as error:
        pytest.skip(f"cannot make a cgroup: {error}")
    try:
        _run(
            "limit = 'control group'\n" + _TOO_MUCH,
            before=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
        )
        events = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
        assert events.get("oom_kill", "0") == "0"
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
        group.rmdir()


def test_large_result_of_600_mb_arrives_whole() -> None:
    """A result of 600 MB is lent, not copied, and right in every element."""
    _run("""
        with ndshare.ProcessPoolExecutor(1) as executor:
            result = executor.submit(misdeeds.counted, 600 * 10**6 // 8).result()
            assert result.nbytes == 600 * 10**6 and result.dtype == np.int64
            step = 1 << 20
            for start in range(0, result.size, step):
                piece = result[start : start + step]
                assert (piece == np.arange(start, start + piece.size)).all()
            result[:] = 0  # ours
            assert executor.submit(misdeeds.same, 1).result() == 1
    """)


@pytest.mark.chaos
def test_large_result_of_6_gb_arrives_whole(chaos_rounds: int) -> None:
    """The same with 6 GB, where there is room (scripts/chaos)."""
    if chaos_rounds == 1:
        pytest.skip("6 GB only in scripts/chaos")
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    if available < 9 << 30:
        pytest.skip(f"{available >> 30} GB are free, 9 are needed")
    _run(
        """
        with ndshare.ProcessPoolExecutor(1) as executor:
            result = executor.submit(misdeeds.counted, 6 * 10**9 // 8).result()
            assert result.nbytes == 6 * 10**9
            step = 1 << 24
            for start in range(0, result.size, step):
                piece = result[start : start + step]
                assert (piece == np.arange(start, start + piece.size)).all()
        """,
        timeout=600,
    )


_FLIGHT = """
peak = 0
over = threading.Event()

def in_flight():
    # All pages of our memfds, whoever has them mapped: the caller's segments and its worker_handle'.
    seen = {}
    from ndshare._processes.crew import own_crew
    pids = [os.getpid()]
    for ear in list(own_crew().zygotes.values()):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        if int(file.read().rpartition(")")[2].split()[1]) == ear.zygote.process.pid:
                            pids.append(int(entry))
                except OSError:
                    pass
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{fd}"
                if "/memfd:ndshare" in os.readlink(path):
                    status = os.stat(path)
                    seen[status.st_ino] = status.st_blocks * 512
        except OSError:
            pass
    return sum(seen.values())

def sample():
    global peak
    while not over.is_set():
        peak = max(peak, in_flight(), ndshare.stats().own_bytes)
        time.sleep(0.002)

thread = threading.Thread(target=sample)
"""


@pytest.mark.parametrize("face", ["submit", "map"])
def test_ten_thousand_queued_tasks_of_1_mb_hold_less_than_64_mb(face: str) -> None:
    """Arguments are copied when a task starts, not when it is queued: in flight are a few of them."""
    work = {
        "submit": "futures = [executor.submit(misdeeds.first, array) for _ in range(10_000)]\n"
        "    assert all(future.result() == 1.0 for future in futures)",
        "map": "assert list(executor.map(misdeeds.first, [array] * 10_000)) == [1.0] * 10_000",
    }[face]
    out = _run(
        _FLIGHT
        + f"""
import warnings
warnings.simplefilter("ignore", ndshare.RepeatedCopyWarning)
array = np.ones(131_072)
with ndshare.ProcessPoolExecutor(2) as executor:
    list(executor.map(misdeeds.same, range(100)))
    thread.start()
    {work}
    over.set()
    thread.join()
print(peak)
"""
    )
    limit = 64 * _MB
    assert int(out) < limit, f"{int(out) / _MB:.0f} MiB were in flight"


def test_one_gigabyte_shared_by_eight_workers_is_there_once() -> None:
    """1 GB shared, 100 tasks, 8 worker_handle: the proportional set sizes of all processes add up to 1.2 GB at most."""
    out = _run(
        """
        def pss(pid):
            with open(f"/proc/{pid}/smaps_rollup") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024

        shared = ndshare.ones(1 << 27)
        with ndshare.ProcessPoolExecutor(8) as executor:
            futures = [executor.submit(misdeeds.whole_total, shared) for _ in range(100)]
            answers = [future.result() for future in futures]
            assert all(total == 1 << 27 for _, total in answers)
            pids = {pid for pid, _ in answers}
            from ndshare._processes.crew import own_crew
            pids |= {ear.zygote.process.pid for ear in own_crew().zygotes.values()}
            print(len(pids), sum(map(pss, {os.getpid(), *pids})), executor._pool.delivery.bytes_sent)
        """
    )
    processes, total, sent = map(int, out.split())
    assert processes >= 4
    assert total <= 1.2e9, f"{total / 1e9:.2f} GB"
    assert sent <= 1e6
