"""Globals that cannot be sent: whoever only names them runs, whoever uses them is told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_HEAD = """
import asyncio, sqlite3, tempfile
import numpy as np, ndshare

log = tempfile.TemporaryFile("w")
database = sqlite3.connect(":memory:")
numbers = (number for number in range(3))
rng = np.random.default_rng(1)

class Model:
    connection = database
    def double(self, x): return 2 * x

def report(x):
    log.write(str(x))
    return database.execute("select 1").fetchone()

def task(x):
    if x < 0:
        report(x)
    return 2 * x

def refused(function, name, *args):
    error = executor.submit(function, *args).exception()
    assert isinstance(error, ndshare.UnsendableGlobalError), (function, error)
    assert error.name == name and error.__cause__ is not None, error
"""


def test_tasks_that_only_name_them_run(run_script: RunScript) -> None:
    """By a function that is not called, in a class, beside a random generator; in every face of the executor."""
    done = run_script(
        _HEAD
        + """
async def awaited():
    return await asyncio.get_running_loop().run_in_executor(executor, task, 3)

def drawn(x): return x if rng.random() < 2 else log

with ndshare.ProcessPoolExecutor(2) as executor, ndshare.Pool(1) as pool:
    assert executor.submit(task, 3).result() == 6
    assert list(executor.map(task, range(4))) == pool.map(task, range(4)) == [0, 2, 4, 6]
    assert asyncio.run(awaited()) == 6
    assert Model().double(2) == executor.submit(Model().double, 2).result() == 4
    assert executor.submit(lambda: 1 if True else log).result() == 1
    refused(task, "log", -1)
    assert executor.submit(task, 5).result() == 10
with ndshare.ProcessPoolExecutor(1, initializer=task, initargs=(1,)) as executor:
    assert executor.submit(task, 3).result() == 6
print("right")
"""
    )
    assert done.stdout == "right\n"


def test_whatever_is_done_with_one_is_refused(run_script: RunScript) -> None:
    """It is no value of any kind: it cannot be asked, compared, called, printed, converted or returned."""
    done = run_script(
        _HEAD
        + """
def entered():
    with log: pass
def printed(): print(log)
def changed(): log.name = 1
uses = [
    lambda: log.closed, lambda: log(), lambda: bool(log), lambda: not log, lambda: log == 1, lambda: log != 1,
    lambda: isinstance(log, int), lambda: len(log), lambda: list(log), lambda: log[0], lambda: 1 in log, lambda: log + 1,
    lambda: 1 + log, lambda: -log, lambda: int(log), lambda: f"{log}", lambda: str(log), lambda: hash(log), lambda: {log: 1},
    lambda: np.asarray(log), lambda: getattr(log, "name", None), lambda: hasattr(log, "name"), lambda: sorted([log, log]),
    lambda: log, lambda: [1, log], entered, printed, changed,
]
with ndshare.ProcessPoolExecutor(1) as executor:
    for use in uses:
        refused(use, "log")
    refused(lambda: next(numbers), "numbers")
    refused(lambda: list(zip(numbers, [1])), "numbers")
    refused(lambda: Model.connection.execute("select 1"), "database")
    assert "'log' (" in executor.submit(lambda: repr(log)).result()
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


def test_what_can_be_sent_later_is(run_script: RunScript) -> None:
    """Bound anew, or changed in place; and back again."""
    done = run_script(
        _HEAD
        + """
held = [1, numbers]
def count(): return len(held)
with ndshare.ProcessPoolExecutor(1) as executor:
    refused(count, "held")
    held[1] = 2
    assert executor.submit(count).result() == 2
    held.append(numbers)
    refused(count, "held")
    held = "abc"
    assert executor.submit(count).result() == 3
    log = 5
    assert executor.submit(lambda: log).result() == 5
print("right")
"""
    )
    assert (done.stdout, done.stderr) == ("right\n", "")
