"""Who else is there: the processes that may still take what this one has sent, and the wait for them.

Every member holds a shared lock on one anonymous file, by an open file description of its own. The
kernel drops it when a member ends, however it ends.

`multiprocessing.Queue` lets a process end only when its feeder thread has written everything; here the
memory of a message lives as long as its sender, so the sender waits for the receivers in the same place.
"""

from __future__ import annotations

import fcntl
import os
import time
import warnings

from ndshare.errors import NdshareWarning
from ndshare.integrations._deposits import Deposits

_POLL_MIN_S, _POLL_MAX_S = 0.001, 0.02
#: Patience with receivers outside of the family, which may not exist.
_STRANGERS_S = 1.0


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


def await_receivers(deposits: Deposits, family: Family, patience_s: float) -> None:
    """Wait until everything was taken.

    Parameters
    ----------
    deposits : Deposits
        Of this process.
    family : Family
        Who could take it. This process is no member afterwards.
    patience_s : float
        Seconds to wait after the last array was taken, while anybody of the family lives. One second if
        nobody does.

    Warns
    -----
    NdshareWarning
        If arrays are left.

    Notes
    -----
    Ctrl-C ends the waiting.
    """
    left = deposits.sweep()
    since, pause = time.monotonic(), _POLL_MIN_S
    try:
        while left:
            limit = min(patience_s, _STRANGERS_S) if family.alone() else patience_s
            if time.monotonic() - since > limit:
                break
            time.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_S)
            now = deposits.sweep()
            if now < left:
                left, since, pause = now, time.monotonic(), _POLL_MIN_S
    except KeyboardInterrupt:
        pass
    if left:
        warnings.warn(
            NdshareWarning(
                f"{left} shared array{'s' if left > 1 else ''} that this process sent through "
                "multiprocessing had not been taken when it ended; whoever reads such a message now gets "
                "SegmentGoneError. Read all messages, or wait longer: register(linger=seconds)"
            ),
            stacklevel=2,
        )
