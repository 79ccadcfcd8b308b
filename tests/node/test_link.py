"""Processes of one machine pass each other contents; whoever dies, nobody waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from ndshare._node.store import Store

pytestmark = pytest.mark.once

_HEAD = """
import gc, os, signal, threading, time
import numpy as np
from ndshare._node.link import Link
from ndshare._node.store import Store

NAME = "\\0ndshare-test-" + str(os.getpid())

def child(body):
    'Run a function in a forked process; returns its pid once it has said that it is ready.'
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os.write(told, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"x"
    return pid

def store():
    made = Store()
    made._link = Link(made._offers, NAME)
    return made

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

A, B = b"a" * 16, b"b" * 16
content = np.arange(100_000, dtype=np.uint8)
"""


def test_a_content_outlives_the_holder_and_whoever_brought_it(run_script: Any) -> None:
    """The next process that asks takes the name over; those that have the content offer it anew."""
    script = (
        _HEAD
        + """
def first():
    mine = store()
    assert mine.lacks([A], {}) == [A]
    assert mine.lacks([A], {A: content}) == []
holder = child(first)

mine = store()
assert mine.lacks([A], {}) == []
assert np.array_equal(mine.get(A), content)
end(holder)
assert mine.lacks([B], {}) == [B]  # this process is the holder now

def third():
    assert store().lacks([A], {}) == []
end(child(third))
print("ok")
"""
    )
    assert run_script(script).stdout == "ok\n"


def test_a_fetcher_that_dies_leaves_nobody_waiting(run_script: Any) -> None:
    """The first that waits is told to fetch, the others go on waiting for it."""
    script = (
        _HEAD
        + """
keeper = child(lambda: store().lacks([B], {}))
fetcher = child(lambda: store().lacks([A], {}))
answers = []
def ask():
    mine = store()
    lacking = mine.lacks([A], {})
    answers.append(lacking)
    if lacking:
        assert mine.lacks([A], {A: content}) == []
    kept.append(mine)
kept = []
threads = [threading.Thread(target=ask) for _ in range(3)]
for thread in threads: thread.start()
time.sleep(0.5)
assert answers == []
began = time.monotonic()
end(fetcher)
for thread in threads: thread.join()
assert time.monotonic() - began < 10
assert sorted(answers) == [[], [], [A]], answers
end(keeper)
print("ok")
"""
    )
    assert run_script(script).stdout == "ok\n"


def test_a_content_is_freed_with_the_last_process_that_has_it(run_script: Any) -> None:
    """Not kept by the holder."""
    script = (
        _HEAD
        + """
keeper = child(lambda: store().lacks([B], {}))
def first():
    mine = store()
    mine.lacks([A], {})
    assert mine.lacks([A], {A: content}) == []
owner = child(first)
assert store().lacks([A], {}) == []  # and let go of at once
gc.collect()
end(owner)

def kept():
    targets = [os.readlink(f"/proc/{keeper}/fd/{fd}") for fd in os.listdir(f"/proc/{keeper}/fd")]
    return [target for target in targets if "ndshare-sparse" in target]

deadline = time.monotonic() + 10
while kept() and time.monotonic() < deadline:
    time.sleep(0.01)
assert kept() == []
end(keeper)
print("ok")
"""
    )
    assert run_script(script).stdout == "ok\n"


def test_contents_are_asked_for_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two processes that each fetch what the other asks for next would wait for each other."""
    asked: list[bytes] = []
    monkeypatch.setattr(Store, "_fetch", lambda _store, digest: asked.append(digest))
    digests = [bytes([number]) * 16 for number in (3, 1, 2)]
    assert Store().lacks(digests, {}) == asked == sorted(digests)
