"""The bounds of a queue when a process ends, or is stopped, between any two steps of a message's way."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare._system import _wire, lock_byte, reopen
from tests.dict.dict_tasks import ended, forked

MESSAGE = b"x" * 1000
STREAM = pickle.dumps(MESSAGE, 5)
BOUNDS = [{"maxsize": 3}, {"maxbytes": 3300}, {"maxsize": 3, "maxbytes": 3300}]


@pytest.fixture(params=BOUNDS, ids=lambda bounds: "-".join(bounds))
def q(request):
    """Return a queue with room for three messages."""
    made = ndshare.Queue(**request.param)
    yield made
    made.close()


def take(q: ndshare.Queue) -> int:
    """Take a slot as `put` does, and do no more."""
    wire = q._line.wire
    charge = wire.charge_of(len(STREAM))
    assert wire.take_slot(charge)
    return charge


def receive(q: ndshare.Queue) -> None:
    """Receive a message as `get` does, and do not give back its slot."""
    wire = q._line.wire
    entry = 256 + 64 * wire.member + 16
    _wire.add_u64(wire.memory, entry, 1)
    sock = socket.socket(fileno=wire.files.into)
    assert sock.recv(5000)
    sock.detach()


def put_and_forget(q: ndshare.Queue) -> None:
    """Send a message, and do not say that it was sent."""
    charge = take(q)
    wire = q._line.wire
    _wire.add_u64(wire.memory, 256 + 64 * wire.member, 1)
    if wire.maxbytes:
        _wire.add_u64(wire.memory, 256 + 64 * wire.member + 8, charge)
    assert wire.send_again(STREAM)


def put_aside(q: ndshare.Queue) -> None:
    """Accept a message that the socket has no room for."""
    q._line.wire.send_again = lambda _: False
    q._line.wire.send_bare = lambda _: False
    q._line.wire.send = lambda *_, **__: False
    q.put(MESSAGE)
    assert len(q._line.backlog.messages) == 1


def room(q: ndshare.Queue) -> int:
    """Return for how many messages there is room, and fill it."""
    count = 0
    try:
        while True:
            q.put_nowait(MESSAGE)
            count += 1
    except queue.Full:
        return count


def drained(q: ndshare.Queue) -> int:
    """Return how many messages come out."""
    count = 0
    try:
        while q.get_nowait() == MESSAGE:
            count += 1
    except queue.Empty:
        return count


def die(*steps):
    """Do something and be killed."""

    def run():
        for step in steps:
            step()
        os.kill(os.getpid(), signal.SIGKILL)

    return run


@pytest.mark.parametrize("step", [take, put_aside])
def test_slot_of_a_message_that_was_not_sent_is_free_when_its_sender_is_dead(q, step):
    """Whether it was just taken, or the message waited in the sender."""
    assert ended(forked(die(lambda: step(q)))) == -signal.SIGKILL
    assert q.qsize() == 0
    assert not q.full()
    assert room(q) == 3
    assert drained(q) == 3
    assert room(q) == 3


def test_message_of_a_dead_sender_keeps_its_slot(q):
    """It was sent, and the sender killed before it could say so."""
    assert ended(forked(die(lambda: put_and_forget(q)))) == -signal.SIGKILL
    assert q.qsize() == 1
    assert room(q) == 2
    assert q.qsize() == 3
    assert drained(q) == 3
    assert q.qsize() == 0
    assert room(q) == 3


def test_slot_of_a_message_in_the_hands_of_the_dead_is_free(q):
    """A receiver was killed before it gave back the slot."""
    for left in range(3):
        assert room(q) == 3 - (2 if left else 0)
        assert ended(forked(die(lambda: receive(q)))) == -signal.SIGKILL
        assert q.qsize() == 2
        assert room(q) == 1
        assert q.get() == MESSAGE
    assert drained(q) == 2


def test_all_at_once(q):
    """Each loses another slot; what is in the socket counts."""
    q.put(MESSAGE)
    for step in (take, take, receive):
        assert ended(forked(die(lambda step=step: step(q)))) == -signal.SIGKILL
    assert q.qsize() == 0
    assert room(q) == 3
    for step in (receive, put_and_forget, take):
        if step is take:
            q.get()
        pid = forked(die(lambda step=step: step(q)))
        assert ended(pid) == -signal.SIGKILL
        q.qsize()
    assert q.qsize() == 2
    assert room(q) == 1
    assert drained(q) == 3


@pytest.mark.parametrize("step", [take, receive, put_aside])
def test_slot_of_a_stopped_process_is_its_own(q, step):
    """It may go on; only when it is dead does the slot count as free."""
    if step is receive:
        assert room(q) == 3

    def stop():
        step(q)
        os.kill(os.getpid(), signal.SIGSTOP)
        signal.pause()

    pid = forked(stop)
    os.waitpid(pid, os.WUNTRACED)
    try:
        for _ in range(3):
            assert q.qsize() == (3 if step is receive else 1)
        assert room(q) == (0 if step is receive else 2)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert room(q) == 1
    assert drained(q) == 3


def test_who_waits_gets_the_slot_of_who_is_killed_meanwhile(q):
    """Nobody rings for it."""

    def hold():
        take(q)
        os.kill(os.getpid(), signal.SIGSTOP)

    pid = forked(hold)
    os.waitpid(pid, os.WUNTRACED)
    assert room(q) == 2
    waiter = threading.Thread(target=q.put, args=(MESSAGE,))
    waiter.start()
    time.sleep(0.25)
    assert waiter.is_alive()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    waiter.join(20)
    assert not waiter.is_alive()
    assert drained(q) == 3


def test_what_is_late_after_a_shutdown_has_its_slot():
    """It goes the other way, and counts until it is taken out, though somebody else was killed."""
    q = ndshare.Queue(300)
    sent = 0
    while not q._line.backlog.messages:
        q.put(b"x" * 40_000)
        sent += 1
    assert ended(forked(die(lambda: take(q)))) == -signal.SIGKILL
    q.shutdown()
    time.sleep(0.2)  # for the feeder to notice
    for left in range(sent, 0, -1):
        assert q.qsize() == left
        assert q.get(timeout=10) == b"x" * 40_000
    assert q.qsize() == 0
    q.close()


def test_entry_of_a_dead_process_is_taken_over_and_what_it_had_is_not_forgotten(q):
    """Many processes one after the other use the same entry."""
    members = set()
    for _ in range(3):
        read, write = os.pipe()

        def note(write=write):
            os.write(write, str(q._line.wire.member).encode())
            take(q)

        assert ended(forked(die(note))) == -signal.SIGKILL
        members.add(os.read(read, 10))
        os.close(read)
        os.close(write)
    assert len(members) == 1
    assert q.qsize() == 0
    assert room(q) == 3


def test_forked_child_is_another_process_and_its_parent_may_die(q):
    """What the parent had is free although its child lives, and has all its files."""
    read, write = os.pipe()

    def parent():
        take(q)
        child = forked(signal.pause)
        os.write(write, str(child).encode())

    assert ended(forked(die(parent))) == -signal.SIGKILL
    child = int(os.read(read, 20))
    os.close(read)
    os.close(write)
    try:
        deadline = time.monotonic() + 20
        while q.qsize() and time.monotonic() < deadline:  # the child may not have run yet
            time.sleep(0.01)
        assert room(q) == 3
    finally:
        os.kill(child, signal.SIGKILL)


def test_place_that_a_dead_process_looked_at_is_forgotten(q):
    """It was killed while it counted what is in the socket."""
    q.put(MESSAGE)
    sock = socket.socket(fileno=q._line.wire.files.into)
    sock.setsockopt(socket.SOL_SOCKET, 42, 1 << 20)  # SO_PEEK_OFF
    sock.detach()
    assert not q.empty()
    assert q.get(timeout=5) == MESSAGE
    assert q.empty()
    q.put(MESSAGE)
    assert ended(forked(die(lambda: take(q)))) == -signal.SIGKILL
    assert room(q) == 2


def test_while_another_process_counts_the_queue_goes_on(q):
    """It was stopped at that: what was lost is not given back before it goes on or ends."""
    other = reopen(q._line.wire.files.memory)
    assert lock_byte(other, 2, shared=False)
    assert ended(forked(die(lambda: take(q)))) == -signal.SIGKILL
    assert room(q) == 2
    assert drained(q) == 2
    assert room(q) == 2
    os.close(other)
    assert room(q) == 1


def test_empty_messages_of_others_hide_nothing_from_the_count(q):
    """Too many of them, and what was lost stays lost until they are gone."""
    sock = socket.socket(fileno=q._line.wire.files.out)
    try:
        for count in (3, 100):
            for _ in range(count):
                sock.send(b"")
            q.put(MESSAGE)
            for _ in range(count):
                sock.send(b"")
            assert ended(forked(die(lambda: take(q)))) == -signal.SIGKILL
            assert room(q) == (2 if count == 3 else 1)
            assert drained(q) == (3 if count == 3 else 2)
            assert q.qsize() == 0
    finally:
        sock.detach()


def test_without_a_file_to_be_known_by_the_bounds_hold(q, monkeypatch):
    """Then only the death of this process would not be noticed."""

    def refuse(_):
        raise OSError(24, "too many open files")

    def check():
        monkeypatch.setattr("ndshare._queue.wire.reopen", refuse)
        q._line.wire.begin_in_child()
        assert q._line.wire.member == 0
        assert room(q) == 3
        assert drained(q) == 3
        assert room(q) == 3

    assert ended(forked(check)) == 0
    assert room(q) == 0
    assert drained(q) == 3


def test_arrays_and_plain_objects_share_the_bounds():
    """They go different ways."""
    q = ndshare.Queue(3)
    q.put(1)
    q.put(np.zeros(100_000))
    q.put([np.arange(3)])
    with pytest.raises(queue.Full):
        q.put_nowait(np.zeros(10))
    with pytest.raises(queue.Full):
        q.put_nowait("x")
    with pytest.raises(queue.Full):
        q.put("x", timeout=0.15)
    assert q.qsize() == 3
    assert q.full()
    assert q.get() == 1
    q.put(ndshare.zeros(10))
    assert len(q.get_many(9)) == 3
    assert q.qsize() == 0
    q.close()


def test_failed_put_leaves_no_slot_taken(q):
    """Whatever fails on the way."""

    class Bad:
        def __reduce__(self):
            raise RuntimeError("refused")

    for _ in range(5):
        with pytest.raises(RuntimeError, match="refused"):
            q.put(Bad())
    wire = q._line.wire
    wire.send_bare = lambda _: False  # the long way
    wire.send = lambda *_, **__: 1 / 0
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            q.put(MESSAGE)
    del wire.send, wire.send_bare
    assert q.qsize() == 0
    assert room(q) == 3


def test_backlog_that_nobody_will_take_is_dropped_though_dead_waiters_are_counted(capfd):
    """Nobody is left who could hear the bell."""
    q = ndshare.Queue(300)
    assert ended(forked(die(lambda: _wire.add_u64(q._line.wire.memory, 8, 1)))) == -signal.SIGKILL
    while not q._line.backlog.messages:
        q.put(b"x" * 40_000)
    q.close()
    q.join_thread()
    assert capfd.readouterr().err == ""
