"""What a call that is cut short leaves to the others: by Ctrl-C, by a death, by an engine that refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare._queue.wire import Wire
from tests.dict.dict_tasks import ended, forked
from tests.pool import cut_short_story


@pytest.mark.parametrize("name", cut_short_story.STORIES)
def test_nobody_waits_for_what_was_cut_short(name: str) -> None:
    """Ctrl-C at random instants in puts and under locks; a failure to send; a killed holder of contents."""
    done = subprocess.run(
        [sys.executable, str(Path(cut_short_story.__file__)), name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "ok\n", done.stdout + done.stderr


def test_ctrl_c_while_the_feeder_starts_sends_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one feeder; what had to wait goes out once, in its order."""
    start, struck = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "ndshare-queue" and not struck:
            struck.append(1)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    shared, number = ndshare.Queue(), 0
    with pytest.raises(KeyboardInterrupt):
        while True:
            shared.put(np.full(20_000, number))
            number += 1
    for more in range(number + 1, number + 200):
        shared.put(np.full(20_000, more))
    got = [int(shared.get(timeout=20)[0]) for _ in range(number)]  # the one that was interrupted may be lost
    while got[-1] < number + 199:
        got.append(int(shared.get(timeout=20)[0]))
    assert [one for one in got if one != number] == [*range(number), *range(number + 1, number + 200)]
    shared.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_in_shutdown_keeps_nobody_waiting(when: str) -> None:
    """A process is killed before or after it has said that the queue is shut down."""
    shared = ndshare.Queue()
    ends: list[str] = []

    def wait() -> None:
        try:
            shared.get()
        except ndshare.ShutDown:
            ends.append("shut down")

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.1)

    def die() -> None:
        set_flags = Wire.set_flags

        def dies(wire: Wire, flags: int) -> None:
            if when == "after":
                set_flags(wire, flags)
            os.kill(os.getpid(), signal.SIGKILL)

        Wire.set_flags = dies  # type: ignore[method-assign]
        shared.shutdown()

    assert ended(forked(die)) == -signal.SIGKILL
    waiting.join(20)
    assert not waiting.is_alive()
    assert ends == ["shut down"]
    shared.close()


def test_a_child_keeps_nothing_of_a_queue_that_was_closed_and_had_again() -> None:
    """It was closed with a backlog, and received again while that was being sent."""
    shared, carrier = ndshare.Queue(), ndshare.Queue()
    carrier.put(shared)
    number = 0
    while not shared._line.backlog.messages:
        shared.put(np.zeros(3000))
        number += 1
    shared.close()
    again = carrier.get()
    pid = forked(lambda: time.sleep(60))
    for _ in range(number):
        again.get(timeout=20)
    again.shutdown()
    with pytest.raises(ndshare.ShutDown):
        again.get(timeout=5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
