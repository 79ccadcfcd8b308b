"""Locks of keys: order, timeouts, threads, forks."""

from __future__ import annotations

import _thread
import concurrent.futures
import os
import signal
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from ndshare._dict import files
from tests.dict.dict_tasks import ended, forked, is_locked, running, until


@pytest.fixture
def d():
    """A dict of three keys, in this order."""
    with SharedDict({"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros(3)}) as shared:
        yield shared


def _add(new, old):
    return old + new


@pytest.mark.parametrize("attached_twice", [False, True])
def test_locks_nested_out_of_order_are_refused(d, attached_twice):
    """The same key again, or an earlier one, raises at once instead of waiting for ever; a later one is had."""
    inner = SharedDict.attach(d.name) if attached_twice else d
    with d.locked("b") as b:
        for key, remedy in (("b", "array that this thread has"), ("a", "order of keys")):
            for use in (
                lambda key=key: inner.locked(key).__enter__(),
                lambda key=key: inner.write({key: 1}),
                lambda key=key: inner.write({key: 1}, atomic=True),
                lambda key=key: inner.update({key: 1}, _add),
                lambda key=key: inner.update({key: 1, "c": 1}, _add, atomic=True),
            ):
                with pytest.raises(ndshare.KeyLockError, match=rf"key .*'{key}'.* has locked 'b'.*{remedy}"):
                    use()
        inner.update({"c": 1}, _add)
        with inner.locked("c") as c:
            c += 1
        assert (inner["b"] == 0).all()  # reading needs no lock
        b += 4
    assert [d[key][0] for key in "abc"] == [0, 4, 2]
    with pytest.raises(ndshare.KeyLockError, match="named twice"):
        d.locked("a", "a")
    if attached_twice:
        inner.close()


def test_locks_inside_an_update_function(d):
    """A function may lock later keys, not its own."""
    d.update({"a": 1}, lambda new, old: d.update({"b": 5}, _add)["b"])
    assert d["a"][0] == d["b"][0] == 5
    with pytest.raises(ndshare.KeyLockError):
        d.update({"a": 1}, lambda new, old: d.update({"a": 5}, _add)["a"])
    d.update({"a": 1}, _add, timeout=0)


def test_locks_of_several_in_any_order_do_not_deadlock(d):
    """locked(k1, k2) and locked(k2, k1) by many threads come to an end."""

    def swap(number):
        keys = ("a", "b") if number % 2 else ("b", "a")
        for _ in range(100):
            with d.locked(*keys) as (x, y):
                x += 1
                y += 1

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(swap, range(4)))
    assert d["a"][0] == d["b"][0] == 400


def test_locks_timeout_names_key_and_holder(d):
    """A lock that does not come in time: the key, the seconds and the holder's pid."""
    for holder in ("thread", "process"):
        release = threading.Event()
        held = threading.Event()

        def hold(held=held, release=release):
            with d.locked("b"):
                held.set()
                release.wait(60)

        def hold_forked():
            with SharedDict.attach(d.name) as mine, mine.locked("b"):
                time.sleep(60)

        if holder == "thread":
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(60)
            pid = os.getpid()
        else:
            pid = forked(hold_forked)
            until(lambda: is_locked(d, "b"))
        expected = rf"'b' did not come within 0\.05 s: process {pid} has it"
        for use in (
            lambda: d.update({"b": 1}, _add, timeout=0.05),
            lambda: d.write({"a": 1, "b": 1}, timeout=0.05, atomic=True),
            lambda: d.locked("a", "b", timeout=0.05).__enter__(),
        ):
            with pytest.raises(TimeoutError, match=expected):
                use()
        with pytest.raises(ndshare.KeyTimeoutError):
            d.write({"b": 1}, timeout=0)
        d.update({"a": 1, "c": 1}, _add, timeout=0)  # what was had before the timeout is free again
        assert d["b"][0] == 0
        if holder == "thread":
            release.set()
            thread.join()
        else:
            os.kill(pid, signal.SIGKILL)
            ended(pid)
    for wrong in (-1, float("nan")):
        with pytest.raises(TypeError, match="timeout must be a number of seconds, got '1'"):
            d.locked("a", timeout="1")
        with pytest.raises(ValueError, match="timeout is"):
            d.write({"a": 1}, timeout=wrong)


def _slow_reader(d: SharedDict, ready: int) -> None:
    """Copy a key behind its gate, again and again."""
    mine = SharedDict.attach(d.name)
    os.write(ready, b"x")
    while True:
        mine["big"]


def test_locks_stopped_reader_does_not_stop_writers():
    """A reader that was overtaken, and is stopped while it copies: writers have their timeouts and Ctrl-C."""
    with SharedDict({"a": np.zeros(3), "big": np.zeros(4_000_000)}) as d:
        ready, tell = os.pipe()
        try:
            with running(lambda: _slow_reader(d, tell)) as (pid,):
                os.read(ready, 1)
                version = _stop_behind_the_gate(d, pid)
                before = d["a"]
                for use in (
                    lambda **limit: d.update({"big": 1.0}, _add, **limit),
                    lambda **limit: d.write({"big": 1.0}, **limit),
                    lambda **limit: d.write({"a": 1.0, "big": 1.0}, atomic=True, **limit),
                    lambda **limit: d.update({"a": 1.0, "big": 1.0}, _add, atomic=True, **limit),
                    lambda **limit: d.locked("a", "big", **limit).__enter__(),
                ):
                    for seconds in (0, 0.05):
                        with pytest.raises(
                            ndshare.KeyTimeoutError, match=f"reading key 'big'.*process {pid} is stopped"
                        ):
                            use(timeout=seconds)
                    threading.Timer(0.1, _thread.interrupt_main).start()
                    with pytest.raises(KeyboardInterrupt):
                        use()
                    assert d.version("big") == version
                    assert (d["a"] == before).all()
                d.update({"a": 1.0}, _add, timeout=30)  # other keys are free, and so is the lock of this one
                with pytest.raises(ndshare.KeyTimeoutError):
                    d.write({"big": 1.0}, timeout=0)
                os.kill(pid, signal.SIGCONT)
                d.update({"big": 1.0}, _add, timeout=60)
                assert d.version("big") == version + 1
        finally:
            os.close(ready)
            os.close(tell)


def _stop_behind_the_gate(d: SharedDict, pid: int) -> int:
    """Stop a reader while it holds the gate of the key, and return the version of the key then."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: files.stopped_users(d._store.fd) == (pid,))
        try:
            for _ in range(2):  # it is overtaken, if it copies
                d.write({"big": 0.0}, timeout=0.02)
        except ndshare.KeyTimeoutError:
            return d.version("big")
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)


def test_locks_slow_readers_of_threads_and_writers_of_one_process():
    """Readers that never get a copy in time, and writers, all threads of one process, come to an end."""
    with SharedDict({"big": np.zeros(300_000)}) as d:
        stop = threading.Event()

        def read():
            while not stop.is_set():
                value = d["big"]
                assert (value == value[0]).all()

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            reading = [threads.submit(read) for _ in range(2)]
            writing = [
                threads.submit(lambda: [d.update({"big": 1.0}, _add, copy=False) for _ in range(100)])
                for _ in range(2)
            ]
            for future in writing:
                future.result()
            stop.set()
            for future in reading:
                future.result()
        assert (d["big"] == 200).all()


def test_locks_waiter_gets_it_when_freed(d):
    """Whoever waits, thread or process, gets the lock when the holder leaves."""

    def update():
        with SharedDict.attach(d.name) as mine:
            mine.update({"a": 1}, _add, timeout=60)

    with d.locked("a") as a:
        pids = [forked(update) for _ in range(3)]
        threads = [threading.Thread(target=d.update, args=({"a": 1}, _add)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        a += 10
    for thread in threads:
        thread.join()
    assert [ended(pid) for pid in pids] == [0] * 3
    assert d["a"][0] == 16


def test_locks_child_of_a_fork_has_none(d):
    """A child forked inside a block has no lock, publishes nothing, and does not keep its parent's."""
    with d.locked("a") as a:
        a += 1

        def child():
            with pytest.raises(TimeoutError):
                d.update({"a": 1}, _add, timeout=0.02)
            d.update({"b": 1}, _add)

        assert ended(forked(child)) == 0
    assert d["a"][0] == 1
    assert d["b"][0] == 1

    def leave():
        with pytest.raises(ndshare.KeyLockError, match="fork"), d.locked("a") as a:
            a += 5
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                os._exit(0)

    assert ended(forked(leave)) == 0
    d.update({"a": 1}, _add, timeout=1)
    assert d["a"][0] == 2


def test_locks_of_a_dead_parent_are_free_although_its_child_lives(d):
    """The child of a killed holder does not keep the lock; it is a user of the dict of its own."""

    def parent():
        with d.locked("a") as a:
            a += 5
            forked(lambda: time.sleep(60))
            os.kill(os.getpid(), signal.SIGKILL)

    def starter():
        os.setpgid(0, 0)
        parent()

    pid = forked(starter)
    try:
        assert ended(pid) == -signal.SIGKILL
        d.update({"a": 1}, _add, timeout=1)
        assert d["a"][0] == 1
    finally:
        os.killpg(pid, signal.SIGKILL)
        until(lambda: files.users_of(d._store.fd) == (os.getpid(),))


def test_fork_child_is_a_user_of_its_own(d):
    """Parent and child close in any order; the last one removes; values go on being shared."""
    name = d.name

    def child():
        d["a"] = 5
        until(lambda: d["b"][0] == 6)
        d.close()

    pid = forked(child)
    until(lambda: d["a"][0] == 5)
    d["b"] = 6
    assert ended(pid) == 0
    assert (d["b"] == 6).all()

    def outlive():
        until(lambda: d["c"][0] == 7)
        with SharedDict.attach(name) as again:
            assert (again["a"] == 5).all()
        d.close()

    pid = forked(outlive)
    d["c"] = 7
    d.close()
    assert ended(pid) == 0
    with pytest.raises(FileNotFoundError):
        SharedDict.attach(name)


def test_fork_while_threads_write(d):
    """Forks in the middle of updates of other threads: the children can use the dict at once."""
    stop = threading.Event()

    def load():
        while not stop.is_set():
            d.update({"a": 1, "b": 1}, _add)
            d.read()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            pid = forked(lambda: (d.read(), d.update({"a": 1, "c": 1}, _add, timeout=60), d.close()))
            assert ended(pid) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert d["c"][0] == 20


def test_close_waits_for_other_threads_and_refuses_inside_a_block(d):
    """Closing inside one's own block is refused; other threads finish first."""
    with d.locked("a") as a:
        with pytest.raises(ndshare.KeyLockError, match="leave the block"):
            d.close()
        a += 1
    entered, go = threading.Event(), threading.Event()

    def work():
        with d.locked("b") as b:
            entered.set()
            go.wait(60)
            b += 1

    with SharedDict.attach(d.name) as other, concurrent.futures.ThreadPoolExecutor(2) as threads:
        working = threads.submit(work)
        entered.wait(60)
        closing = threads.submit(d.close)
        until(lambda: d.closed)
        assert not closing.done()
        with pytest.raises(ValueError, match="closed"):
            d["a"] = 1
        go.set()
        working.result()
        closing.result()
        assert (other["b"] == 1).all()


def test_locks_interrupt_ends_waiting(d, run_script):
    """Ctrl-C ends a wait for a lock and for a value, and leaves both usable."""
    source = f"""
import _thread, signal, threading, ndshare
d = ndshare.SharedDict.attach({d.name!r})
print("ready", flush=True)
for use in (lambda: d.update({{"a": 1}}, max), lambda: d.wait("b")):
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT) or _thread.interrupt_main()).start()
    try:
        use()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
d["c"] = 3
d.close()
"""
    with d.locked("a"), running():
        done = run_script(source)
    assert done.stdout == "ready\ninterrupted\ninterrupted\n"
    assert (d["c"] == 3).all()
