"""A stream shows the newest frame, whole, without a copy, to any number of readers."""

from __future__ import annotations

import copy
import gc
import multiprocessing as mp
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._memory import segments
from tests.dict.dict_tasks import ended, forked
from tests.queue import queue_tasks

START_METHODS = ("fork", "forkserver", "spawn")


@pytest.fixture
def stream():
    """Return a stream."""
    made = ndshare.Stream()
    yield made
    made.close()
    segments.trim()


@pytest.fixture(scope="module", autouse=True)
def helpers():
    """Start multiprocessing's helper processes before anybody looks what is left behind."""
    from multiprocessing import forkserver, resource_tracker

    forkserver.ensure_running()
    resource_tracker.ensure_running()


# ------------------------------------------------------------------ what a reader sees


def test_newest_is_seen_once_and_older_ones_are_skipped(stream):
    """Who lags skips; who is up to date waits."""
    with pytest.raises(queue.Empty):
        stream.get_nowait()
    for number in range(3):
        stream.put(number)
    assert stream.get() == 2
    assert stream.skipped == 0
    with pytest.raises(queue.Empty):
        stream.get(timeout=0.1)
    for number in range(3, 10):
        stream.put(number)
    assert stream.get_nowait() == 9
    assert stream.skipped == 6
    threading.Timer(0.2, stream.put, (10,)).start()
    assert stream.get(timeout=30) == 10
    with pytest.raises(ValueError, match="timeout is -1"):
        stream.get(timeout=-1)


@pytest.mark.parametrize(
    "value",
    [
        7,
        "text" * 100,
        b"x" * 300_000,
        np.arange(5.0),
        np.arange(100_000.0).reshape(100, 1000).T,
        np.zeros(1000, [("a", "i4"), ("b", "f8")]),
        {"one": np.ones(200_000), "two": [np.zeros(3, "i2"), None]},
        np.ma.masked_equal(np.arange(100_000), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_got_equals_what_was_put(stream, value):
    """Whatever can be pickled."""
    for _ in range(3):
        stream.put(value)
        got = stream.get()
        assert type(got) is type(value)
        if isinstance(value, dict):
            assert (got["one"] == 1).all()
            assert (got["two"][0] == 0).all()
        else:
            assert np.all(got == value)


@pytest.mark.parametrize("size", [3, 1000, 50_000, 1_000_000])
@pytest.mark.parametrize("make", [np.zeros, ndshare.zeros])
def test_frames_do_not_change_and_cannot_be_changed(stream, size, make):
    """Neither by the writer, who uses its array again, nor by another reader, nor by newer frames."""
    frame, kept = make(size), []
    for number in range(8):
        frame[:] = number
        stream.put({"frame": frame, "part": frame[::2]})
        frame[:] = -1
        got = stream.get()
        kept.append((number, got))
        small = make is np.zeros and size < 10_000  # comes with the message, each reader has its own
        assert small or not any(array.flags.writeable for array in got.values())
        stream.put(frame)
        assert not stream.get().flags.writeable
    for number, got in kept:
        assert (got["frame"] == number).all()
        assert (got["part"] == number).all()


def test_sealed_arrays_go_by_reference(stream):
    """Nobody can write to them."""
    table = ndshare.share(np.arange(100_000), mode="r")
    stream.put((1, table))
    assert ndshare.is_shared(stream.get()[1])


def test_each_thread_is_a_reader(stream):
    """What one has seen is new to another."""
    stream.put(1)
    found = []
    threads = [threading.Thread(target=lambda: found.append(stream.get(timeout=30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4
    assert stream.get() == 1


@pytest.mark.parametrize("shared", [False, True])
def test_no_frame_is_torn(stream, shared):
    """One writer, three readers in processes of their own that keep some; each sees newer and newer ones."""
    results = ndshare.Queue()
    readers = [forked(lambda: queue_tasks.read_frames(stream, results)) for _ in range(3)]
    writer = forked(lambda: queue_tasks.write_frames(stream, 400, shared))
    for _ in readers:
        count, skipped, last, wrong = results.get(timeout=100)
        assert wrong == []
        assert last == 399
        assert 0 < count <= 400 - skipped
    for pid in (*readers, writer):
        assert ended(pid) == 0
    results.close()


# ------------------------------------------------------------------ who has it


@pytest.mark.parametrize("method", START_METHODS)
def test_stream_goes_to_children_of_every_start_method(stream, method):
    """As an argument; here they write."""
    process = mp.get_context(method).Process(target=queue_tasks.write_frames, args=(stream, 5, False))
    process.start()
    last = -1
    with pytest.raises(ndshare.ShutDown):
        while True:
            last, frame = stream.get(timeout=60)
            assert (frame == last).all()
    assert last == 4
    process.join()
    process.close()


def test_stream_goes_to_workers_and_through_queues_and_pipes(stream):
    """And captured by a kernel."""
    stream.put(np.full(20_000, 3.0))
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(queue_tasks.sum_of_newest, stream).result() == 60_000
    total = ndshare.zeros(1)

    def kernel(worker_id, index, value):
        total[index] = queue_tasks.sum_of_newest(stream)

    ndshare.map(kernel, range(1))
    assert total.tolist() == [60_000]
    carrier = ndshare.Queue()
    carrier.put(stream)
    again = carrier.get()
    assert queue_tasks.sum_of_newest(again) == 60_000
    again.close()
    carrier.close()
    mine, theirs = mp.Pipe()
    with mine, theirs:
        mine.send(stream)
        again = theirs.recv()
        assert queue_tasks.sum_of_newest(again) == 60_000
        again.close()
    resource_sharer.stop()


def test_plain_pickle_copies_and_locks_are_refused(stream):
    """They would be other streams, and other locks."""
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            way(stream)
    with pytest.raises(TypeError, match="another lock"):
        stream.put([ndshare.lock()])
    with pytest.raises(ZeroDivisionError):
        stream.put(queue_tasks.Unpicklable())
    stream.put(1)
    assert stream.get() == 1


# ------------------------------------------------------------------ one writer


def test_second_writer_is_refused_by_name(stream):
    """Another process, another handle; threads of the writer are one."""
    stream.put(0)
    refused = ndshare.Queue()

    def write() -> None:
        try:
            stream.put(1)
        except RuntimeError as error:
            refused.put(str(error))

    assert ended(forked(write)) == 0
    assert f"process {os.getpid()} writes to this stream already" in refused.get(timeout=20)
    refused.put(stream)
    other = refused.get()
    with pytest.raises(RuntimeError, match="one writer at a time"):
        other.put(1)
    thread = threading.Thread(target=stream.put, args=(2,))
    thread.start()
    thread.join()
    assert other.get() == 2
    other.close()
    refused.close()


def test_close_of_the_writer_is_the_end(stream):
    """What was put last is seen first; that of a reader ends nothing."""
    carrier = ndshare.Queue()
    carrier.put(stream)
    reader = carrier.get()
    reader.close()
    stream.put(1)
    carrier.put(stream)
    reader = carrier.get()
    stream.close()
    assert reader.get() == 1
    for call in (reader.get, reader.get_nowait, lambda: reader.put(2)):
        with pytest.raises(ndshare.ShutDown) as raised:
            call()
        assert type(raised.value) is ndshare.ShutDown
    for call in (stream.get, lambda: stream.put(1)):
        with pytest.raises(ValueError, match="is closed"):
            call()
    reader.close()
    carrier.close()


def test_killed_writer_is_seen_and_what_it_put_last_as_well(stream):
    """By who waits already, and by who comes later; another process may go on."""

    def write() -> None:
        stream.put(np.full(100_000, 7))
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = forked(write)
    assert stream.get(timeout=30).sum() == 700_000
    with pytest.raises(ndshare.WriterDiedError, match=f"process {pid}"):
        stream.get(timeout=30)
    assert ended(pid) == -signal.SIGKILL
    with pytest.raises(ndshare.WriterDiedError):
        stream.get_nowait()
    later = []
    thread = threading.Thread(target=lambda: later.append(stream.get(timeout=30).sum()))
    thread.start()
    thread.join()
    assert later == [700_000]
    stream.put("another writer")
    assert stream.get() == "another writer"


def test_writer_killed_at_any_moment_leaves_its_newest_frame(stream):
    """Whole; there is always one from the first on."""
    for _ in range(25):
        pid = forked(lambda: queue_tasks.write_frames(stream, 10**9, False))
        try:
            while True:
                try:
                    stream.get(timeout=60)
                    break
                except ndshare.WriterDiedError:  # of the one before
                    time.sleep(0.001)
            time.sleep(0.01)
        finally:
            os.kill(pid, signal.SIGKILL)
            ended(pid)
        late = []
        thread = threading.Thread(target=lambda into=late: into.append(stream.get(timeout=60)))
        thread.start()
        thread.join()
        number, frame = late[0]
        assert (frame == number).all()
        with pytest.raises(ndshare.WriterDiedError):
            while True:
                stream.get(timeout=60)


def test_child_of_the_writer_is_not_the_writer(stream):
    """It does not keep readers waiting after its parent was killed."""

    def write() -> None:
        stream.put(1)
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    ended(forked(write))
    assert stream.get(timeout=30) == 1
    with pytest.raises(ndshare.WriterDiedError):
        stream.get(timeout=30)


def test_writer_that_dropped_the_stream_may_be_followed(stream):
    """As a task does that is over: it has not said that the stream ends."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        for number in range(3):
            executor.submit(queue_tasks.put_newest, stream, number).result()
            assert stream.get(timeout=30) == number
            with pytest.raises(ndshare.WriterDiedError):
                stream.get(timeout=30)


# ------------------------------------------------------------------ what it costs


def test_memory_and_files_are_used_again(stream):
    """However many frames are put, seen or not."""
    stream.put(np.ones(300_000))
    stream.get()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        stream.put(np.full(300_000, number))
        if number % 3 == 0:
            assert stream.get()[0] == number
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files + 8
    assert ndshare.stats().own_bytes < 20 * 300_000 * 8
    assert ndshare.stats().held_segments == 0


def test_object_with_more_segments_than_fit_is_refused(stream):
    """And the newest is the one before."""
    stream.put("before")
    stream.get()
    with pytest.raises(ValueError, match="a message has room for"):
        stream.put([ndshare.share(np.ones(3), mode="r") for _ in range(260)])
    with pytest.raises(queue.Empty):
        stream.get_nowait()
    stream.put("behind")
    assert stream.get() == "behind"


def test_overwritten_memory_is_no_signal(stream):
    """Errors, or nothing newer."""
    stream.put(np.ones(1000))
    fd = stream._opened.memory_fd
    for value in (0, 1, 2**63, 2**64 - 1):
        os.pwrite(fd, value.to_bytes(8, "little"), 0)
        for call in (stream.get_nowait, lambda: stream.put(np.ones(1000)), stream.get_nowait):
            try:
                call()
            except (queue.Empty, OverflowError, ValueError, RuntimeError):
                pass
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)


def test_stream_and_queue_for_which_there_are_no_descriptors_say_so(run_script: Callable[..., Any]) -> None:
    """At every number that is left, and there are more again afterwards: nothing is kept open."""
    source = """
import os, resource, ndshare
def open_files(): return len(os.listdir("/proc/self/fd"))
for make in (ndshare.Stream, ndshare.Queue, lambda: ndshare.Queue(3)):
    make()
    before = open_files()
    for left in range(10):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, 4096))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", 0))
        except OSError:
            pass
        for _ in range(left):
            os.close(held.pop())
        try:
            made = make()
            made.put(1)
            assert made.get(timeout=5) == 1
        except OSError as error:
            assert error.errno == 24, error
        made = error = None
        for fd in held:
            os.close(fd)
        assert open_files() == before, (make, left)
print("works")
"""
    done = run_script(source, timeout=60)
    assert (done.stdout, done.stderr) == ("works\n", "")
