"""Forks by the user's code, in the middle of everything.

Each story runs as a script, since Python 3.12 and later warn of forks in a process with threads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ndshare
from tests.memory import fork_tasks

pytestmark = [
    pytest.mark.unsanitized,  # a fork between threads can leave the sanitizer's own locks taken
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore::ndshare.RepeatedCopyWarning"),
]

_STORY = (Path(__file__).parent / "fork_story.py").read_text()


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("os.fork", "idle"),
        ("os.fork", "busy"),
        ("os.fork", "own"),
        ("os.fork", "over"),
        ("multiprocessing", "idle"),
        ("multiprocessing", "busy"),
    ],
)
def test_fork_leaves_each_side_its_memory(run_script, how, state):
    """Arrays of every kind are unchanged in a forked child while the parent works on, and the reverse."""
    done = run_script(_STORY, how, state)
    assert done.stdout == "told\n"
    assert done.stderr == ""


_PRELUDE = """
import faulthandler, gc, multiprocessing, os, subprocess, sys, threading, time, warnings
import numpy as np, ndshare
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
warnings.simplefilter("ignore", ndshare.RepeatedCopyWarning)
def pattern(n, seed):
    return np.arange(n // 8) + seed
def echo(x):
    return x
def forked(child):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid
def ended(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def _run(run_script, source: str, **options) -> None:
    done = run_script(_PRELUDE + source, **options)
    assert done.stdout == "told\n"
    assert done.stderr == ""


def test_fork_under_load_hangs_nobody(run_script):
    """Forks while threads submit, receive and allocate: each child works at once, the parent goes on."""
    _run(
        run_script,
        """
executor = ndshare.ProcessPoolExecutor(2)
stop = threading.Event()
errors = []
def load(seed):
    try:
        while not stop.is_set():
            for n in (1000, 100_000, 600_000):
                a = pattern(n, seed)
                assert (executor.submit(echo, a).result() == a).all()
                assert (executor.submit(pattern, n, seed).result() == a).all()
                s = ndshare.share(a)
                assert (executor.submit(echo, s).result() == a).all()
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=load, args=(i,), daemon=True) for i in range(3)]
for t in threads:
    t.start()
mine = executor.submit(pattern, 600_000, 77).result()
def child():
    faulthandler.dump_traceback_later(60, exit=True)  # tells where it hangs
    gc.collect()
    assert (mine == pattern(600_000, 77)).all()
    mine[:] = 0
    assert (ndshare.share(pattern(600_000, 3)) == pattern(600_000, 3)).all()
    ndshare.stats(), ndshare.trim()
    with ndshare.ProcessPoolExecutor(1) as own:
        assert (own.submit(pattern, 600_000, 5).result() == pattern(600_000, 5)).all()
    ndshare.shutdown()
for i in range(12):
    ended(forked(child))
    assert (mine == pattern(600_000, 77)).all()
stop.set()
faulthandler.dump_traceback_later(60, exit=True)
for t in threads:
    t.join()
assert not errors, errors
executor.shutdown()
print("told")
""",
    )


def test_fork_memory_is_used_again_when_the_child_is_gone(run_script):
    """While a child lives its memory is left alone; afterwards nothing is lost."""
    _run(
        run_script,
        """
for n in (5000, 100_000, 4_000_000):
    kept = [ndshare.share(pattern(n, i)) for i in range(5)]
    go, gone = os.pipe(), os.pipe()
    def child():
        os.read(go[0], 1)
        assert all((a == pattern(n, i)).all() for i, a in enumerate(kept))
    pid = forked(child)
    for _ in range(5):
        kept = [ndshare.share(pattern(n, -i)) for i in range(5)]
    del kept
    kept = [ndshare.share(pattern(n, -i)) for i in range(5)]
    os.write(go[1], b"x")
    ended(pid)
    del kept
    gc.collect()
    ndshare.trim()
stats = ndshare.stats()
assert stats.own_bytes == stats.shared_bytes == 0, stats
for _ in range(3):  # and a child that never looked costs nothing later
    a = ndshare.share(pattern(4_000_000, 0))
    ended(forked(lambda: None))
    del a
fresh = ndshare.stats().fresh
for _ in range(5):
    a = ndshare.share(pattern(4_000_000, 0))
    del a
assert ndshare.stats().fresh <= fresh + 1
print("told")
""",
    )


def test_fork_children_that_are_killed_free_their_memory(run_script):
    """SIGKILL of a forked child counts as its end."""
    _run(
        run_script,
        """
a = ndshare.share(pattern(4_000_000, 1))
pid = forked(lambda: time.sleep(100))
inode = ndshare.stats().own_segments
del a
os.kill(pid, 9)
os.waitpid(pid, 0)
ndshare.trim()
assert ndshare.stats().own_bytes == 0, ndshare.stats()
print("told")
""",
    )


def test_fork_of_received_arrays_keeps_their_owner_from_recycling(run_script):
    """A worker does not reuse what only a forked child of the caller still has."""
    _run(
        run_script,
        """
def share(n, seed):
    return ndshare.share(pattern(n, seed))
with ndshare.ProcessPoolExecutor(1) as executor:
    for n in (5000, 100_000, 4_000_000):
        results = [executor.submit(pattern, n, i).result() for i in range(4)]
        shared = [executor.submit(share, n, i).result() for i in range(4)]
        go = os.pipe()
        def child():
            os.read(go[0], 1)
            assert all((a == pattern(n, i)).all() for i, a in enumerate(results))
            assert all((a == pattern(n, i)).all() for i, a in enumerate(shared))
        pid = forked(child)
        del results, shared
        for seed in range(8):
            executor.submit(pattern, n, -1).result()
            executor.submit(share, n, -2).result()
        again = [executor.submit(pattern, n, -1).result() for i in range(6)]
        more = [executor.submit(share, n, -2).result() for i in range(6)]
        os.write(go[1], b"x")
        ended(pid)
        results = shared = ()
print("told")
""",
    )


def test_fork_by_multiprocessing_pool_and_process_pool(run_script):
    """Forked pools of the standard library see shared arrays as globals; by pickle they get copies."""
    _run(
        run_script,
        """
import concurrent.futures
shared = ndshare.zeros(300_000)
with ndshare.ProcessPoolExecutor(1) as executor:
    result = executor.submit(np.ones, 300_000).result()
    def work(i):
        shared[i] = i
        result[i] = 5
        return result.sum(), os.getpid()
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        for total, pid in pool.map(work, range(8), chunksize=1):
            assert pid != os.getpid()
        assert pool.apply(np.sum, (result,)) == 300_000
        copy = pool.apply(echo, (shared,))
        assert not ndshare.is_shared(copy) and not np.shares_memory(copy, shared)
    assert shared[:8].tolist() == list(range(8))
    assert result.sum() == 300_000
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(work, 9).result()
    assert shared[9] == 9 and result.sum() == 300_000
    assert executor.submit(np.sum, shared).result() == 37
print("told")
""",
    )


def test_subprocess_costs_nothing_and_inherits_nothing(run_script):
    """Programs started with live arrays get no descriptor of them; the arrays stay lendable and warm."""
    _run(
        run_script,
        '''
with ndshare.ProcessPoolExecutor(1) as executor:
    shared = ndshare.share(pattern(4_000_000, 0))
    result = executor.submit(pattern, 4_000_000, 1).result()
    look = """
import os
names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
print([name for name in names if "memfd" in name or "socket" in name])
"""
    for options in ({}, {"close_fds": False}, {"preexec_fn": lambda: None}, {"start_new_session": True}):
        found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, **options).stdout
        assert found == "[]\\n", (options, found)
    assert os.system("true") == 0
    long = subprocess.Popen(["sleep", "5"])
    before = ndshare.stats().fresh
    for _ in range(6):
        assert (executor.submit(echo, result).result() == pattern(4_000_000, 1)).all()
        shared = ndshare.share(pattern(4_000_000, 2))
    assert ndshare.stats().fresh <= before + 3
    long.kill()
    long.wait()
print("told")
''',
    )


@pytest.mark.parametrize("how", ["os.fork", "multiprocessing", "subprocess"])
def test_fork_inside_a_task(how):
    """A task may fork: its child sees the arguments, its writes stay its own, the result is right."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for nbytes in (1000, 100_000, 3_000_000):
            plain = np.arange(nbytes // 8)
            shared = ndshare.share(plain)
            sent = executor.submit(fork_tasks.fork_and_return, how, plain, shared)
            first, second, third, made = sent.result()
            assert np.array_equal(first, plain)
            assert np.array_equal(second, plain + 1)
            assert np.shares_memory(third, shared)
            assert shared[-1] == -5 or how == "subprocess"
            assert np.array_equal(made, plain * 2)
            assert executor.submit(fork_tasks.after, how).result() == "as before"
            for _ in range(4):
                executor.submit(fork_tasks.fork_and_return, how, plain, ndshare.share(plain)).result()
            assert np.array_equal(first, plain)
            assert np.array_equal(second, plain + 1)
            assert np.array_equal(made, plain * 2)


def test_fork_inside_a_task_child_outlives_it():
    """A child that a task leaves behind keeps its memory while the worker works on."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for nbytes in (1000, 100_000, 3_000_000):
            report = ndshare.zeros(3)
            a = np.arange(nbytes // 8)
            pid = executor.submit(fork_tasks.leave_child, a, ndshare.share(a), report).result()
            for _ in range(6):
                executor.submit(np.full, nbytes // 8, -1).result()
                executor.submit(np.add, a, 5).result()
                ndshare.full(nbytes // 8, -1)
            report[0] = 1  # the child looks
            assert executor.submit(fork_tasks.reap, pid).result() == 0
            assert report[1] == 1


def test_executor_inside_a_forked_child_of_a_worker():
    """What forked in a worker can have an executor of its own, with the inherited shared array."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        shared = ndshare.zeros(300_000)
        assert executor.submit(fork_tasks.child_with_executor, shared).result() == 0
        assert shared.sum() == 300_000


def test_child_has_no_descriptor_that_nobody_knows(run_script):
    """A fork in the middle of memory being made, mapped and given back by other threads leaves nothing half done."""
    done = run_script(
        _PRELUDE
        + """
from ndshare._memory import segments
from tests.peers import ticket, take
stop = False
def churn(n):
    while not stop:
        a = ndshare.empty(n, "u1"); a[::4096] = 1
        del a
        segments.trim()
def known():
    open_now = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.islink(f"/proc/self/fd/{fd}")]
    s = ndshare.stats()
    segments_of_ours = sum(name.startswith("/memfd:ndshare (") for name in open_now)
    mapped = sum("/memfd:ndshare (" in line for line in open("/proc/self/maps"))
    here = s.shared_segments + s.value_segments + s.sealed_segments
    assert segments_of_ours <= here, (segments_of_ours, here, s)
    assert mapped <= here + s.cached_mappings, (mapped, here, s)
threads = [threading.Thread(target=churn, args=(n << 20,)) for n in (40, 90, 5)]
for thread in threads: thread.start()
for _ in range(60):
    forked(known)
    time.sleep(0.01)
stop = True
for thread in threads: thread.join()
print("known")
"""
    )
    assert done.stdout == "known\n", done.stderr
