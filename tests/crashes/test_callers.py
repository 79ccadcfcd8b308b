"""The caller dies at every point of its work: nothing of it is left, and nobody who works with it waits for ever."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from tests import jobs, kernel
from tests.crashes import faults

pytestmark = pytest.mark.once

_PROGRAM = """
import sys
import numpy as np, ndshare
from ndshare._pool import delivery
from ndshare._processes import worker_handle
from ndshare._system import _wire
from tests.crashes import faults

def at(where):
    return lambda *_: faults.reach(where)

x = np.arange(100_000.0)
with ndshare.ProcessPoolExecutor(2) as ex:
    assert ex.submit(abs, -1).result() == 1
    faults._wrap(delivery, "pack", at("caller packing"), None)
    faults._wrap(_wire, "send_message", at("caller dispatching"), at("caller dispatched"))
    faults._wrap(worker_handle.Worker, "on_ready", at("caller answered"), at("caller heard"))
    fs = [ex.submit(np.add, x, i) for i in range(8)]
    fs[0].result()
    out = ndshare.alloc(100)
    faults.reach("caller waiting")
    ndshare.map(lambda w, i, v: out.__setitem__(i, v), range(100))
    d = ndshare.SharedDict({"a": x}, sys.argv[1])
    d.update({"a": x}, lambda new, old: faults.reach("caller updating") or new + old)
    with d.locked("a") as a:
        a[:] = 1
        faults.reach("caller holding")
    q = ndshare.Queue(2)
    q.put(x); faults.reach("caller queueing"); q.get()
    with ndshare.Workspace({"x": x}, num_workers=1) as ws:
        @ws.register
        def total(i): return x.sum() + i
        total(1); faults.reach("caller in workspace"); ws.evaluate()
    faults.reach("caller closing")
"""

POINTS = (
    "packing", "dispatching", "dispatched", "answered", "heard", "waiting", "updating", "holding", "queueing",
    "in workspace", "closing",
)  # fmt: skip


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV", "SIGSTOP"])
@pytest.mark.parametrize("where", POINTS)
def test_caller(where: str, how: str, tmp_path: Path) -> None:
    """All of its processes end with it, and of names in /dev/shm only its dict's is left, for `prune`."""
    file, name = tmp_path / "who", f"crash-{where.replace(' ', '-')}-{how}"
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, name],
        env={**os.environ, faults.VARIABLE: f"caller {where}|{how}|{file}"},
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            jobs.wait_for(lambda: file.exists() or program.poll() is not None, 100)
            below = kernel.descendants(program.pid)
            if how == "SIGSTOP":
                jobs.wait_for(lambda: kernel.state(program.pid) == "T")
                below = kernel.descendants(program.pid)
            else:
                program.wait(100)
        finally:
            program.kill()  # a stopped one is never waited for
        assert program.stderr is not None
        said = program.stderr.read()
        status = program.wait()
    assert file.exists(), f"the point was not reached\n{said}"
    expected = {"exit": 3, "SIGSEGV": -signal.SIGSEGV}.get(how, -signal.SIGKILL)
    assert status == expected, said
    jobs.wait_for(lambda: all(map(kernel.gone, below)))
    left = set(os.listdir("/dev/shm")) - before
    assert all(entry.endswith(name) for entry in left), left
    ndshare.prune()
    assert set(os.listdir("/dev/shm")) - before == set()


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
@pytest.mark.parametrize("who", ["producer", "consumer"])
@pytest.mark.parametrize("where", ["before", "after", "inside"])
@pytest.mark.parametrize("maxsize", [0, 2])
def test_queue(who: str, where: str, how: str, maxsize: int) -> None:
    """A producer or a consumer dies around a message: the others go on, each message comes once or was never put."""
    queue = ndshare.Queue(maxsize)
    deed = {"exit": lambda: os._exit(3), "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL)}.get(
        how, lambda: os.kill(os.getpid(), signal.SIGSEGV)
    )
    values = [np.full(30_000, i) for i in range(2)]
    if who == "consumer":
        for value in values:
            queue.put(value)
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        if where == "before":
            deed()
        if who == "producer":
            queue.put(values[0])
            if where == "inside":
                queue.put(_Bomb(deed))
        elif where == "inside":
            queue.get_many(1)
            deed()
        else:
            queue.get(timeout=30)
        deed()
    os.waitpid(pid, 0)
    got = []
    while queue.qsize():
        got.append(int(queue.get(timeout=30)[0]))
    if who == "producer":
        assert got in ([], [0])
    else:
        assert got in ([0, 1], [1])
    for i in range(5):  # all places are free
        queue.put(i, timeout=30)
        assert queue.get(timeout=30) == i
    queue.close()


class _Bomb:
    """Goes off when it is pickled."""

    def __init__(self, deed: Any) -> None:
        self.deed = deed

    def __reduce__(self) -> Any:
        self.deed()
        return (int, ())
