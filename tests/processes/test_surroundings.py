"""Snapshots of the caller's settings: whole, and new only when something changed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import ndshare
from ndshare._processes.surroundings import CallerState


def test_snapshot_is_new_only_after_a_change(monkeypatch, tmp_path):
    """Directory, path and environment each make a new version; nothing else does."""
    state = CallerState()
    first = state.refresh()
    assert state.refresh() is first
    monkeypatch.setenv("NDSHARE_TEST_VALUE", "1")
    second = state.refresh()
    assert second.version > first.version
    assert second.content["environ"]["NDSHARE_TEST_VALUE"] == "1"
    assert "NDSHARE_TEST_VALUE" not in first.content["environ"]
    monkeypatch.chdir(tmp_path)
    third = state.refresh()
    assert third.content["cwd"] == os.getcwd()
    monkeypatch.syspath_prepend("somewhere")
    assert state.refresh().content["path"][0] == str(tmp_path / "somewhere")


def test_snapshot_for_several_threads_at_once_is_whole():
    """A thread that asks while another one looks gets all the settings, never a part."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            state = CallerState()
            begin = threading.Barrier(4)
            found = []

            def look(state=state, begin=begin, found=found):
                begin.wait()
                found.append(state.refresh())

            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all({"cwd", "path", "environ", "filters"} <= snapshot.content.keys() for snapshot in found)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("round_", range(3))
def test_first_tasks_of_several_threads_find_whole_workers(round_):
    """Threads that are the first to use a pool, all at once, lose no worker."""
    with ndshare.ProcessPoolExecutor(4) as executor:
        begin = threading.Barrier(4)
        pids = []

        def work():
            begin.wait()
            pids.append(executor.submit(os.getpid).result())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pids) == 4


def test_context_of_decimal_and_settings_of_libraries(run_script: Callable[..., Any]) -> None:
    """In every face the numbers of the thread that sends the work; the initializer's where that has the usual."""
    done = run_script(
        """
import asyncio, csv, decimal, socket, threading
import numpy as np, ndshare
def third(_=0): return str(decimal.Decimal(1) / 3), decimal.getcontext().rounding
def few(): decimal.getcontext().prec = 11
def settings(): return str(np.array([1 / 3])), socket.getdefaulttimeout(), csv.field_size_limit()
with ndshare.ProcessPoolExecutor(1, initializer=few) as executor: assert len(executor.submit(third).result()[0]) == 13
np.set_printoptions(precision=2); socket.setdefaulttimeout(4); csv.field_size_limit(10**6)
decimal.getcontext().prec, decimal.getcontext().rounding = 50, decimal.ROUND_UP
here = third()
assert len(here[0]) == 52
out = ndshare.alloc(3)
with ndshare.ProcessPoolExecutor(2) as executor:
    assert executor.submit(third).result() == here
    assert [*executor.map(third, range(3)), *executor.imap_unordered(third, range(3))] == [here] * 6
    with decimal.localcontext() as context:
        context.prec = 5
        assert len(executor.submit(third).result()[0]) == 7
    assert {future.result() for future in [executor.submit(third) for _ in range(50)]} == {here}
    found = []
    thread = threading.Thread(target=lambda: found.append(executor.submit(third).result()))
    thread.start(); thread.join()
    assert len(found[0][0]) == 30, "a thread has a context of its own"
    async def main(): return await asyncio.get_running_loop().run_in_executor(executor, third)
    assert asyncio.run(main()) == here
    assert executor.submit(settings).result() == settings() == ("[0.33]", 4.0, 10**6)
with ndshare.Pool(1) as pool: assert pool.map(third, [1]) == [pool.apply(third)] == [here]
def kernel(worker_id, index, value): out[index] = len(third()[0])
for context in (ndshare.ProcessContext(2), ndshare.ThreadContext(2), ndshare.SerialContext()):
    out[:] = 0
    context.map(kernel, range(3))
    assert (out == 52).all(), context
decimal.setcontext(decimal.Context(prec=28))
with ndshare.ProcessPoolExecutor(1) as executor: assert len(executor.submit(third).result()[0]) == 30
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
