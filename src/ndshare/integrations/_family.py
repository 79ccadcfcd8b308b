"""Who else is there: the processes that may still take what this one has sent.

Every member holds a shared lock on one anonymous file, by an open file description of its own. The
kernel drops it when a member ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os


class Family:
    """A member of a family of processes.

    Parameters
    ----------
    path : str, optional
        Where a member has the file of an existing family; without it a new family begins.

    Raises
    ------
    OSError
        If the file cannot be opened, such as when that member has ended.
    """

    def __init__(self, path: str | None = None) -> None:
        self.pid = os.getpid()
        first = -1
        if path is None:
            first = os.memfd_create("ndshare-family", os.MFD_CLOEXEC)
            path = f"/proc/self/fd/{first}"
        try:
            self._fd = _hold(path)
        finally:
            if first >= 0:
                os.close(first)

    @property
    def path(self) -> str:
        """Where another process finds the file while this one lives."""
        return f"/proc/{self.pid}/fd/{self._fd}"

    def become_child(self) -> None:
        """Be a member of its own, after a fork: the description inherited is the parent's as well."""
        inherited, self.pid = self._fd, os.getpid()
        self._fd = _hold(f"/proc/self/fd/{inherited}")
        os.close(inherited)

    def alone(self) -> bool:
        """Leave, and tell whether nobody else is a member: all others have ended or are leaving, too."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # the kernel has dropped the shared lock for the attempt
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """Leave."""
        os.close(self._fd)


def _hold(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
