"""The process that workers are forked from, by itself."""

from __future__ import annotations

import marshal
import os
import socket

from ndshare._processes import frames
from ndshare._processes.zygote import _Zygote
from tests.dict.dict_tasks import ended, forked

_COUNT = 4000  # far more than a socket holds


def test_zygote_hears_while_nobody_listens_to_it() -> None:
    """A parent that is saying something itself reads later: none of the two waits for the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()

    def serve() -> None:
        ours.close()
        zygote = _Zygote(theirs, parent)
        for number in range(_COUNT):
            zygote._tell((frames.EXITED, number))
        zygote.run(())

    pid = forked(serve)
    theirs.close()
    with ours:
        ours.settimeout(60)
        for number in range(_COUNT):
            ours.send(marshal.dumps((frames.KILL, number, 0)))
        heard = [marshal.loads(ours.recv(1000)) for _ in range(_COUNT + 1)]
    assert heard == [*((frames.EXITED, number) for number in range(_COUNT)), (frames.READY, pid)]
    assert ended(pid) == 0
