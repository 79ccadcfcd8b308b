"""Ctrl-C: one traceback, soon; nothing is lost, the pool goes on, the interpreter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

_HERE = Path(__file__).parent
_SOON_S = 1.0
_END_S = 3.0

_HEAD = """
import concurrent.futures, os, signal, sys, time
import numpy as np
from tests import misdeeds
import ndshare
def ready():
    os.write(1, b"r")
"""

# What the program is at when Ctrl-C comes, and what the workers are at.
_WAITS = {
    "result": "executor.submit({task}).result()",
    "result with a timeout": "executor.submit({task}).result(50)",
    "exception": "executor.submit({task}).exception()",
    "map": "list(executor.map(misdeeds.call, [{partial}] * 4))",
    "wait": "concurrent.futures.wait([executor.submit({task}) for _ in range(4)])",
    "shutdown": "[executor.submit({task}) for _ in range(4)]; executor.shutdown()",
}
_TASKS = {
    "sleeps": "misdeeds.nap, 60",
    "ignores it": "misdeeds.stubborn, 60",
    "in C": "misdeeds.in_c, 10**11",
}


class _Script:
    """A program that says when it is ready for Ctrl-C."""

    def __init__(self, tmp_path: Path, source: str) -> None:
        path = tmp_path / "program.py"
        path.write_text(_HEAD + source)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=tmp_path,
        )

    def strike(self, pause: float, *, group: bool) -> None:
        """Send SIGINT some time after it is ready."""
        assert self.process.stdout is not None
        assert self.process.stdout.read(1) == b"r", self.process.communicate(timeout=10)
        time.sleep(pause)
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGINT)
        self.struck = time.monotonic()

    def end(self, within: float) -> tuple[str, str, float]:
        """Output, errors and seconds since Ctrl-C."""
        try:
            out, err = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            pytest.fail(f"still there {within} s after Ctrl-C\n{out.decode()}\n{err.decode()}", pytrace=False)
        return out.decode(), err.decode(), time.monotonic() - self.struck


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], _Script]:
    """Start a program from source text."""
    return lambda source: _Script(tmp_path, source)


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("task", list(_TASKS))
def test_interrupt_during_result_leaves_the_pool_usable(
    script: Callable[[str], _Script], task: str, group: bool
) -> None:
    """KeyboardInterrupt within a second whatever the task is at; then the pool works; no text from workers."""
    program = script(f"""
with ndshare.ProcessPoolExecutor(2) as executor:
    list(executor.map(misdeeds.same, range(4)))
    future = executor.submit({_TASKS[task]})
    try:
        ready()
        future.result()
    except KeyboardInterrupt:
        print("struck", flush=True)
    began = time.monotonic()
    assert list(executor.map(misdeeds.same, range(50), timeout=10)) == list(range(50))
    error = future.exception(timeout=5)
    assert isinstance(error, (KeyboardInterrupt, ndshare.WorkerDiedError)), error
    assert time.monotonic() - began < 2
    assert executor.submit(misdeeds.total, np.ones(200_000)).result() == 200_000
    print("usable", flush=True)
""")
    program.strike(0.2, group=group)
    out, err, _ = program.end(15)
    assert err == ""
    assert out.split() == ["struck", "usable"]


@pytest.mark.parametrize("wait", list(_WAITS))
@pytest.mark.parametrize("block", ["with", "open"])
def test_interrupt_that_nobody_catches_ends_the_program(
    script: Callable[[str], _Script], wait: str, block: str
) -> None:
    """One traceback, and the interpreter ends soon, with or without ``with``, whatever is queued."""
    for name in _TASKS if block == "with" else ["sleeps"]:
        task = _TASKS[name]
        partial = "misdeeds.functools.partial(" + task + ")"
        work = _WAITS[wait].format(task=task, partial=partial)
        head = (
            "with ndshare.ProcessPoolExecutor(2) as executor:"
            if block == "with"
            else ("executor = ndshare.ProcessPoolExecutor(2)\nif True:")
        )
        program = script(f"""
{head}
    list(executor.map(misdeeds.same, range(4)))
    ready()
    {work}
""")
        program.strike(0.2, group=True)
        out, err, seconds = program.end(15)
        assert program.process.returncode in {-signal.SIGINT, 130}
        assert seconds < _END_S
        assert out == ""
        assert err.count("Traceback (most recent call last)") == 1, err
        assert err.rstrip().endswith("KeyboardInterrupt")


def test_interrupt_during_submit_of_something_slow_to_pickle(script: Callable[[str], _Script]) -> None:
    """Ctrl-C reaches the pickling of an argument; the pool goes on, tasks that waited behind it run."""
    program = script("""
class Slow:
    def __reduce__(self):
        ready()
        time.sleep(20)
        return str, ("slow",)

with ndshare.ProcessPoolExecutor(2) as executor:
    list(executor.map(misdeeds.same, range(4)))
    try:
        executor.submit(misdeeds.same, Slow())
    except KeyboardInterrupt:
        print("struck", flush=True)
    executor.kill_workers()
""")
    program.strike(0.2, group=True)
    out, err, seconds = program.end(30)
    assert err == ""
    assert out.split()[0] == "struck"


def test_interrupt_while_the_first_workers_start_prints_one_traceback(
    script: Callable[[str], _Script],
) -> None:
    """Ctrl-C in a terminal also reaches processes that are just starting: none of them says a word."""
    for pause in (0.0, 0.02, 0.05, 0.1, 0.2):
        program = script("""
with ndshare.ProcessPoolExecutor(2) as executor:
    ready()
    executor.submit(misdeeds.nap, 60).result()
""")
        program.strike(pause, group=True)
        _, err, seconds = program.end(15)
        assert err.count("Traceback (most recent call last)") == 1, err
        assert seconds < _END_S


def test_interrupt_in_an_initializer_that_hangs(script: Callable[[str], _Script]) -> None:
    """An initializer that blocks in C code does not keep the program alive."""
    program = script("""
with ndshare.ProcessPoolExecutor(2, initializer=misdeeds.in_c, initargs=(10**11,)) as executor:
    future = executor.submit(misdeeds.same, 1)
    time.sleep(1)
    ready()
    future.result()
""")
    program.strike(0.1, group=True)
    _, err, seconds = program.end(15)
    assert err.count("Traceback (most recent call last)") == 1, err
    assert seconds < _END_S + 2  # the worker gets a grace of 2 s


def test_second_interrupt_ends_the_wait_of_the_first(script: Callable[[str], _Script]) -> None:
    """Impatience is allowed: two at once end the program all the same."""
    program = script("""
with ndshare.ProcessPoolExecutor(2) as executor:
    futures = [executor.submit(misdeeds.in_c, 10**11) for _ in range(3)]
    ready()
    futures[0].result()
""")
    program.strike(0.3, group=True)
    for _ in range(5):
        time.sleep(0.05)
        os.killpg(program.process.pid, signal.SIGINT)
    _, err, seconds = program.end(15)
    assert seconds < _END_S + 1


def test_user_handler_of_sigint_stays_in_force(run_script: Callable[..., Any]) -> None:
    """A handler of the user's gets every SIGINT, also one that comes while the pool is busy; it is put back."""
    run_script("""
import os, signal, sys, threading, time
from tests import misdeeds
import ndshare
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
sent = 0
def send():
    global sent
    for _ in range(50):
        os.kill(os.getpid(), signal.SIGINT)
        sent += 1
        while len(seen) < sent:
            time.sleep(0.001)
with ndshare.ProcessPoolExecutor(2) as executor:
    thread = threading.Thread(target=send)
    thread.start()
    while thread.is_alive():
        assert list(executor.map(misdeeds.same, range(100))) == list(range(100))
        [executor.submit(misdeeds.same, i) for i in range(20)][-1].result()
    thread.join()
assert len(seen) == 50
before = len(seen)
os.kill(os.getpid(), signal.SIGINT)
assert len(seen) == before + 1
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    pass
else:
    raise AssertionError
""")


@pytest.mark.chaos
@pytest.mark.parametrize("target", ["alone", "group"])
def test_interrupts_at_random_moments_lose_nothing(chaos_seed: int, chaos_rounds: int, target: str) -> None:
    """Ctrl-C anywhere in a busy program: one KeyboardInterrupt each, all futures done, nothing hangs."""
    rounds = 25 * chaos_rounds
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            str(_HERE / "hunt_interrupts.py"),
            str(chaos_seed),
            str(rounds),
            target,
        ],
        capture_output=True,
        text=True,
        timeout=60 + 2 * rounds,
        start_new_session=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    "handler",
    [
        "executor.submit(abs, -1).result(30)",
        "executor.submit(abs, -1).done()",
        "ndshare.map(kernel, range(3))",
    ],
)
def test_signal_handlers_use_the_executor_while_the_program_waits(
    run_script: Callable[..., subprocess.CompletedProcess[str]], handler: str
) -> None:
    """What they hear of what the program waits for is not lost."""
    done = run_script(
        f"""
import signal, time, ndshare
calls = []
out = ndshare.alloc(3)
def kernel(worker_id, index, value): out[index] = value
def nap(seconds=0.01): time.sleep(seconds); return 5
at_it = waits = False
def on_alarm(*_):
    global at_it
    if waits and not at_it:  # not while something is being sent to the only worker: it would wait for itself
        at_it = True
        calls.append({handler})
        at_it = False
executor = ndshare.ProcessPoolExecutor(1)
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
for number in range(40):
    future = executor.submit(nap)
    waits = True
    assert future.result(None if number % 2 else 30) == 5
    waits = False
def slow(worker_id, index, value): time.sleep(0.01)
waits = "map" not in {handler!r}
ndshare.map(slow, range(40))
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(calls) > 5
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_what_a_task_sends_itself_interrupts_it(tmp_path: Path) -> None:
    """Time limits that programs set for their own functions: by whatever way, again and again; others' do not."""
    source = """
import _thread, os, signal, threading, time
import ndshare
ways = [
    _thread.interrupt_main,
    lambda: os.kill(os.getpid(), signal.SIGINT),
    lambda: signal.raise_signal(signal.SIGINT),
    lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT),
]
def limited(number):
    late = 0
    for _ in range(2):
        threading.Timer(0.05, ways[number]).start()
        try:
            for _ in range(500):
                time.sleep(0.1)
        except KeyboardInterrupt:
            late += 1
    return late
def uncaught():
    _thread.interrupt_main()
    time.sleep(30)
def patient(seconds):
    time.sleep(seconds)
    return "done"
out = ndshare.alloc(4)
def kernel(worker_id, index, value):
    out[index] = limited(index)
with ndshare.ProcessPoolExecutor(1) as executor:
    for number in range(4):
        assert executor.submit(limited, number).result(60) == 2, number
    assert isinstance(executor.submit(uncaught).exception(60), KeyboardInterrupt)
    future = executor.submit(patient, 0.3)
    while not future.running():
        time.sleep(0.01)
    for pid in executor._processes:
        os.kill(pid, signal.SIGINT)
    assert future.result(60) == "done"
    assert executor.submit(limited, 0).result(60) == 2
ndshare.ProcessContext(1).map(kernel, range(4))
assert list(out) == [2, 2, 2, 2]
print("works")
"""
    path = tmp_path / "limits.py"
    path.write_text(source)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout, done.stderr) == ("works\n", "")
