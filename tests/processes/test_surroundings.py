"""Snapshots of the caller's settings: whole, and new only when something changed."""

from __future__ import annotations

import os
import sys
import threading

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
