"""Facts about the machine and system calls that Python has no function for.

Everything ndshare asks of the operating system from Python is asked here. Linux only: memfd, locks that
belong to an open file description, and /proc have no equal elsewhere.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import sys
from typing import Final, NamedTuple

__all__ = [
    "cpu_count",
    "cpu_quota",
    "default_workers",
    "descriptors_in_flight",
    "is_alive",
    "is_byte_locked",
    "lock_byte",
    "process_memory",
    "process_start_time",
    "processors",
    "reopen",
    "require_linux",
    "set_inside_worker",
    "unshared_memory",
]

_CGROUP_ROOT: Final = "/sys/fs/cgroup"


def require_linux() -> None:
    """Refuse to go on where ndshare cannot work.

    Raises
    ------
    ImportError
        On another system than Linux, without memfd, or without /proc.
    """
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create"):
        raise ImportError(
            f"ndshare needs Linux (memfd_create, /proc); this is {sys.platform!r}, where it cannot work"
        )
    if not os.path.exists("/proc/self/fd"):
        raise ImportError("ndshare needs /proc to lend memory, and it is not mounted here; mount it first")


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def _groups(controller: str) -> list[tuple[str, bool]]:
    """Directories of this process's control groups for `controller`, innermost first, and whether v2."""
    found: list[tuple[str, bool]] = []
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            unified = os.path.exists(f"{_CGROUP_ROOT}/cgroup.controllers")
            mount, v2 = (_CGROUP_ROOT if unified else f"{_CGROUP_ROOT}/unified"), True
        elif controller in controllers.split(","):
            mount, v2 = f"{_CGROUP_ROOT}/{controllers}", False
            if not os.path.isdir(mount):
                mount = f"{_CGROUP_ROOT}/{controller}"
        else:
            continue
        # Inside a container the path may be the host's: then the mount itself is the group.
        path = mount + group if os.path.isdir(mount + group) else mount
        while len(path) >= len(mount):
            found.append((path.rstrip("/"), v2))
            path = os.path.dirname(path.rstrip("/"))
    return found


def cpu_quota() -> float | None:
    """Return how many CPUs the container may use on average, or None without a limit."""
    quotas: list[float] = []
    for path, v2 in _groups("cpu"):
        if v2:
            words = (_read(f"{path}/cpu.max") or "max").split()
            if words[0] != "max" and len(words) == 2:
                quotas.append(int(words[0]) / int(words[1]))
        else:
            quota = int(_read(f"{path}/cpu.cfs_quota_us") or -1)
            period = int(_read(f"{path}/cpu.cfs_period_us") or 0)
            if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def cpu_count() -> int:
    """Return how many workers make sense: CPU affinity and container quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


_inside_worker: int | None = None


def default_workers() -> int:
    """Number of workers by default.

    Returns
    -------
    int
        The smaller of the CPU affinity of this process and its container's CPU quota (rounded up), at
        least 1. Inside a worker: the number of threads that worker was given, so that nested pools do
        not multiply.
    """
    return cpu_count() if _inside_worker is None else _inside_worker


def processors() -> int:
    """Return how many threads can run at once for a moment (a quota of time does not matter then)."""
    return len(os.sched_getaffinity(0)) if _inside_worker is None else _inside_worker


def set_inside_worker(threads: int) -> None:
    """Say that this process is a worker which has `threads` processors to itself."""
    global _inside_worker
    _inside_worker = threads


def process_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone.

    With the pid it names a process for good: pids are reused, the pair is not.
    """
    text = _read(f"/proc/{pid}/stat")
    # The second field is the command in parentheses and may itself contain spaces and parentheses.
    return None if text is None else int(text.rpartition(")")[2].split()[19])


def is_alive(pid: int, start_time: int | None = None) -> bool:
    """Return whether the process runs (a zombie does not)."""
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return False
    words = text.rpartition(")")[2].split()
    return words[0] not in "ZX" and (start_time is None or int(words[19]) == start_time)


class ProcessMemory(NamedTuple):
    """What the kernel says of a process's memory, in bytes."""

    anonymous: int  # its own: neither files nor shared memory
    peak: int  # the most that was resident, of whatever kind


def process_memory(pid: int) -> ProcessMemory:
    """Return what a process has in memory; zeros if it is gone."""
    found = {"RssAnon": 0, "VmHWM": 0}
    for line in (_read(f"/proc/{pid}/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return ProcessMemory(found["RssAnon"], found["VmHWM"])


def unshared_memory(pid: int) -> int:
    """Return the bytes of ordinary memory of a process, pages in common with a fork of it shared out.

    The page tables are walked for that: milliseconds per GB. Zero if the process is gone, and what
    `process_memory` says where the kernel does not tell (before Linux 5.4).
    """
    for line in (_read(f"/proc/{pid}/smaps_rollup") or "").splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    return process_memory(pid).anonymous


# struct flock of 64-bit Linux: type, whence, start, length, pid (0 for locks of descriptions).
_FLOCK: Final = struct.Struct("hhqqi4x")


def reopen(fd: int) -> int:
    """Return a descriptor of the same file with a file description of its own, which bears own locks."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def lock_byte(fd: int, at: int, *, shared: bool) -> bool:
    """Lock one byte of a file for the description of `fd`, or change its lock; False if others forbid it."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
    except BlockingIOError:
        return False
    return True


def is_byte_locked(fd: int, at: int) -> bool:
    """Tell whether another description than that of `fd` has a lock on a byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def descriptors_in_flight(fd: int) -> int:
    """Return how many descriptors wait in the messages a Unix socket has received; 0 before Linux 5.6."""
    for line in (_read(f"/proc/self/fdinfo/{fd}") or "").splitlines():
        if line.startswith("scm_fds:"):
            return int(line.split()[1])
    return 0
