"""The process that workers are forked from, by itself."""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
from collections.abc import Callable

from ndshare._processes import frames
from ndshare._processes.zygote import _Zygote
from tests.dict.dict_tasks import ended, forked

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

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


_IGNORED = """
import os, signal, subprocess, time, ndshare
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
def slow(): time.sleep(1); return 1
def die(): os._exit(3)
def dispositions():
    return signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""


def test_caller_that_ignores_the_end_of_children_loses_no_task(run_script: RunScript) -> None:
    """Deaths are told with their status, others go on, and tasks can wait for children of their own."""
    done = run_script(
        _IGNORED
        + """
def child(): return subprocess.run(["sh", "-c", "exit 5"]).returncode
with ndshare.ProcessPoolExecutor(2, preload=["json"]) as executor:
    one, other = executor.submit(slow), executor.submit(die)
    assert other.exception().exit_code == 3
    assert one.result() == 1
    assert executor.submit(child).result() == 5
    assert executor.submit(dispositions).result() == (signal.SIG_DFL, signal.SIG_DFL, set())
out = ndshare.alloc(4)
def kernel(worker_id, index, value): out[index] = value
for start in ("pool", "fork"):
    ndshare.ProcessContext(2, start=start).map(kernel, range(4))
    assert out.sum() == 6
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_workers_of_a_caller_that_blocks_sigterm_can_be_terminated(run_script: RunScript) -> None:
    """What the caller ignores or blocks is its own."""
    done = run_script(
        _IGNORED
        + """
def sleep(name): open(name, "w").close(); time.sleep(600)
executor = ndshare.ProcessPoolExecutor(2)
futures = [executor.submit(sleep, name) for name in "ab"]
while not (os.path.exists("a") and os.path.exists("b")): time.sleep(0.01)
executor.terminate_workers()
assert all(isinstance(future.exception(), ndshare.WorkerError) for future in futures)
executor.shutdown()
print("fine")
""",
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_program_that_survives_its_terminal_keeps_its_workers(run_script: RunScript) -> None:
    """SIGHUP that the caller ignores (``nohup``) is ignored by workers, as in the standard library."""
    done = run_script(
        """
import os, signal, ndshare
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def hang_up(): os.kill(os.getppid(), signal.SIGHUP); os.kill(os.getpid(), signal.SIGHUP); return 1
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(hang_up).result() == 1
    assert executor.submit(hang_up).result() == 1
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
