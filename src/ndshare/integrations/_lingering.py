"""The end of a process that has sent arrays: it stays until they were taken, within reason.

`multiprocessing.Queue` lets a process end only when its feeder thread has written everything; here the
memory of a message lives as long as its sender, so the sender waits for the receivers in the same place.
"""

from __future__ import annotations

import time
import warnings

from ndshare.errors import NdshareWarning
from ndshare.integrations._deposits import Deposits
from ndshare.integrations._family import Family

_POLL_MIN_S, _POLL_MAX_S = 0.001, 0.02
#: Patience with receivers outside of the family, which may not exist.
_STRANGERS_S = 1.0


def linger(deposits: Deposits, family: Family, patience_s: float) -> None:
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
