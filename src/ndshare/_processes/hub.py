"""One loop per process that hears its workers: whoever waits for a result runs it, else a thread.

::

    sockets of workers, zygotes ──► inner epoll ──► outer epoll ──► I/O thread
                                        │
                                        └──► a thread inside result(), while it leads

A thread in ``Future.result()`` *leads*: it takes the inner epoll out of the outer one, so that the I/O
thread sleeps on, and receives its own result. That saves two thread switches per round trip. A thread
that submits faster than workers take lends a hand the same way. When it stops, the I/O thread is left
parked for a moment (`_PARK_S`): most likely the next call comes at once. Everything else (callbacks,
`as_completed`, asyncio) is served by the I/O thread.

Guarantees
----------
- A thread that asks for one short task after the other looks at the worker it waits for, and every few
  milliseconds at everybody.
- Messages are read and tasks are taken off the books under one lock, so the report of a death can never
  overtake a result. Results are rebuilt, and futures resolved, outside it.
- A thread that resolves somebody's future while another thread leads rings the bell for the leader. The
  bell is read by the leader alone: who else looks at the same moment does not take the sound away.
- Ctrl-C is held back (`_wire.shield`) wherever the main thread keeps the books, and let through where it
  waits or runs the user's code: no message, no task is lost to it.
"""

from __future__ import annotations

import array
import collections
import contextlib
import heapq
import itertools
import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from ndshare._processes import frames
from ndshare._system import THREAD_NAME, _wire, own_thread

#: How long the I/O thread waits before it takes over from a thread that has stopped leading.
_PARK_S = 3e-3
#: A thread that leads so often in that time will do so again: meanwhile the I/O thread looks without the GIL.
_OFTEN = 6
_REST_MOST_S = 1.0

#: What is to be done once the lock is free.
Todo = collections.deque[Callable[[], None]]


class Source(Protocol):
    """Something with a descriptor that the hub listens to."""

    def fileno(self) -> int:
        """Descriptor that becomes readable."""

    def on_ready(self, done: Todo) -> None:
        """Read what is there, under the hub's lock; append what is to be done after it."""


class Hub:
    """The loop, its thread, its timers."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        _wire.shield_main(threading.main_thread().ident or 0)
        self.lock = threading.RLock()
        self._leader = threading.Lock()
        self._leader_thread = 0
        self._looking = False  # the leader is about to wait, or waits; what it waits for may still happen
        self._left = 0.0  # when a thread last stopped leading
        self._turned = 0.0  # when all sources were last looked at
        self._led = array.array("Q", [0])  # how often a thread has led or lent a hand; read without the GIL
        self._dozing = False  # the I/O thread looks without the GIL
        self._flush_wanted = False  # set before `_dozing` and `_ticking` are read, read after they are set
        self._parked = False  # the I/O thread does not hear the workers
        self._ticking = False  # the I/O thread counts the time that it is parked
        self._resting = False  # the I/O thread counts no more: who leads has to unpark it
        self._waiters = 0  # threads that wait for the leader
        self._inner = select.epoll()
        self._outer = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._inner.register(self._bell, select.EPOLLIN)
        self._outer.register(self._inner, select.EPOLLIN)
        self._outer.register(self._stop, select.EPOLLIN)
        self._sources: dict[int, Source] = {}
        self.flush: Callable[[], None] = lambda: None
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._todo: Todo = collections.deque()
        self._callbacks: Todo = collections.deque()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ sources and timers

    def start(self) -> None:
        """Start the I/O thread.

        Not put off until there is something to hear: while the interpreter ends, and threads of the user
        or exit handlers still run, no thread can be started any more (Python 3.12).
        """
        thread = own_thread(self._serve, THREAD_NAME)
        thread.start()
        self._thread = thread

    def listen(self, source: Source) -> None:
        """Begin to hear a source."""
        with self.lock:
            self._sources[source.fileno()] = source
            self._inner.register(source.fileno(), select.EPOLLIN)

    def ignore(self, source: Source) -> None:
        """Hear a source no more; call before its descriptor is closed."""
        with self.lock:
            if self._sources.pop(source.fileno(), None) is not None:
                self._inner.unregister(source.fileno())

    @property
    def left_s(self) -> float:
        """Seconds since a thread last stopped waiting for something."""
        return time.monotonic() - self._left

    def hears(self, source: Source) -> bool:
        """Whether the source is listened to."""
        return self._sources.get(source.fileno()) is source

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` in the I/O thread after `seconds`."""
        with self.lock:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))
        self._wake_thread()

    def _wake_thread(self) -> None:
        with self.lock:  # against close(): a descriptor's number is somebody else's at once
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)

    def ring(self) -> None:
        """Make a leading thread look whether what it waits for has happened.

        It may be this thread: while it waits, signal handlers run in it, and hear what it waits for.
        """
        leader = self._leader_thread
        if leader and (leader != threading.get_ident() or self._looking):
            with self.lock:
                if self._bell >= 0:
                    os.eventfd_write(self._bell, 1)

    # ------------------------------------------------------------------ the loop

    def turn(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds (None: for ever) for messages, and deal with them."""
        self._deal(self._poll(timeout))

    def _poll(self, timeout: float | None) -> list[tuple[int, int]]:
        opening = _wire.window()
        try:
            return self._inner.poll(timeout, 64)
        finally:
            _wire.curtain(opening)

    def _deal(self, events: list[tuple[int, int]]) -> None:
        self._turned = time.monotonic()
        if not events:
            return
        with self.lock:
            for fd, _ in events:
                if fd == self._bell:
                    # Else who leads may not have heard it.
                    if self._leader_thread in {0, threading.get_ident()}:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._bell)
                elif (source := self._sources.get(fd)) is not None:
                    source.on_ready(self._todo)
        self.finish()

    def finish(self) -> None:
        """Do what was put off until the lock was free; in the I/O thread, the user's callbacks too.

        Should anything raise, the I/O thread does the rest: the lists belong to the hub.
        """
        todo = self._todo
        while todo or (self._callbacks and self.in_thread):
            try:
                while todo:
                    try:
                        action = todo.popleft()
                    except IndexError:  # another thread took it
                        break
                    action()
            except BaseException:
                self.ring()  # what came before may be what the leader waits for
                self._wake_thread()
                raise
            self.ring()
            if self._callbacks and self.in_thread:
                self._callbacks.popleft()()

    def put_off(self, action: Callable[[], None]) -> None:
        """Let the I/O thread do something once the lock is free."""
        self._todo.append(action)
        self._wake_thread()

    @property
    def in_thread(self) -> bool:
        """Whether the caller is the I/O thread, the only one that runs callbacks of the user's."""
        return threading.current_thread() is self._thread

    def call_back(self, action: Callable[[], None]) -> None:
        """Let the I/O thread do something that runs the user's code.

        In a thread that waits for one future, the callback of another could wait in vain for what that thread
        does next, or be hit by its Ctrl-C.
        """
        self._callbacks.append(action)
        self._wake_thread()

    def do_next(self, action: Callable[[], None]) -> None:
        """Have the thread that is doing what was put off do this as well; or whoever waits in it."""
        self._todo.append(action)

    def from_finalizer(self, action: Callable[[], None]) -> None:
        """Let the I/O thread do something; takes no lock, as the garbage collector may run anywhere."""
        self._todo.append(action)
        if not self._stopping and self._stop >= 0:
            with contextlib.suppress(OSError):
                os.eventfd_write(self._stop, 1)

    def look(self, sources: Iterable[Source]) -> None:
        """Deal with what is there from these sources, without waiting and without giving up the GIL."""
        self.tick()
        with self.lock:
            for source in sources:
                source.on_ready(self._todo)
        if self._todo:
            self.finish()

    def read(self, source: Source) -> None:
        """Read what is there from a source; what follows from it is done later, by the I/O thread."""
        with self.lock:
            heard: Todo = collections.deque()  # other threads empty the hub's without the lock
            source.on_ready(heard)
            if heard:
                self._todo.extend(heard)
                self._wake_thread()

    def drive(
        self, finished: Callable[[], bool], deadline: float | None, likely: Source | None = None
    ) -> None:
        """Run the loop here until `finished` or the deadline; return at once if another thread leads.

        What is waited for will soon come from `likely`, if that is known: then it is looked for there first.
        """
        me = threading.get_ident()
        if self._leader_thread == me:  # a callback that waits for another future, or a signal handler
            outer = self._looking
            try:
                self._lead(finished, deadline)
            finally:
                self._looking = outer
                self.ring()
            return
        if not self._leader.acquire(blocking=False):
            return
        self._leader_thread = me
        began = time.monotonic()
        try:
            self._park()
            if likely is not None:
                if began - self._turned > _PARK_S:  # the others are not kept waiting for long
                    self.turn(0)
                if not finished():
                    self._wait_for(likely)
            self._lead(finished, deadline)
        finally:
            self._leader_thread = 0
            self._leader.release()
            now = time.monotonic()
            if self._waiters or self._resting or now - began > _PARK_S or now - self._left > _PARK_S:
                self._unpark()
            else:  # the second time in a moment: most likely not the last
                self._count()
            self._left = now

    def _wait_for(self, likely: Source) -> None:
        """Wait for the next message of one source, for a moment."""
        if not self._todo and _wire.spin(likely.fileno(), frames.SPIN_ALONE_US):
            with self.lock:
                if self.hears(likely):
                    likely.on_ready(self._todo)
            self.finish()

    def _lead(self, finished: Callable[[], bool], deadline: float | None) -> None:
        try:
            while True:
                self._looking = True
                if finished():
                    return
                if self._todo or (self._callbacks and self.in_thread):
                    self._looking = False
                    self.finish()  # in a callback, which interrupted the thread that was at it
                    continue
                _wire.spin(self._inner.fileno(), frames.SPIN_US)
                left = None
                if deadline is not None and (left := deadline - time.monotonic()) <= 0:
                    return
                events = self._poll(left)
                self._looking = False
                self._deal(events)
        finally:
            self._looking = False

    def wait(
        self, condition: threading.Condition, finished: Callable[[], bool], deadline: float | None
    ) -> None:
        """Wait while another thread runs the loop."""
        with self.lock:
            self._waiters += 1
        try:
            if not self._leader_thread:
                self._unpark()
            while not finished():
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return
                if self._todo or self.in_thread:
                    # A callback waits. Once the leader leaves it is this thread that has to hear the workers.
                    self.finish()
                    self.drive(finished, deadline)
                    left = min(left, _PARK_S)
                with condition:
                    if not finished():
                        opening = _wire.window()
                        try:
                            condition.wait(None if left == math.inf else left)
                        finally:
                            _wire.curtain(opening)
        finally:
            with self.lock:
                self._waiters -= 1

    def _park(self) -> None:
        """Keep the I/O thread from hearing the workers for `_PARK_S` after the last call."""
        self._led[0] += 1
        self._leave_to_leader()

    def _leave_to_leader(self) -> None:
        if not self._parked:
            with self.lock:
                if not self._parked and self._stop >= 0:
                    self._outer.modify(self._inner, 0)
                    self._parked = True

    def _count(self) -> None:
        """Have the I/O thread count the time that it is parked; it takes over when it is over."""
        if not self._ticking:
            self._ticking = True
            self._wake_thread()

    def tick(self) -> None:
        """Have `flush` called by the I/O thread within `_PARK_S`."""
        self._park()
        self._flush_wanted = True
        if self._dozing:
            self._wake_thread()
        self._count()

    def _unpark(self) -> None:
        if self._parked:
            with self.lock:
                if self._parked and self._stop >= 0:
                    self._parked = self._resting = False
                    self._outer.modify(self._inner, select.EPOLLIN)

    def _serve(self) -> None:
        led = 0
        while not self._stopping:
            with self.lock:
                wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                before, led = led, self._led[0]
                times = led - before
                if self._leader_thread:  # it has begun just before this thread was told to hear
                    self._leave_to_leader()
                self._ticking = self._parked and times > 0
                if self._ticking and times < _OFTEN:
                    wait = _PARK_S if wait is None else min(wait, _PARK_S)
                elif self._parked:
                    self._resting = True  # said before looking: a leader that leaves looks after saying so
                    if not self._leader_thread:
                        self._unpark()
                if self._flush_wanted:  # maybe by a thread that saw `_ticking` just before it became false
                    wait = _PARK_S if wait is None else min(wait, _PARK_S)
            if self._ticking and times >= _OFTEN:
                self._doze(wait)
                led, wait = self._led[0], 0.0
            events = self._outer.poll(wait, 2)
            for fd, _ in events:
                if fd == self._stop:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._stop)
            self._flush_wanted = False
            try:
                if not self._parked:
                    self.turn(0)
                self.finish()
                self.flush()
                self._run_timers()
            except BaseException:  # SystemExit of somebody's code included: nobody else listens
                sys.excepthook(*sys.exc_info())
        self.finish()

    def _doze(self, most: float | None) -> None:
        """Sleep while another thread leads again and again: each look with the GIL would keep it waiting."""
        most = _REST_MOST_S if most is None else min(most, _REST_MOST_S)
        self._dozing = True
        try:
            if not self._flush_wanted:
                _wire.rest(self._outer.fileno(), self._led, round(_PARK_S * 1e3), math.ceil(most * 1e3))
        finally:
            self._dozing = False

    def _run_timers(self) -> None:
        while True:
            with self.lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                action = heapq.heappop(self._timers)[2]
            action()

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Stop the thread and give the descriptors back. Sources must be gone."""
        self._stopping = True
        self._wake_thread()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._leader_thread != threading.get_ident():
            while not self._leader.acquire(timeout=_PARK_S):  # kept: nobody leads any more
                self.ring()  # what it waits for has happened; it would sleep on without its descriptors
        with self.lock:
            self.forget()

    def forget(self) -> None:
        """Give the descriptors back, as a forked child must, where the thread does not exist."""
        self._timers.clear()
        self._sources.clear()
        self._inner.close()
        self._outer.close()
        bell, self._bell = self._bell, -1
        stop, self._stop = self._stop, -1
        os.close(bell)
        os.close(stop)
