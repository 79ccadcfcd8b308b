"""What a test may leave behind: one class per resource, compared before and after every test.

Each class takes a picture of one kind of resource as a dict ``{key: description}``. Keys that are
there after a test and were not before are leaks, unless they go away within a grace period: a
process needs a moment to die and the kernel a moment to forget it.

The classes look at this process and at what it started. ``Children`` also finds orphans: a token
in the environment, set when this module is imported, is inherited by every program that is
started from here, and the kernel shows it in ``/proc/<pid>/environ``.
"""

from __future__ import annotations

import contextlib
import ctypes  # noqa: F401 - some builds of libffi open a file of their own at the first import
import gc
import os
import signal
import sys
import threading
import time
import warnings
from typing import ClassVar

_TOKEN_NAME = "NDSHARE_TEST_TOKEN"
_TOKEN = f"{os.getpid()}-{time.monotonic_ns()}"
os.environ[_TOKEN_NAME] = _TOKEN
os.environ["NDSHARE_DICT_SPACE"] = _TOKEN  # of SharedDicts: other test runs prune theirs

_GRACE_S = 5.0  # a loaded machine takes this long to reap a few killed processes
_POLL_S = 0.01


class Resource:
    """One kind of thing that a test must not leave behind."""

    name: ClassVar[str]

    def picture(self) -> dict[object, str]:
        """Return what is there now, as ``{key: description}``."""
        raise NotImplementedError

    def left_behind(self, before: dict[object, str]) -> list[str]:
        """Return the descriptions of what is there now and was not `before`."""
        return [text for key, text in self.picture().items() if key not in before]


class Children(Resource):
    """Processes below this one, and orphans that were started from here."""

    name = "child process"

    def picture(self) -> dict[object, str]:
        parents: dict[int, int] = {}
        facts: dict[int, tuple[str, str]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        head, _, tail = file.read().rpartition(")")
                except OSError:  # it ended between listdir and open
                    continue
                fields = tail.split()
                parents[int(entry)] = int(fields[1])
                # The start time makes a reused pid another key; a zombie is somebody's only
                # if that somebody is this process, which then forgot to wait for it.
                facts[int(entry)] = (fields[19], f"pid {entry} ({head.partition('(')[2]}, state {fields[0]})")
        me = os.getpid()
        found: dict[object, str] = {}
        for pid, (start, text) in facts.items():
            if pid == me:
                continue
            zombie = "state Z" in text
            if self._below(pid, me, parents) and not (zombie and parents[pid] != me):
                found[pid, start] = text
            elif not zombie and self._carries_token(pid) and not self._below(me, pid, parents):
                found[pid, start] = text + ", orphan"
        return found

    @staticmethod
    def _below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == ancestor:
                return True
        return False

    @staticmethod
    def _carries_token(pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                return f"{_TOKEN_NAME}={_TOKEN}".encode() in file.read().split(b"\0")
        except OSError:  # gone, or another user's
            return False


class Threads(Resource):
    """Threads that run Python code, those without a `threading.Thread` included.

    Threads of C libraries (BLAS, OpenMP) stay for the life of a process by design: not counted.
    """

    name = "thread"

    def picture(self) -> dict[object, str]:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return {ident: f"thread {names.get(ident, 'without a name')!r}" for ident in sys._current_frames()}


class Descriptors(Resource):
    """Open file descriptors."""

    name = "open descriptor"

    def picture(self) -> dict[object, str]:
        found: dict[object, str] = {}
        for entry in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{entry}")
            except OSError:  # the descriptor of this very listing
                continue
            found[int(entry), target] = f"descriptor {entry} -> {target}"
        return found


class Mappings(Resource):
    """Anonymous shared memory (memfd) mapped into this process, one entry per memory."""

    name = "mapping of a memfd"

    def picture(self) -> dict[object, str]:
        found: dict[object, str] = {}
        with open("/proc/self/maps") as file:
            for line in file:
                span, _, _, device, inode, *path = line.split(maxsplit=5)
                if path and path[0].startswith("/memfd:"):
                    found[device, inode] = f"{path[0].strip()} (inode {inode}) at {span}"
        return found


class ShmEntries(Resource):
    """Files of this user in /dev/shm."""

    name = "/dev/shm entry"

    def picture(self) -> dict[object, str]:
        found: dict[object, str] = {}
        with os.scandir("/dev/shm") as entries:
            for entry in entries:
                if entry.name.startswith("ndshare.") and not entry.name.startswith(f"ndshare.{_TOKEN}-"):
                    continue  # of another test run
                try:
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        found[entry.name] = f"/dev/shm/{entry.name}"
                except OSError:  # another process took it away in between
                    continue
        return found


RESOURCES: tuple[Resource, ...] = (Children(), Threads(), Descriptors(), Mappings(), ShmEntries())


def pictures() -> list[dict[object, str]]:
    """Return one picture per resource, in the order of `RESOURCES`."""
    return [resource.picture() for resource in RESOURCES]


def give_back() -> None:
    """End what may legitimately outlive a test: idle workers, idle memory, helper processes."""
    ndshare = sys.modules.get("ndshare")
    for name in ("shutdown", "trim"):
        function = getattr(ndshare, name, None)
        if function is not None:
            function()
    # The standard library's helpers live as long as the interpreter unless they are stopped; to stop one is to
    # wait for it, and it waits for the children that were started with it.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.active_children():
        return
    for module, attribute in (
        ("multiprocessing.forkserver", "_forkserver"),
        ("multiprocessing.resource_tracker", "_resource_tracker"),
    ):
        helper = getattr(sys.modules.get(module), attribute, None)
        if helper is not None:
            helper._stop()


def clean_up(before: list[dict[object, str]]) -> None:
    """End and remove, without a word, what a failed test left: the tests after it find what they would have found.

    Parameters
    ----------
    before
        What `pictures` returned when the test began.
    """
    # The traceback keeps what the test had in its hands.
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        vars(sys).pop(name, None)
    give_back()
    for resource, picture in zip(RESOURCES, before, strict=True):
        for key in resource.picture().keys() - picture.keys():
            with contextlib.suppress(OSError):
                if isinstance(resource, Children):
                    os.kill(key[0], signal.SIGKILL)  # type: ignore[index]
                elif isinstance(resource, ShmEntries):
                    os.unlink(f"/dev/shm/{key}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def left_behind(
    before: list[dict[object, str]], grace_s: float = _GRACE_S, allowed: frozenset[str] = frozenset()
) -> dict[str, list[str]]:
    """Return ``{resource: [descriptions]}`` of what stays although it was given time to go.

    Parameters
    ----------
    before
        What `pictures` returned when the test began.
    grace_s
        Seconds until something that is still there counts as left behind.
    allowed
        Names of resources that do not count.
    """
    deadline = time.monotonic() + grace_s
    gave_back = False
    while True:
        leaks = {
            resource.name: texts
            for resource, picture in zip(RESOURCES, before, strict=True)
            if resource.name not in allowed and (texts := resource.left_behind(picture))
        }
        if not leaks:
            return {}
        if not gave_back:
            gc.collect()
            give_back()
            gave_back = True
        elif time.monotonic() > deadline:
            return leaks
        else:
            time.sleep(_POLL_S)
