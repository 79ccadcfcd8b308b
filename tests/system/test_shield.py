"""Ctrl-C is held back between two lines that belong together, and a fork takes none of that with it."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.once

_BEGIN = """
import os, signal, sys, threading, time
from ndshare._system import _wire
_wire.shield_main(threading.main_thread().ident)

def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a child that spins for ever says so
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_interrupt_is_held_back_and_comes_at_the_end(run_script):
    """Or in a window; nested shields count."""
    run_script(
        _BEGIN
        + """
steps = []
try:
    _wire.shield()
    _wire.shield()
    signal.raise_signal(signal.SIGINT)
    steps.append("first")
    _wire.unshield()
    steps.append("second")
    try:
        _wire.window()
    except KeyboardInterrupt:
        steps.append("window")
    signal.raise_signal(signal.SIGINT)
    steps.append("third")
    _wire.unshield()
    steps.append("never")
except KeyboardInterrupt:
    steps.append("end")
assert steps == ["first", "second", "window", "third", "end"], steps
"""
    )


def test_child_forked_while_threads_are_in_the_handler_goes_on(run_script):
    """They are not in the child, so nobody there leaves the handler for them."""
    run_script(
        _BEGIN
        + """
import ctypes
signal.signal(signal.SIGINT, lambda *_: None)
stop = threading.Event()
ready = threading.Event()
def sit():
    global tid
    tid = threading.get_native_id()
    ready.set()
    stop.wait()
thread = threading.Thread(target=sit)
thread.start()
ready.wait()
libc = ctypes.CDLL(None)
_wire.shield()
saved = _wire.window()  # the handler is in place, and passes on what comes
parent, senders = os.getpid(), []
for _ in range(2):
    senders.append(os.fork())
    if senders[-1] == 0:
        while os.getppid() == parent:
            for _ in range(1000):
                libc.syscall(234, parent, tid, signal.SIGINT)  # tgkill
        os._exit(0)

def work():
    _wire.shield_main(threading.main_thread().ident)  # as every module does that is about to use it
    _wire.shield()
    _wire.unshield()

try:
    for _ in range(300):
        assert in_child(work) == 0, "a child has not ended"
finally:
    for pid in senders:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    stop.set()
    thread.join()
_wire.curtain(saved)
_wire.unshield()
"""
    )


@pytest.mark.parametrize("where", ["shield", "window"])
def test_child_forked_under_a_shield_begins_without(where, run_script):
    """Its first Ctrl-C is raised at once, one in a shield of its own at the end, and each one once."""
    run_script(
        _BEGIN
        + f"""
def interrupted(work):
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False

def work():
    assert interrupted(lambda: signal.raise_signal(signal.SIGINT))
    _wire.shield()
    assert not interrupted(lambda: signal.raise_signal(signal.SIGINT))
    assert interrupted(_wire.unshield)
    if saved is not None:
        _wire.curtain(saved)  # of the parent's window
    _wire.unshield()  # of the parent's shield
    for _ in range(3):
        assert interrupted(lambda: signal.raise_signal(signal.SIGINT))
    assert not interrupted(lambda: [None for _ in range(100)])

_wire.shield()
saved = _wire.window() if {where!r} == "window" else None
assert in_child(work) == 0
if saved is not None:
    _wire.curtain(saved)
signal.raise_signal(signal.SIGINT)  # the parent's shield is still there
assert interrupted(_wire.unshield)
"""
    )


def test_interrupt_noted_before_a_fork_is_the_parents(run_script):
    """The child does not hear of it."""
    run_script(
        _BEGIN
        + """
def work():
    _wire.shield()
    _wire.unshield()

_wire.shield()
signal.raise_signal(signal.SIGINT)
assert in_child(work) == 0
try:
    _wire.unshield()
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("the interrupt was lost")
"""
    )
