"""Facts about the machine, as the kernel gives them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ndshare._system import platform as _platform


def test_cpu_count_is_limited_by_affinity():
    """A process pinned to one CPU starts one worker."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert _platform.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= _platform.cpu_count() <= len(before)


@pytest.mark.parametrize(("quota", "expected"), [(0.3, 1), (1.0, 1), (1.5, 2), (100.0, 8), (None, 8)])
def test_cpu_count_is_limited_by_the_quota_of_the_container(monkeypatch, quota, expected):
    """A quota of 1.5 CPUs keeps two workers busy; less than one is one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(_platform, "cpu_quota", lambda: quota)
    assert _platform.cpu_count() == expected


def test_cpu_quota_reads_both_versions_of_control_groups(monkeypatch):
    """The strictest of the group and its ancestors counts."""
    files = {"/v2/a/cpu.max": "150000 100000\n", "/v2/cpu.max": "max 100000\n"}
    files |= {"/v1/cpu.cfs_quota_us": "-1\n", "/v1/cpu.cfs_period_us": "100000\n"}
    files |= {"/v1/b/cpu.cfs_quota_us": "50000\n", "/v1/b/cpu.cfs_period_us": "100000\n"}
    monkeypatch.setattr(_platform, "_read", files.get)
    groups = [("/v2/a", True), ("/v2", True)]
    monkeypatch.setattr(_platform, "_groups", lambda controller: groups)
    assert _platform.cpu_quota() == 1.5
    groups += [("/v1/b", False), ("/v1", False)]
    assert _platform.cpu_quota() == 0.5
    groups[:] = []
    assert _platform.cpu_quota() is None


def test_process_start_time_tells_processes_apart():
    """The pair of pid and start time names one process for good."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = _platform.process_start_time(child.pid)
    assert start is not None
    assert _platform.process_start_time(os.getpid()) <= start
    assert _platform.is_alive(child.pid)
    assert _platform.is_alive(child.pid, start)
    assert not _platform.is_alive(child.pid, start + 1)
    child.kill()
    for _ in range(500):
        if not _platform.is_alive(child.pid):  # a zombie until it is waited for
            break
        time.sleep(0.01)
    assert not _platform.is_alive(child.pid, start)
    child.communicate()
    assert _platform.process_start_time(child.pid) is None


def test_require_linux_says_what_is_missing(monkeypatch):
    """One sentence instead of a failure somewhere inside."""
    _platform.require_linux()
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with pytest.raises(ImportError, match="/proc"):
        _platform.require_linux()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ImportError, match="needs Linux"):
        _platform.require_linux()
