"""The queue has the interface of the standard library's, and hands arrays over as ndshare does."""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing as mp
import os
import pickle
import queue
import selectors
import signal
import sys
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare._memory import segments
from ndshare._queue import backlog
from tests import jobs
from tests.queue import queue_tasks
from tests.queue.queue_tasks import Plain

START_METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture
def q():
    """Return a queue without bounds."""
    made = ndshare.Queue()
    yield made
    made.close()
    segments.trim()


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """Start multiprocessing's helper processes before anybody looks what is left behind."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.ensure_running()
    resource_tracker.ensure_running()


def start(method, target, *args):
    """Start a process."""
    process = mp.get_context(method).Process(target=target, args=args)
    process.start()
    return process


def finish(process, code=0):
    """Wait for a process and close it."""
    process.join(30)
    assert process.exitcode == code
    process.close()


# ------------------------------------------------------------------ one process


def test_put_get_keeps_order_and_content(q):
    """Anything that can be pickled comes out as it went in, first in first out."""
    sent = [1, "two", b"3" * 100_000, None, {"a": [1.5]}, Plain((1, 2)), list(range(30_000)), jobs.add_one]
    for one in sent:
        q.put(one)
    got = [q.get() for _ in sent]
    assert got[:5] == sent[:5]
    assert got[5].value == (1, 2)
    assert got[6:] == sent[6:]


def test_ordinary_array_is_taken_at_put_and_arrives_writable_and_private(q):
    """What is changed after put does not show; what the receiver writes is its own."""
    for size in (3, 1000, 20_000, 500_000):
        a = np.arange(float(size))
        q.put(a)
        a[:] = -1
        got = q.get()
        assert (got == np.arange(float(size))).all()
        assert got.flags.writeable
        assert not ndshare.is_shared(got)
        got[:] = 7
        assert (a == -1).all()


def test_shared_array_is_the_same_memory(q):
    """A view of a shared array arrives as the view of the same memory, a sealed one read-only."""
    a = ndshare.zeros((100, 200))
    q.put({"view": a[::2, 5:]})
    view = q.get()["view"]
    view[...] = 3
    assert (a[::2, 5:] == 3).all()
    assert view.strides == a[::2, 5:].strides
    sealed = ndshare.share(np.arange(10), mode="r")
    q.put(sealed)
    assert not q.get().flags.writeable


def test_unpicklable_object_raises_in_put_and_queue_goes_on(q):
    """The error is the caller's, at once; nothing else is lost."""
    bounded = ndshare.Queue(2)
    for one in (q, bounded):
        one.put(1)
        for bad in (queue_tasks.Unpicklable(), [np.zeros(100_000), queue_tasks.Unpicklable()]):
            with pytest.raises(ZeroDivisionError):
                one.put(bad)
        with pytest.raises(TypeError):
            one.put(threading.Lock())
        one.put(2)
        assert [one.get(), one.get()] == [1, 2]
        assert one.qsize() == 0
    bounded.close()


def test_unreadable_object_raises_in_get_and_queue_goes_on(q):
    """What cannot be rebuilt costs itself only."""
    q.put(queue_tasks.Unreadable())
    q.put(2)
    with pytest.raises(ZeroDivisionError):
        q.get()
    assert q.get() == 2


def test_empty_raises_empty_after_its_timeout(q):
    """The standard exception, not early and not much too late."""
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(False)
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.15)
    assert time.monotonic() - began >= 0.15
    with pytest.raises(ValueError, match="timeout"):
        q.get(timeout=-1)
    with pytest.raises(queue.Empty):
        q.get_many(3, 0.01)
    with pytest.raises(ValueError, match="max_items"):
        q.get_many(0)


def test_full_raises_full_after_its_timeout():
    """A bounded queue takes what it may hold and no more."""
    q = ndshare.Queue(3)
    assert not q.full()
    for number in range(3):
        q.put(number)
    assert q.full()
    assert q.qsize() == 3
    for bad in (lambda: q.put_nowait(3), lambda: q.put(3, False), lambda: q.put(np.zeros(50_000), timeout=0)):
        with pytest.raises(queue.Full):
            bad()
    began = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.15)
    assert time.monotonic() - began >= 0.15
    assert q.get() == 0
    q.put(3, timeout=0)
    assert q.get_many(10) == [1, 2, 3]
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
    q.close()


def test_refused_arguments_name_what_is_allowed():
    """Bounds that make no sense are refused."""
    with pytest.raises(ValueError, match="maxsize is 2147483648"):
        ndshare.Queue(1 << 31)
    with pytest.raises(ValueError, match="maxbytes is 0"):
        ndshare.Queue(maxbytes=0)
    q = ndshare.Queue(-1)  # as in the standard library: no bound
    assert repr(q) == "<ndshare.Queue>"
    q.close()
    assert repr(q) == "<ndshare.Queue closed>"


def test_maxbytes_holds_back_and_lets_through():
    """Bytes in flight stay below the bound; a message that could never pass is refused."""
    q = ndshare.Queue(maxbytes=1_000_000)
    assert "maxbytes=1000000" in repr(q)
    with pytest.raises(ValueError, match="at most 1000000"):
        q.put(np.zeros(200_000))
    q.put(np.zeros(50_000))
    shared = ndshare.zeros(50_000)
    q.put(shared)
    with pytest.raises(queue.Full):
        q.put_nowait(np.zeros(50_000))
    q.get()
    q.put_nowait(np.zeros(50_000))
    assert q.qsize() == 2
    assert len(q.get_many(5)) == 2
    small = 0
    with pytest.raises(queue.Full):  # a message counts for 1/1024 at least
        while True:
            q.put_nowait(None)
            small += 1
    assert small == 1024 + 1000 // 976 - 1
    assert q.full()
    assert [q.get(timeout=5) for _ in range(small)] == [None] * small
    q.close()


def test_blocked_put_goes_on_when_a_message_is_taken():
    """A putter that waits is woken by get, in time."""
    q = ndshare.Queue(1)
    q.put(0)
    thread = threading.Thread(target=queue_tasks.put_numbers, args=(q, 1, 200))
    thread.start()
    assert q.get() == 0
    assert [q.get(timeout=10) for _ in range(200)] == [(1, number) for number in range(200)]
    thread.join()
    q.close()


def test_unbounded_put_never_blocks_and_keeps_order(q):
    """Thousands of messages are accepted with nobody to take them; they come in order."""
    for number in range(5000):
        q.put(number if number % 3 else (number, np.full(5, number)))
    assert q.qsize() == 5000
    assert not q.full()
    got = [q.get(timeout=10) for _ in range(5000)]
    assert [one if isinstance(one, int) else one[0] for one in got] == list(range(5000))
    assert q.empty()
    assert q.qsize() == 0


def test_bounded_queue_larger_than_the_socket_keeps_count():
    """Slots of what waits in the sender count as well."""
    q = ndshare.Queue(3000)
    for number in range(3000):
        q.put(number)
    assert q.qsize() == 3000
    with pytest.raises(queue.Full):
        q.put_nowait(0)
    assert [q.get(timeout=10) for _ in range(3000)] == list(range(3000))
    assert q.qsize() == 0
    q.close()


def test_threads_put_and_get(q):
    """Several threads on both ends: each message once, in order per thread for one receiver."""
    threads = [threading.Thread(target=queue_tasks.put_numbers, args=(q, who, 1500)) for who in range(4)]
    for thread in threads:
        thread.start()
    got = [q.get(timeout=20) for _ in range(6000)]
    for thread in threads:
        thread.join()
    for who in range(4):
        assert [number for w, number in got if w == who] == list(range(1500))


def test_one_thread_at_a_time_sends_what_there_was_no_room_for(q, monkeypatch):
    """Another one that wants to, while a thread for it is just being started, leaves it to that."""
    feed, own_thread = backlog.Backlog._feed, backlog.own_thread
    feeding, others = [], []

    def noted(self):
        feeding.append(threading.current_thread())
        feed(self)

    def late_thread(target, name):
        thread = own_thread(target, name)
        start = thread.start

        def start_late():
            others.append(threading.Thread(target=q._line.backlog.feed_here))
            others[-1].start()
            others[-1].join(0.1)
            start()

        thread.start = start_late
        return thread

    monkeypatch.setattr(backlog.Backlog, "_feed", noted)
    monkeypatch.setattr(backlog, "own_thread", late_thread)
    for number in range(3000):
        q.put(number)
    assert [q.get(timeout=20) for _ in range(3000)] == list(range(3000))
    for other in others:
        other.join()
    assert others
    assert len(feeding) == len(others)


def test_message_with_more_arrays_than_descriptors_fit(q):
    """Several hundred segments in one message."""
    with segments.shared_memory():
        arrays = [np.full(150_000, number, np.float64) for number in range(300)]
    q.put(arrays)
    got = q.get(timeout=10)
    assert all((a == number).all() for number, a in enumerate(got))
    assert all(ndshare.is_shared(a) for a in got)
    del arrays, got


def test_closed_queue_raises_value_error(q):
    """As in the standard library; close twice is harmless, and others are not affected."""
    one = ndshare.Queue()
    with pytest.raises(ValueError, match="not closed"):
        one.join_thread()
    one.put(1)
    one.close()
    one.close()
    one.join_thread()
    for use in (lambda: one.put(1), one.get, one.qsize, one.empty, one.fileno, one.shutdown):
        with pytest.raises(ValueError, match="is closed"):
            use()


def _what_happens(q, *steps):
    """Do something to a queue; return the last outcome, as a value or the type of the error."""
    try:
        for step in steps:
            outcome = step(q)
    except Exception as error:
        return type(error)
    else:
        return outcome


_NOW, _SOON = {"block": False}, {"timeout": 0.01}
_PUT = (
    lambda q: q.put(1),
    lambda q: q.put(1, **_NOW),
    lambda q: q.put(1, **_SOON),
    lambda q: q.put(1, True, 0.01),
    lambda q: q.put_nowait(1),
)
_GET = (
    lambda q: q.get(**_NOW),
    lambda q: q.get(**_SOON),
    lambda q: q.get(True, 0.01),
    lambda q: q.get(False, 7),
    lambda q: q.get_nowait(),
)


def test_closed_full_and_empty_are_what_they_are_to_the_standard_library():
    """Exactly the types that `multiprocessing.Queue` raises, and its answers."""

    def fill(q):
        for number in range(2):
            q.put(number)
        return q.full()

    def close(q):
        q.close()

    cases = [
        *((get,) for get in _GET),  # empty
        *((fill, put) for put in _PUT[1:]),  # full
        *((close, use) for use in (*_PUT, *_GET)),
        (close, lambda q: q.get()),
        (close, close),
        (close, lambda q: q.join_thread()),
        (lambda q: q.join_thread(),),
        (fill,),
        (fill, lambda q: q.qsize()),
        (lambda q: q.qsize(),),
        (lambda q: q.empty(),),
        (fill, lambda q: q.put(5, False, 3)),
        (lambda q: q.cancel_join_thread(), close, lambda q: q.cancel_join_thread()),
    ]
    for number, steps in enumerate(cases):
        theirs, ours = mp.get_context("fork").Queue(2), ndshare.Queue(2)
        expected = _what_happens(theirs, *steps)
        if expected is AssertionError:  # it says so of a queue that is not closed
            expected = ValueError
        assert _what_happens(ours, *steps) == expected, number
        theirs.close()
        theirs.cancel_join_thread()
        ours.close()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="queue.Queue.shutdown is new in Python 3.13")
def test_shut_down_and_negative_timeouts_are_what_they_are_to_the_standard_library():
    """Exactly the types that `queue.Queue` raises, and what can still be taken out."""

    def shut(q):
        q.put(7)
        q.shutdown()

    def drop(q):
        q.put(7)
        q.shutdown(immediate=True)

    def get(q):
        return q.get()

    cases = [
        *(
            (end, *before, use)
            for end in (shut, drop)
            for before in ((), (get,))
            for use in (*_PUT, *_GET, get)
        ),
        (shut, get, shut),
        (lambda q: q.shutdown(), lambda q: q.shutdown()),
        (shut, lambda q: q.empty()),
        (drop, lambda q: q.empty()),
        (shut, lambda q: q.qsize()),
        (lambda q: q.get(timeout=-1),),
        (lambda q: (q.put(1), q.put(1), q.put(1, timeout=-1)),),
        (lambda q: q.get(False, -1),),
    ]
    for number, steps in enumerate(cases):
        ours = ndshare.Queue(2)
        assert _what_happens(ours, *steps) == _what_happens(queue.Queue(2), *steps), number
        ours.close()


def test_shutdown_lets_out_what_is_in(q):
    """Put raises at once, get when the queue is empty; what waited in the sender comes too."""
    n = 2000
    for number in range(n):
        q.put(number)
    q.shutdown()
    with pytest.raises(ndshare.ShutDown):
        q.put(1)
    with pytest.raises(ndshare.ShutDown):
        q.put(np.zeros(100_000))
    assert [q.get(timeout=10) for _ in range(n)] == list(range(n))
    for get in (q.get, q.get_nowait, lambda: q.get_many(3), lambda: q.get(timeout=5)):
        with pytest.raises(ndshare.ShutDown):
            get()
    q.shutdown()
    if sys.version_info >= (3, 13):
        assert ndshare.ShutDown is queue.ShutDown


def test_shutdown_immediate_drops_everything(q):
    """Nothing comes out any more, and the memory is free."""
    for _ in range(1000):
        q.put(np.zeros(20_000))
    q.shutdown(immediate=True)
    with pytest.raises(ndshare.ShutDown):
        q.get()
    with pytest.raises(ndshare.ShutDown):
        q.put(1)
    assert q.empty()


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_wakes_who_waits(immediate):
    """Getters and putters that wait already get the exception."""
    empty, full = ndshare.Queue(), ndshare.Queue(1)
    full.put(1)
    said = []

    def wait(call, *args):
        try:
            call(*args)
        except ndshare.ShutDown:
            said.append(call.__name__)

    threads = [threading.Thread(target=wait, args=(empty.get,)) for _ in range(3)]
    threads += [threading.Thread(target=wait, args=(full.put, 2)) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    empty.shutdown(immediate)
    full.shutdown(immediate)
    for thread in threads:
        thread.join(10)
    assert sorted(said) == ["get"] * 3 + ["put"] * 3
    empty.close()
    full.close()


def test_plain_pickle_and_copy_are_refused(q):
    """A copy would be another queue."""
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            attempt(q)


def test_dropped_queue_closes_its_files():
    """Queue objects that are forgotten leave nothing, also with something in them."""
    for _ in range(50):
        one = ndshare.Queue(5)
        one.put(np.zeros(100_000))
        del one
    gc.collect()


def test_selector_sees_messages(q):
    """fileno() is readable when there is something to get."""
    with selectors.DefaultSelector() as selector:
        selector.register(q, selectors.EVENT_READ)
        assert selector.select(0) == []
        q.put(1)
        assert selector.select(5)
        assert q.get_nowait() == 1
        assert selector.select(0) == []


def test_asyncio_gets_and_puts_without_blocking():
    """Hundreds of concurrent waits on one loop, both ends bounded."""

    async def main():
        q = ndshare.Queue(4)
        getting = [asyncio.ensure_future(q.aget()) for _ in range(300)]
        await asyncio.sleep(0.01)
        putting = [asyncio.ensure_future(q.aput(number)) for number in range(300)]
        got = await asyncio.wait_for(asyncio.gather(*getting), 30)
        await asyncio.gather(*putting)
        assert sorted(got) == list(range(300))
        cancelled = asyncio.ensure_future(q.aget())
        await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        waiting = asyncio.ensure_future(q.aget())
        await asyncio.sleep(0.01)
        q.shutdown()
        with pytest.raises(ndshare.ShutDown):
            await asyncio.wait_for(waiting, 10)
        with pytest.raises(ndshare.ShutDown):
            await q.aput(1)
        q.close()

    asyncio.run(main())


# ------------------------------------------------------------------ several processes


@pytest.mark.parametrize("method", START_METHODS)
def test_queue_goes_to_children_of_every_start_method(q, method):
    """Messages both ways, arrays by value and by reference, order kept."""
    back = ndshare.Queue(8)
    process = start(method, queue_tasks.echo, q, back)
    shared, plain = ndshare.zeros(30_000), np.arange(30_000)
    q.put(shared)
    got, seen = back.get(timeout=60)
    assert np.shares_memory(got, shared)
    assert seen.shared
    q.put(plain)
    got, seen = back.get(timeout=60)
    assert (got == -1).all() or got.shape == plain.shape  # `look` has written all over it
    assert not seen.shared
    for number in range(300):
        q.put(number)
    q.put(None)
    assert [back.get(timeout=60)[0] for _ in range(300)] == list(range(300))
    finish(process)
    back.close()


def test_queue_goes_through_a_queue_and_a_pipe(q):
    """It can be a message itself; what comes out is the same queue."""
    inner = ndshare.Queue()
    q.put({"reply to": inner})
    again = q.get()["reply to"]
    again.put(5)
    assert inner.get(timeout=5) == 5
    again.close()
    inner.put(6)
    assert inner.get(timeout=5) == 6
    inner.close()


def test_queue_goes_to_workers_of_the_executor(q):
    """As an argument and captured, in both directions, with arrays and classes of the program."""
    back = ndshare.Queue(10)
    with ndshare.ProcessPoolExecutor(2) as executor:
        future = executor.submit(queue_tasks.put_arrays, back, 30, 50_000)
        got = [back.get(timeout=30) for _ in range(30)]
        future.result()
        assert all((a == number).all() for number, a in enumerate(got))
        assert [ndshare.is_shared(a) for a in got] == [True, False] * 15
        del got
        a = ndshare.zeros((7, 5))
        q.put(a)
        assert executor.submit(queue_tasks.add_one, q, (7, 5)).result()
        assert (a == 1).all()
        executor.submit(lambda: back.put(Plain(3))).result()
        assert back.get(timeout=10).value == 3
    back.close()


def test_queue_is_captured_by_a_kernel(q):
    """Map kernels put into a queue of the caller while the map runs."""
    out = ndshare.zeros(50)

    def kernel(worker_id, index, value):
        q.put((index, np.full(3, value)))
        out[index] = 1

    ndshare.ProcessContext(2).map(kernel, list(range(50)))
    got = sorted((q.get(timeout=10) for _ in range(50)), key=lambda one: one[0])
    assert [index for index, _ in got] == list(range(50))
    assert all((a == index).all() for index, a in got)
    ndshare.shutdown()


def test_kernel_of_a_forked_map_delivers_or_says_so(q):
    """What does not fit while nobody reads is an error, not silence."""
    lock = threading.Lock()  # cannot be pickled: this map forks

    def kernel(worker_id, index, value):
        with lock:
            for _ in range(value):
                q.put(b"x" * 1000)

    context = ndshare.ProcessContext(1)
    context.map(kernel, [5, 5])
    assert [q.get(timeout=5) for _ in range(10)] == [b"x" * 1000] * 10
    with pytest.raises(ndshare.TransportError, match="messages still waited"):
        context.map(kernel, [3000])
    ndshare.shutdown()


def test_classes_of_a_program_reach_workers(run_script):
    """Definitions go with the message where the receiver lacks the name, and its own are used where not."""
    run_script("""
import ndshare
class Point:
    def __init__(self, x): self.x = x
    def double(self): return helper(self.x)
def helper(x): return 2 * x
def take(): return q.get(timeout=10).double()
q = ndshare.Queue()
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(q.qsize).result()
    q.put(Point(21))
    assert executor.submit(take).result() == 42
    q.put(Point(5))
    assert type(q.get(timeout=5)) is Point
""")


def test_example_of_shared_numpy_with_native_names(run_script):
    """Its README's programs, without close and unlink."""
    run_script("""
import multiprocessing as mp, numpy as np
import ndshare as snp

def f(q):
    for i in range(10):
        a = snp.array([1, 2, 3, 4, 5])
        q.put(a)
    q.put(None)

if __name__ == "__main__":
    q = snp.Queue()
    p = mp.Process(target=f, args=(q,))
    p.start()
    found = []
    while True:
        out = q.get()
        if out is None: break
        assert out.tolist() == [1, 2, 3, 4, 5] and snp.is_shared(out)
        found.append(out)
    p.join()
    assert len(found) == 10

    a = np.zeros((10, 10), order="F")
    b = snp.share(a)
    assert b.strides == a.strides and not np.shares_memory(a, b)
    q.put(b[::2])
    assert q.get().strides == b[::2].strides
    c = snp.empty((3, 4), np.float32, order="F")
    c[...] = 1
    q.put(c)
    assert np.shares_memory(q.get(), c)
""")


def test_reused_buffer_is_sent_as_it_was(q):
    """Put has taken its copy when it returns, from another process too."""
    process = start("fork", queue_tasks.put_reused, q, 40)
    assert [q.get(timeout=20)[0] for _ in range(40)] == list(range(40))
    finish(process)


def test_killed_producer_leaves_what_was_sent(q):
    """Messages in flight outlive their sender's violent death."""
    process = start("fork", queue_tasks.put_and_die, q, 20, 5000)
    finish(process, -signal.SIGKILL)
    got = [q.get(timeout=5) for _ in range(20)]
    assert all((a == number).all() for number, a in enumerate(got))
    with pytest.raises(queue.Empty):
        q.get_nowait()


@pytest.mark.parametrize("bounds", [{"maxsize": 2}, {"maxbytes": 5000}])
def test_bounds_are_exact_after_kills(bounds):
    """Slots of a killed consumer and of a killed producer are free; the others' are not."""
    q = ndshare.Queue(**bounds)
    data = b"x" * 1800
    for _ in range(3):
        q.put(data)
        q.put(data)
        with pytest.raises(queue.Full):
            q.put_nowait(data)
        finish(start("fork", queue_tasks.get_and_die, q, 2), -signal.SIGKILL)
        assert q.qsize() == 0
    q.put(data)
    full = threading.Thread(target=queue_tasks.put_numbers, args=(q, 0, 3 if "maxsize" in bounds else 1))
    full.start()
    assert q.get(timeout=5) == data
    q.get(timeout=5)
    if "maxsize" in bounds:
        q.get(timeout=5), q.get(timeout=5)
    full.join()
    q.close()


def test_fork_while_threads_put_takes_no_slots():
    """A child forked in the middle of other threads' puts keeps no slot of its parent's."""
    q = ndshare.Queue(3)
    stop = threading.Event()

    def shuttle():
        while not stop.is_set():
            q.put(np.zeros(2000))
            q.get()

    thread = threading.Thread(target=shuttle)
    thread.start()
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)
    stop.set()
    thread.join()
    try:
        for number in range(3):
            q.put(number, timeout=20)  # the last child may not have run yet
        assert q.get_many(3) == [0, 1, 2]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    q.close()


def test_backlog_stays_the_parents_after_a_fork(q):
    """A forked child sends nothing twice, and can use the queue itself."""
    for number in range(1000):
        q.put(number)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            q.put("child")
            q.close()
            q.join_thread()
            code = 0
        finally:
            os._exit(code)
    got = [q.get(timeout=10) for _ in range(1001)]
    assert os.waitpid(child, 0)[1] == 0
    assert [one for one in got if one != "child"] == list(range(1000))
    assert q.empty()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_normally_exiting_producer_waits_for_its_backlog(q, method):
    """All is delivered, unless the producer has said that it need not be."""
    process = start(method, queue_tasks.exit_with_backlog, q, 3000, False)
    assert [q.get(timeout=60) for _ in range(3000)] == list(range(3000))
    finish(process)
    process = start(method, queue_tasks.exit_with_backlog, q, 3000, True)
    finish(process)  # nobody reads: it does not wait
    q.get(timeout=5)


def test_exit_does_not_wait_when_nobody_is_left(run_script):
    """A program whose queue nobody else has ends, whatever is in it; a worker's backlog is delivered."""
    run_script(
        """
import ndshare
q = ndshare.Queue()
for number in range(3000):
    q.put(number)
""",
        timeout=30,
    )
    run_script("""
import ndshare
def fill(q):
    for number in range(3000):
        q.put(number)
q = ndshare.Queue()
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(fill, q).result()
    got = [q.get(timeout=10) for _ in range(3000)]
assert got == list(range(3000))
""")


def test_five_thousand_arrays_with_256_descriptors(run_script):
    """The queue takes them all, with at most a quarter of the descriptors in flight, as an ordinary user."""
    script = """
import os, resource, sys
import numpy as np, ndshare, ndshare._queue.queue
from ndshare._system import platform
if os.getuid() == 0:
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
q = ndshare.Queue()
for i in range(5000):
    q.put(np.full(9000, i))
    if i % 500 == 0:
        assert platform.descriptors_in_flight(q.fileno()) <= 64
pid = os.fork()
if pid == 0:
    code = 1
    try:
        kept = []
        for i in range(5000):
            a = q.get(timeout=30)
            assert a[0] == a[-1] == i, (i, a)
            kept.append(a)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert q.empty()
"""
    run_script(script)


def test_put_without_a_free_descriptor_is_accepted_and_sent_later(run_script):
    """When the process has no descriptor left, the copy waits in ordinary memory."""
    run_script("""
import os, resource, time
import numpy as np, ndshare
q = ndshare.Queue()
q.put(0), q.get()
a = np.arange(300_000.0)
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
for fd in taken[-3:]:
    os.close(fd)
del taken[-3:]
for number in range(6):
    a[0] = number
    q.put(a)
for fd in taken:
    os.close(fd)
assert [q.get(timeout=10)[0] for _ in range(6)] == list(range(6))
""")


def test_get_without_a_free_descriptor_leaves_the_message(run_script):
    """The error says what to do, and nothing is lost."""
    run_script("""
import os, resource
import numpy as np, ndshare
q = ndshare.Queue()
q.put(np.arange(300_000.0))
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
try:
    q.get(timeout=5)
except ndshare.SegmentError as error:
    assert "ulimit -n" in str(error), error
else:
    raise AssertionError
for fd in taken:
    os.close(fd)
assert q.get(timeout=5).sum() == 299_999 * 150_000
""")


def test_shutdown_waits_for_the_backlog_of_others(q):
    """What another process had accepted before still comes; if that process is killed, the end comes."""
    process = start("fork", queue_tasks.exit_with_backlog, q, 3000, False)
    assert q.get(timeout=10) == 0
    while q.qsize() < 2999:
        time.sleep(0.01)
    q.shutdown()
    assert [q.get(timeout=20) for _ in range(2000)] == list(range(1, 2001))
    os.kill(process.pid, signal.SIGKILL)
    rest = 0
    with pytest.raises(ndshare.ShutDown):
        while q.get(timeout=20) is not None:
            rest += 1
    assert rest < 1000
    finish(process, -signal.SIGKILL)
