"""Case: one large shared array, many tasks, many workers; memory of the whole process tree.

Run as a program (``python -m ndshare.bench.memory``) it does the work and prints what it found:
a fresh interpreter, so that the arrays of the other cases do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from ndshare.bench.goal import Goal, Result

_BYTES = 1_000_000_000
_QUICK_BYTES = 50_000_000
_TASKS = 100
_WORKERS = 8
_SAMPLES = 10  # how often the memory of all processes is added up during the run


def run(quick: bool) -> Iterator[Result]:
    """Yield the results: memory of all processes, and bytes that went through sockets."""
    nbytes = _QUICK_BYTES if quick else _BYTES
    done = subprocess.run(
        [sys.executable, "-m", "ndshare.bench.memory", str(nbytes), str(_TASKS), str(_WORKERS)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    what = f"{nbytes / 1e9:g} GB shared array x {_TASKS} tasks x {_WORKERS} workers"
    yield Result(
        "shared-memory",
        f"{what}: memory of all processes (sum of PSS)",
        "B",
        {"ndshare": found["pss"], "array": [nbytes], "before": [found["before"]]},
        "array",
        () if quick else (Goal(1.2e9, "value"),),
    )
    yield Result(
        "shared-sockets",
        f"{what}: bytes through sockets",
        "B",
        {"ndshare": [found["sent"]]},
        None,
        (Goal(1e6, "value"),),
    )


def tree(root: int) -> list[int]:
    """Return the process `root` and everything below it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(entry))
            except OSError:  # it ended meanwhile
                continue
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def pss(root: int) -> int:
    """Return the memory of a process and all below it, in bytes, shared pages counted once in sum.

    The processes below it stand still meanwhile: a page that one of them maps between two looks would count
    more than once.
    """
    total = 0
    pids = tree(root)
    for pid in pids[1:]:
        _halt(pid)
    try:
        for pid in pids:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    finally:
        for pid in pids[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return total * 1024


def _halt(pid: int) -> None:
    """Stop a process, and wait until it stands still or has ended."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
        while True:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "TZX":
                    return
            time.sleep(1e-4)


def _count_messages() -> list[int]:
    """Count the bytes of every message that this process sends or receives; return the counter.

    All traffic of a pool has this process at one end. Must run before the modules that use the
    two functions are imported.
    """
    from ndshare._system import _wire

    counted = [0]
    send, receive = _wire.send_message, _wire.recv_message

    def counting_send(sock_fd, parts, fds, flags):  # type: ignore[no-untyped-def]
        sent = send(sock_fd, parts, fds, flags)
        if sent:
            counted[0] += sum(memoryview(part).nbytes for part in parts)
        return sent

    def counting_receive(*args):  # type: ignore[no-untyped-def]
        message = receive(*args)
        if message is not None:
            counted[0] += message[0]
        return message

    _wire.send_message, _wire.recv_message = counting_send, counting_receive
    return counted


def _main(nbytes: int, tasks: int, workers: int) -> None:
    counted = _count_messages()
    import ndshare
    from ndshare.bench.work import total

    before = pss(os.getpid())
    x = ndshare.full(nbytes // 8, 0.5)
    found = []
    with ndshare.ProcessPoolExecutor(workers) as executor:
        futures = [executor.submit(total, x, i) for i in range(tasks)]
        for number, future in enumerate(futures, 1):
            if future.result() != 0.5 * len(x):
                raise AssertionError(f"wrong sum: {future.result()}")
            if number % (tasks // _SAMPLES) == 0:
                found.append(pss(os.getpid()))
    print(json.dumps({"pss": found, "before": before, "sent": counted[0]}))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
