"""Bits of the file of a SharedDict flip while processes and threads use it: errors or values, no crash, no hang."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from ndshare._dict import files, layout
from tests.dict.dict_tasks import LARGE, ended, forked

pytestmark = [pytest.mark.once, pytest.mark.chaos, pytest.mark.sanitized]

_ARRAYS = {"a": np.zeros(9), "b": np.zeros(LARGE), "c": np.zeros(9), "d": np.zeros((3, 3), "i4")}
_KEYS = tuple(_ARRAYS)
#: What calls may raise while somebody scribbles over the file.
_ALLOWED = (LookupError, ndshare.KeyTimeoutError, ndshare.KeyLockError, ndshare.LayoutError)


def _add(new, old):
    return old + new


@np.errstate(all="ignore")  # flipped bits make numbers of any kind
def _use(d: SharedDict, rng: random.Random) -> None:
    """One call of any kind; its value has the shape that it must have."""
    key = rng.choice(_KEYS)
    how = rng.randrange(9)
    if how == 0:
        assert d[key].shape == _ARRAYS[key].shape
    elif how == 1:
        assert d.read().keys() == _ARRAYS.keys()
    elif how == 2:
        view = d.view(key)
        view.sum()
        d.is_intact(view)
    elif how == 3:
        d.update({key: 1}, _add, timeout=0.01, copy=rng.random() < 0.5)
    elif how == 4:
        d.update(dict.fromkeys(rng.sample(_KEYS, 3), 1), _add, atomic=True, timeout=0.01)
    elif how == 5:
        d.write(dict.fromkeys(rng.sample(_KEYS, 2), 1), atomic=rng.random() < 0.5, timeout=0.01)
    elif how == 6:
        with d.locked(*rng.sample(_KEYS, 2), timeout=0.01) as (one, other):
            one += 1
            other += 1
    elif how == 7:
        d.wait(key, rng.choice((None, 1, 1 << 62)), timeout=0.005)
    else:
        with SharedDict.attach(d.name) as again:
            again[key]


def _user(d: SharedDict, seed: int) -> None:
    """Two threads use the dict until they are told to end; nothing but the errors above comes out."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    failed = []

    def work(rng: random.Random) -> None:
        while not stop.is_set() and not failed:
            try:
                with contextlib.suppress(*_ALLOWED):
                    _use(d, rng)
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(random.Random(seed + i),)) for i in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    if failed:
        raise failed[0]
    d.close()


def test_bits_flip_while_others_use_the_file(chaos_rng, chaos_rounds):
    """Header, cells and data, by single bits and by whole words; afterwards the users still end when told."""
    for _ in range(3 * chaos_rounds):
        with SharedDict(_ARRAYS) as d:
            name, cells, data, size = d.name, d._layout.cells, d._layout.data, d._layout.size
            fd = os.open(files.file_of(name), os.O_RDWR | os.O_CLOEXEC)
            pids = [forked(functools.partial(_user, d, seed)) for seed in chaos_rng.sample(range(1 << 31), 2)]
            try:
                with mmap.mmap(fd, size) as memory:
                    deadline = time.monotonic() + 0.7
                    while time.monotonic() < deadline:
                        start, end = chaos_rng.choice(
                            (
                                (64, layout.HEADER_BYTES),
                                (cells, data),
                                (cells, data),
                                (cells, data),
                                (0, size),
                            )
                        )
                        at = chaos_rng.randrange(start, end)
                        if chaos_rng.random() < 0.7:
                            memory[at] ^= 1 << chaos_rng.randrange(8)
                        else:
                            value = chaos_rng.choice(
                                (0, 1, 1 << 63, (1 << 64) - 1, chaos_rng.getrandbits(64))
                            )
                            memory[at - at % 8 : at - at % 8 + 8] = value.to_bytes(8, "little")
                        time.sleep(chaos_rng.choice((0, 0.0001, 0.002)))
                for pid in pids:
                    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "a user of the file has ended"
                    os.kill(pid, signal.SIGTERM)
                    assert ended(pid) == 0
                pids = []
            finally:
                os.close(fd)
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)
                with contextlib.suppress(FileNotFoundError):  # it may be persistent by now
                    os.unlink(files.file_of(name))
