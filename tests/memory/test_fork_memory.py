"""What a fork by the user's code does to arrays: nothing to be noticed, nothing recycled too early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import SegmentError
from tests.peers import Peer, staged, take, ticket, uid_of

# Forking under threads is what some of these tests are about; Python 3.12 warns of it.
pytestmark = [
    pytest.mark.usefixtures("fresh_heap"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

MB = 1 << 20


class Child:
    """A forked child that waits for words and answers with what `body` yields."""

    def __init__(self, body):
        commands, self._say = os.pipe()
        self._hear, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._say)
                os.close(self._hear)
                for answer in body():
                    os.write(answers, f"{answer}\n".encode())
                    if not os.read(commands, 1):
                        break
                status = 0
            except BaseException as error:
                os.write(answers, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(status)
        os.close(commands)
        os.close(answers)
        self._lines = os.fdopen(self._hear)

    def answer(self):
        """Return the child's next word."""
        return self._lines.readline().rstrip("\n")

    def go_on(self):
        """Let the child go on to its next word."""
        os.write(self._say, b"x")
        return self.answer()

    def end(self, status=0):
        """Let the child end, and check how it did."""
        os.close(self._say)
        self._lines.close()
        _, code = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(code) == status


def by_value(n, value):
    """Return an ordinary array as NumPy makes it in a worker."""
    former = _heap.set_handler(_heap.make_handler(segments.VALUE))
    try:
        return np.full(n, value, np.uint8)
    finally:
        _heap.set_handler(former)


def test_fork_child_writes_to_by_value_memory_do_not_show_in_the_parent():
    """An ordinary array is ordinary memory in both processes."""
    a = by_value(MB, 1)
    assert segments.block_of(a) is not None

    def body():
        a[:] = 7
        yield int(a[0])
        yield int(a[0])

    child = Child(body)
    assert child.answer() == "7"
    assert (a == 1).all()
    a[:] = 2
    assert child.go_on() == "7"
    child.end()
    assert segments.block_of(a) is None
    assert (a == 2).all()


def test_fork_with_a_received_array_separates_parent_and_child():
    """Received by-value memory is private to each process after a fork, and not lent on."""
    with Peer() as peer:
        peer.run("segments.install_handler(); x = np.ones(2_000_000, np.uint8)")
        a = peer.fetch("x")
        peer.run("del x")

        seen = [a]

        def body():
            mine = seen[0]
            mine[:] = 5
            yield int(mine.sum())
            yield int(mine.sum())

        child = Child(body)
        assert child.answer() == "10000000"
        assert a.sum() == 2_000_000
        a[:] = 3
        seen.clear()
        del a
        peer.run("y = np.zeros(2_000_000, np.uint8)")
        assert child.go_on() == "10000000"
        child.end()
        peer.run("del y; z = np.ones(2_000_000, np.uint8)")
        assert peer.run("result = segments.stats().own_segments") == 2


def test_fork_under_a_writing_thread_loses_no_write():
    """Remapping by-value memory goes on under threads that use it."""
    a = by_value(4 * MB, 0)
    stop = threading.Event()
    rounds = 0

    def write():
        nonlocal rounds
        while not stop.is_set():
            np.add(a, 1, out=a)
            rounds += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    finally:
        stop.set()
        thread.join()
    assert (a == rounds % 256).all()


def test_fork_child_sees_shared_arrays_and_writes_to_them():
    """Shared means shared, with a forked child too."""
    a, small = _arrays.zeros(MB), _arrays.zeros(10)

    def body():
        a[0] = small[0] = 3
        yield "written"
        yield f"{a[1]} {small[1]}"

    child = Child(body)
    assert child.answer() == "written"
    assert (a[0], small[0]) == (3, 3)
    a[1] = small[1] = 4
    assert child.go_on() == "4.0 4.0"
    child.end()


@pytest.mark.parametrize("n", [10, 3 * MB])
def test_fork_parent_recycles_nothing_the_child_still_sees(n):
    """Shared memory dropped by the parent stays as it is until the child is gone."""
    a = _arrays.full(n, 9, np.uint8)
    address, seen = a.ctypes.data, [a]

    def body(a):
        for _ in range(3):
            yield int(a.min()), int(a.max())

    child = Child(lambda: body(seen[0]))
    assert child.answer() == "(9, 9)"
    seen.clear()
    del a
    kept = [_arrays.full(n, 1, np.uint8) for _ in range(30)]
    segments.trim()
    kept += [_arrays.full(n, 2, np.uint8) for _ in range(30)]
    assert child.go_on() == "(9, 9)"
    child.end()
    del kept
    if n == 10:
        again = [_arrays.full(n, 1, np.uint8) for _ in range(3000)]
        assert address in {x.ctypes.data for x in again}


def test_fork_child_that_was_killed_frees_what_it_saw():
    """The fork token goes with the process, however it ends."""
    a = _arrays.full(10, 9, np.uint8)
    address = a.ctypes.data

    def body():
        yield "here"
        signal.pause()

    child = Child(body)
    assert child.answer() == "here"
    del a
    os.kill(child.pid, signal.SIGKILL)
    child.end(-signal.SIGKILL)
    again = [_arrays.full(10, 1, np.uint8) for _ in range(3000)]
    assert address in {x.ctypes.data for x in again}


def test_fork_grandchild_keeps_what_it_sees():
    """A grandchild that outlives the child still protects the memory of the first process."""
    a = _arrays.full(10, 9, np.uint8)
    address = a.ctypes.data
    said, say = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        if os.fork() == 0:
            os.write(say, b"x")
            os.read(wait, 1)
            os.write(say, bytes([a.min()]))
        os._exit(0)
    os.close(wait)
    os.waitpid(pid, 0)
    assert os.read(said, 1) == b"x"
    del a
    later = [_arrays.full(10, 1, np.uint8) for _ in range(3000)]
    assert address not in {x.ctypes.data for x in later}
    os.write(go, b"x")
    assert os.read(said, 1) == bytes([9])
    os.close(say)
    assert os.read(said, 1) == b""  # it has ended
    for fd in (said, go):
        os.close(fd)


def test_fork_child_has_its_own_uids_and_owns_nothing():
    """What a child makes is its own; what it inherited it uses, lends and does not recycle."""
    a = _arrays.full(3 * MB, 4, np.uint8)
    idle = _arrays.empty(5 * MB, np.uint8)
    del idle
    uid, prefix = uid_of(a), segments.owner_prefix()

    def body():
        s = segments.stats()
        yield s.own_segments, s.idle_bytes, segments.owner_prefix() != prefix
        b = _arrays.zeros(3 * MB, np.uint8)
        yield uid_of(b) >> 32 == segments.owner_prefix(), uid_of(a) == uid, ndshare.is_shared(a)
        where, fd = ticket(a)
        c = take(where, fd)
        c[0] = 77
        yield np.shares_memory(a, c)

    child = Child(body)
    assert child.answer() == "(0, 0, True)"
    assert child.go_on() == "(True, True, True)"
    assert child.go_on() == "True"
    child.end()
    assert a[0] == 77


def test_fork_child_lends_an_inherited_array_to_a_third_process():
    """The memory stays in use while only the third process has it."""
    with Peer() as peer:
        a = _arrays.full(3 * MB, 4, np.uint8)
        uid = uid_of(a)
        where, _ = ticket(a)
        os.close(_)
        pid = os.fork()
        if pid == 0:
            where, fd = ticket(a)
            peer._channel.settimeout(10)
            peer.run("x = take(where, fds[0])", send=(fd,), where=where)
            os._exit(0)
        os.waitpid(pid, 0)
        del a
        b = _arrays.full(3 * MB, 5, np.uint8)
        assert uid_of(b) != uid
        assert peer.run("result = int(x.min())") == 4


def test_fork_does_not_detach_a_staged_block():
    """What is being filled for a message arrives, whoever forks meanwhile."""
    block = segments.stage(MB)
    view = memoryview(block)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    view[:] = b"m" * MB
    view.release()
    assert block.lendable
    with Peer() as peer:
        fd = block.lend()
        facts = (block.uid, block.size, block.kind)
        peer.run("b = segments.attach(*facts, fds[0])", send=(fd,), facts=facts)
        block.release()
        assert peer.run("result = bytes(memoryview(b)[:1 << 20]).count(b'm')") == MB


def test_fork_makes_a_block_of_a_live_array_unlendable():
    """By-value memory that was alive at a fork is ordinary memory: it is copied, not lent."""
    a = by_value(MB, 1)
    block, _ = segments.block_of(a)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert not block.lendable
    with pytest.raises(SegmentError, match="copy it"):
        block.lend()
    with pytest.raises(SegmentError, match="copy it"):
        block.mark_lent()
    a.resize(2 * MB)
    assert a[:MB].min() == 1
    del a
    block.release()
    s = segments.stats()
    assert s.own_segments == s.idle_segments  # the child's view of the pages does not keep them here


def test_fork_without_a_descriptor_for_the_token_recycles_nothing():
    """When the token cannot be taken what was alive stays untouched for good."""
    script = """
import os, resource
import numpy as np
from ndshare import _arrays
from ndshare._memory import segments
a = _arrays.full(10, 9, np.uint8); address = a.ctypes.data
resource.setrlimit(resource.RLIMIT_NOFILE, (4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
pid = os.fork()
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
del a
assert address not in {x.ctypes.data for x in [_arrays.empty(10) for _ in range(3000)]}
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_fork_by_vfork_and_exec_detaches_nothing():
    """Starting a program does not turn results into ordinary memory."""
    a = by_value(MB, 1)
    subprocess.run(["true"], check=True)
    found = segments.block_of(a)
    assert found is not None
    assert found[0].lendable
    a = staged(MB)
    assert segments.block_of(a) is not None


def test_fork_in_many_threads_while_others_allocate_does_not_deadlock():
    """The heap is consistent in every child, whatever other threads were doing."""
    stop = threading.Event()
    failures = []

    def churn():
        former = _heap.set_handler(_heap.make_handler(segments.VALUE))
        try:
            while not stop.is_set():
                x = np.ones(300_000, np.uint8)
                y = _arrays.ones(100)
                z = np.ones(9 * MB, np.uint8)  # idle at the next fork: the child unmaps it
                if x.sum() != 300_000 or y.sum() != 100 or z[-1] != 1:
                    failures.append("content")
        finally:
            _heap.set_handler(former)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                x = _arrays.ones(1000)
                y = by_value(MB, 2)
                os._exit(0 if x.sum() == 1000 and y.min() == 2 else 1)
            _, code = os.waitpid(pid, 0)
            assert code == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_message_that_was_being_sent_at_a_fork_keeps_its_memory_in_the_child(run_script):
    """The child receives a segment it has inherited as well: its owner must not reuse it meanwhile."""
    run_script("""
import os, socket, sys
import numpy as np
from ndshare._memory import segments

ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
block = segments.stage(1 << 20)
np.frombuffer(memoryview(block), "u1")[:] = 1
child = os.fork()
if child == 0:
    code = 1
    try:
        data, fds, _, _ = socket.recv_fds(theirs, 100, 1)
        uid, size, offset = map(int, data.split())
        received = segments.attach(uid, size, segments.VALUE, fds[0])
        a = received.array("u1", (1 << 20,), None, offset)
        received.release()
        theirs.send(b"has it")
        theirs.recv(100)
        assert (a == 1).all()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
fd = block.lend()
socket.send_fds(ours, [b"%d %d %d" % (block.uid, block.size, block.offset)], [fd])
os.close(fd)
block.release()
ours.recv(100)
kept = []
for _ in range(5):
    other = segments.stage(1 << 20)
    np.frombuffer(memoryview(other), "u1")[:] = 2
    kept.append(other)
ours.send(b"look")
assert os.waitpid(child, 0)[1] == 0
""")
