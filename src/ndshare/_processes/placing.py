"""Where a worker runs that is woken while every processor but the caller's is taken.

The kernel looks for an idle processor when it wakes a process. The one of a caller that is about to wait is
not idle yet, so the worker is put behind another one, and stays there for up to some ticks of 4 ms: the first
half of a short map. To the caller's processor it goes if it may go nowhere else at that moment::

    caller: narrow its affinity, send PLACED ──► worker wakes here, widens it again ──► TASKS

The worker has its affinity back before it looks at a task: no code of a user's, nor a thread or a process
that this starts, ever has the narrow one.
"""

from __future__ import annotations

import contextlib
import marshal
import os

from ndshare._processes import frames
from ndshare._processes.worker_handle import Worker, WorkerGoneError
from ndshare._system import _wire


def bring_here(worker: Worker) -> None:
    """Have an idle worker begin on the processor of the calling thread, which is the one that sends to it.

    One that may not run here, or nowhere else, is left alone.
    """
    pid = worker.pid
    if not pid or not worker.proved:  # it may still be importing what starts threads
        return
    processor = _wire.processor()
    with contextlib.suppress(OSError, WorkerGoneError):  # it has ended; the system does not allow it
        allowed = os.sched_getaffinity(pid)
        if len(allowed) < 2 or processor not in allowed:
            return
        os.sched_setaffinity(pid, {processor})
        worker.send([frames.HEAD.pack(frames.PLACED, 0, 0, 0, 0.0), marshal.dumps(sorted(allowed))])
