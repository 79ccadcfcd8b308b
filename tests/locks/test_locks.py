"""Locks: one holder at a time, whoever dies, and no wait that cannot be ended."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare._locks import _lock
from ndshare._transport import transport

_FORK = """
import os, random, signal, sys, time
import numpy as np
import ndshare

def spawn(work, *args):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*args)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid

def join(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_lock_has_the_interface_of_threading_lock():
    """Acquire, release, locked, context manager, and a repr that says who has it."""
    lock = ndshare.lock()
    assert not lock.locked()
    assert repr(lock) == "<ndshare.Lock free>"
    assert lock.acquire() is True
    assert lock.locked()
    assert repr(lock) == f"<ndshare.Lock held by process {os.getpid()}>"
    lock.release()
    with lock as entered:
        assert entered is lock
        assert lock.locked()
    assert not lock.locked()
    assert lock.acquire(False) is True
    lock.release()
    assert lock.acquire(timeout=0.0) is True
    lock.release()


def test_lock_second_acquire_by_its_holder_raises():
    """A thread that would wait for itself is told so; without waiting the answer is False."""
    lock = ndshare.lock()
    with lock:
        for arguments in ({}, {"timeout": 5.0}):
            with pytest.raises(RuntimeError, match="holds the lock already"):
                lock.acquire(**arguments)
        assert lock.acquire(blocking=False) is False
        with pytest.raises(RuntimeError, match="holds the lock already"), lock:
            pass
        assert lock.locked()
    assert not lock.locked()


def test_lock_release_by_another_than_the_holder_raises():
    """Neither a free lock nor somebody else's can be released."""
    lock = ndshare.lock()
    with pytest.raises(RuntimeError, match="does not hold"):
        lock.release()
    seen = []

    def release():
        try:
            lock.release()
        except RuntimeError as error:
            seen.append(str(error))

    with lock:
        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert lock.locked()
    assert "does not hold" in seen[0]


@pytest.mark.parametrize("timeout", [-2, -0.5, float("nan")])
def test_lock_bad_timeouts_are_refused(timeout):
    """A timeout is -1 or a number of seconds from 0 on, and needs a wait."""
    lock = ndshare.lock()
    with pytest.raises(ValueError, match="timeout"):
        lock.acquire(timeout=timeout)
    with pytest.raises(ValueError, match="blocking=False"):
        lock.acquire(False, 1.0)
    assert not lock.locked()


@pytest.mark.parametrize("timeout", [0.0, 0.01, 0.2])
def test_lock_timeout_is_kept(timeout):
    """Who does not get it in time gets False, and not before the time is over."""
    lock = ndshare.lock()
    seen = []

    def wait():
        began = time.monotonic()
        seen.append((lock.acquire(timeout=timeout), time.monotonic() - began))

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    (taken, waited), = seen  # fmt: skip
    assert taken is False
    assert waited >= timeout


def test_lock_waiting_releases_the_gil():
    """The holder goes on while another thread of the process waits."""
    lock = ndshare.lock()
    lock.acquire()
    order = []

    def wait():
        with lock:
            order.append("waiter")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.02)
    order.append("holder")
    lock.release()
    thread.join()
    assert order == ["holder", "waiter"]


def test_lock_between_threads_is_exact():
    """Four threads add without losing one."""
    lock, total = ndshare.lock(), [0]

    def add():
        for _ in range(3000):
            with lock:
                before = total[0]
                total[0] = before + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [12_000]


def test_lock_of_a_thread_that_ended_is_free_again():
    """The end of a thread is a death of a holder."""
    lock = ndshare.lock(report_death=True)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    with pytest.raises(ndshare.OwnerDiedError, match=str(os.getpid())):
        while lock.acquire():  # join returns before the thread has quite ended
            raise AssertionError("a death went unnoticed")
    with lock.repair() as damaged:
        assert damaged
    with lock:
        pass


def test_lock_memory_of_a_held_lock_stays():
    """Dropping a lock that is held, and collecting, leaves the memory the kernel may have to look at."""
    lock = ndshare.lock()
    lock.acquire()
    array = lock._memory
    del lock
    gc.collect()
    lock = ndshare.Lock(array)
    assert lock.locked()
    lock.release()
    with lock:
        pass


def test_lock_cannot_be_copied_or_pickled():
    """Only ndshare sends a lock: pickle and copy would make another one."""
    lock = ndshare.lock()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="through ndshare only"):
            attempt(lock)
    cloudpickle = pytest.importorskip("cloudpickle")
    with pytest.raises(TypeError, match="through ndshare only"):
        cloudpickle.dumps(lambda: lock)


def test_lock_sent_by_ndshare_is_the_same_lock():
    """The receiver's lock is held when the sender's is, also within containers and closures."""
    lock = ndshare.lock(report_death=True)

    def kernel():
        return lock

    parcel = transport.pack([lock, (kernel, {"a": lock})]).settle(broadcast=True)
    first, (function, table) = transport.unpack(parcel.data, parcel.descriptors())
    parcel.release()
    assert first is table["a"] is function()
    assert first is not lock
    assert first.report_death
    with lock:
        assert first.locked()
        assert not first.acquire(blocking=False)
    with first:
        assert lock.locked()
    assert ndshare.share({"lock": lock})["lock"] is not None


def test_lock_in_memory_that_holds_none_is_refused():
    """A lock is looked for where one was made."""
    for memory in (np.zeros(10, np.uint8), ndshare.zeros(128, np.uint8)):
        with pytest.raises(ValueError, match=r"ndshare\.lock"):
            ndshare.Lock(memory)
    with pytest.raises(OSError, match="Invalid"):
        _lock.make(np.zeros(10, np.uint8).data)


def _add(lock, total, times):
    for _ in range(times):
        with lock:
            total += 1


def _hold_and_die(lock):
    lock.acquire()
    os.kill(os.getpid(), 9)


def _try(lock):
    return lock.acquire(blocking=False) and (lock.release() or True), lock.locked()


def test_lock_in_pool_workers():
    """Workers exclude each other and their caller; a worker that dies frees the lock."""
    lock, total = ndshare.lock(), ndshare.zeros(3)
    with ndshare.ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(_add, lock, total, 500) for _ in range(4)]
        _add(lock, total, 500)
        for future in futures:
            future.result()
        assert total.tolist() == [2500] * 3
        with lock:
            assert pool.submit(_try, lock).result() == (False, True)
        assert pool.submit(_try, lock).result() == (True, False)
        with pytest.raises(ndshare.WorkerDiedError):
            pool.submit(_hold_and_die, lock).result()
        assert lock.acquire(timeout=30)
        lock.release()
    ndshare.shutdown()


def test_lock_between_eight_processes_is_exact(run_script):
    """Eight processes add ten thousand times each; not one is lost."""
    run_script(
        _FORK
        + """
total, lock = ndshare.zeros(2), ndshare.lock()
def add():
    for _ in range(10_000):
        with lock:
            total[0] += 1
            total[1] -= 1
assert [join(pid) for pid in [spawn(add) for _ in range(8)]] == [0] * 8
assert total.tolist() == [80_000, -80_000], total
"""
    )


def test_lock_forked_child_does_not_hold_what_its_parent_holds(run_script):
    """The child can neither release it nor take it; it gets it when the parent lets go, or dies."""
    run_script(
        _FORK
        + """
lock, flag = ndshare.lock(), ndshare.zeros(2)
def child():
    assert lock.locked()
    assert not lock.acquire(blocking=False)
    try:
        lock.release()
    except RuntimeError:
        flag[0] = 1
    with lock:
        flag[1] = 1
lock.acquire()
pid = spawn(child)
while not flag[0]:
    time.sleep(0.001)
assert flag[1] == 0
lock.release()
assert join(pid) == 0 and flag[1] == 1

def parent():
    lock.acquire()
    flag[:] = 0
    pid = spawn(child)
    while not flag[0]:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
join(spawn(parent))
end = time.monotonic() + 60
while not flag[1]:
    assert time.monotonic() < end
    time.sleep(0.001)
"""
    )


def test_lock_wait_is_ended_by_ctrl_c(run_script):
    """KeyboardInterrupt comes out of the wait; the lock works afterwards."""
    run_script(
        _FORK
        + """
lock, flag = ndshare.lock(), ndshare.zeros(2)
parent = os.getpid()
def hold():
    with lock:
        flag[0] = 1
        time.sleep(0.1)
        os.kill(parent, signal.SIGINT)
        while not flag[1]:
            time.sleep(0.001)
pid = spawn(hold)
while not flag[0]:
    time.sleep(0.001)
try:
    lock.acquire()
except KeyboardInterrupt:
    flag[1] = 1
else:
    raise AssertionError
with lock:
    pass
assert join(pid) == 0
"""
    )


def test_lock_death_is_told_to_everybody_until_repaired(run_script):
    """Each waiter gets OwnerDiedError, a failed repair counts for nothing, a good one ends it."""
    run_script(
        _FORK
        + """
quiet, lock = ndshare.lock(), ndshare.lock(report_death=True)
def die(lock):
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
assert join(spawn(die, quiet)) == -9
assert not quiet.locked()
with quiet:
    pass
pid = spawn(die, lock)
assert join(pid) == -9
def ask():
    for attempt in (lock.acquire, lock.__enter__, lambda: lock.acquire(False)):
        try:
            attempt()
        except ndshare.OwnerDiedError as error:
            assert error.pid == pid and str(pid) in str(error)
            assert not lock.locked()
        else:
            raise AssertionError
ask()
assert join(spawn(ask)) == 0
try:
    with lock.repair() as damaged:
        assert damaged and lock.locked()
        1 / 0
except ZeroDivisionError:
    pass
ask()
def die_repairing():
    with lock.repair():
        os.kill(os.getpid(), signal.SIGKILL)
pid = spawn(die_repairing)
assert join(pid) == -9
ask()
with lock.repair() as damaged:
    assert damaged
with lock.repair() as damaged:
    assert not damaged
with lock:
    pass
"""
    )


@pytest.mark.parametrize("number", range(2))
def test_lock_survives_kills_at_random_moments(run_script, chaos_rng, chaos_rounds, number):
    """Holders and waiters are killed at any moment: nobody hangs, no update is torn unnoticed."""
    seed = chaos_rng.randrange(1 << 30) + number
    print(f"seed of the kills: {seed}")
    run_script(
        _FORK
        + """
seed, kills = map(int, sys.argv[1:])
rng = random.Random(seed)
lock, pair, repairs = ndshare.lock(report_death=True), ndshare.zeros(2, int), ndshare.zeros(1, int)
def work():
    while True:
        try:
            with lock:
                assert pair[0] == pair[1]
                pair[0] += 1
                pair[1] += 1
        except ndshare.OwnerDiedError:
            with lock.repair() as damaged:
                if damaged:
                    pair[:] = pair.max()
                    repairs[0] += 1
running = [spawn(work) for _ in range(4)]
for _ in range(kills):
    before, end = pair[1], time.monotonic() + 60
    time.sleep(rng.random() ** 3 * 0.02)
    victim = running.pop(rng.randrange(4))
    os.kill(victim, signal.SIGKILL)
    assert join(victim) == -9
    running.append(spawn(work))
    while pair[1] <= before + 3:
        assert time.monotonic() < end, "nobody gets on"
        time.sleep(0.0005)
for pid in running:
    os.kill(pid, signal.SIGKILL)
    assert join(pid) == -9
with lock.repair():
    print("updates", pair, "repairs", repairs)
""",
        str(seed),
        str(60 * chaos_rounds),
    )


@pytest.mark.unsanitized  # what is preloaded has to come after the sanitizer
@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_lock_does_not_care_who_sets_the_clock(seconds, run_script, tmp_path):
    """A wait with a timeout ends in time, and Ctrl-C ends one without, whatever the wall clock says."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(
        f"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += {seconds};
    return failed;
}}
"""
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    run_script(
        """
import os, signal, threading, time, ndshare
lock, held, stop = ndshare.lock(), threading.Event(), threading.Event()
def hold():
    with lock:
        held.set()
        stop.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
began, cpu = time.monotonic(), time.process_time()
assert not lock.acquire(timeout=0.5)
assert time.monotonic() - began >= 0.5
assert time.process_time() - cpu < 0.4, "it was busy waiting"
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    lock.acquire()
except KeyboardInterrupt:
    pass
stop.set()
thread.join()
assert lock.acquire(timeout=20)
""",
        LD_PRELOAD=str(library),
    )
