"""Where a worker runs that is woken while every processor but the caller's is taken.

The kernel looks for an idle processor when it wakes a process. The one of a caller that is about to wait is
not idle yet, so the worker is put behind another one, and stays there for up to some ticks of 4 ms: the first
half of a short map. To the caller's processor it goes if it may go nowhere else at that moment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ndshare import _wire


@contextlib.contextmanager
def here(pid: int) -> Iterator[None]:
    """Have a sleeping process begin on the processor of the calling thread if it is woken meanwhile.

    Its affinity is as before afterwards; processes that may not run here are left alone.
    """
    before: set[int] = set()
    processor = _wire.processor()
    try:
        with contextlib.suppress(OSError):  # it has ended; the system does not allow it
            allowed = os.sched_getaffinity(pid) if pid else set()  # none: it does not run yet
            if len(allowed) > 1 and processor in allowed:
                os.sched_setaffinity(pid, {processor})
                before = allowed
        yield
    finally:
        if before:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(pid, before)
