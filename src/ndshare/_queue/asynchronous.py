"""Waiting for a queue in an event loop: one registered descriptor per loop and file, however many wait."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import weakref

from ndshare._queue.memory import SHUT
from ndshare._queue.wire import Wire

_DEATHS_S = 0.1  # how often a waiter looks for participants that died


class _Watcher:
    """Those who wait in one loop until a file is readable; each time the first of them is woken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._loop = loop
        self._fd = os.dup(fd)  # the program may watch the file itself
        loop.add_reader(self._fd, self._on_readable)

    async def wait(self) -> None:
        future = self._loop.create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            if not future.done() or future.cancelled():
                self._waiting.remove(future)
            self._close_if_idle()

    def _on_readable(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
                self._waiting.remove(future)
                return

    def _close_if_idle(self) -> None:
        if not self._waiting and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            for key, watcher in list(_watchers.get(self._loop, {}).items()):
                if watcher is self:
                    del _watchers[self._loop][key]


_watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Watcher]] = (
    weakref.WeakKeyDictionary()
)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    mine = _watchers.setdefault(loop, {})
    if fd not in mine:
        mine[fd] = _Watcher(loop, fd)
    await mine[fd].wait()


async def wait_for_message(wire: Wire, *, deaths: bool) -> None:
    """Wait until there may be a message, and not longer than deaths, if they matter, may go unseen."""
    if wire.flags & SHUT:
        await asyncio.sleep(_DEATHS_S / 10)
    elif deaths:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_readable(wire.files.into), _DEATHS_S)
    else:
        await _readable(wire.files.into)


async def wait_for_slot(wire: Wire) -> None:
    """Wait until there may be a free slot, and not longer than a death may go unseen."""
    try:
        await asyncio.wait_for(_readable(wire.files.bell_in), _DEATHS_S)
    except TimeoutError:
        return
    wire.hear_bell()
