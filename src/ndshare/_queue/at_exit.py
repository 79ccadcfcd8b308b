"""What a process that ends still has to deliver.

Messages wait in a process as long as the socket of their queue has no room. Processes of `multiprocessing`
end without what is registered with `atexit`, so it is arranged in both ways.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ndshare._queue.backlog import Backlog

_busy: set[Backlog] = set()
_arranged: list[int] = []  # process that will call `_finish`


def expect(line: Backlog) -> None:
    """Note that a line has messages to deliver."""
    _busy.add(line)
    pid = os.getpid()
    if _arranged != [pid]:
        _arranged[:] = [pid]
        atexit.register(_finish)
        if "multiprocessing.util" in sys.modules:
            sys.modules["multiprocessing.util"].Finalize(None, _finish, exitpriority=-5)


def forget(line: Backlog) -> None:
    """Note that a line has delivered everything."""
    _busy.discard(line)


def begin_in_child() -> None:
    """Leave to the parent of a fork what is the parent's."""
    _busy.clear()


def finish_within(seconds: float) -> int:
    """Deliver for so long at most; return how many messages are left then."""
    for line in list(_busy):
        line.join(seconds)
    return sum(len(line.backlog) for line in list(_busy))


def _finish() -> None:
    for line in list(_busy):
        line.finish()
