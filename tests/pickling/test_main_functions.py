"""Functions, classes and globals of the user's program, as under the standard library with fork.

One program states what has to hold. It runs as a script, by ``python -c``, in a notebook, and with each
start method of multiprocessing set by the caller; where the standard library has an answer, it runs
there too, so that what is stated is what fork does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90

# `Executor` and `submit_all` are defined by each of the programs below.
_PROGRAM = """
import dataclasses, enum, functools, os, sys, time
import numpy as np

LIMIT = 7

def init(value):
    global model, calls
    model = {"weights": np.full(1000, value)}
    calls = 0

def predict(x):
    global calls
    calls += 1
    return float(model["weights"][0] * x), calls

cache = {}

def cached(x):
    if x not in cache:
        cache[x] = x * x
    return cache[x], len(cache)

def constant(x):
    return min(x, LIMIT)

class Config:
    level = 1
    names = []

    def __init__(self, n):
        self.n = n

    @classmethod
    def raise_level(cls):
        cls.level += 1
        cls.names.append("worker")
        return cls(cls.level)

    @staticmethod
    def static(x):
        return -x

    def method(self, x):
        return self.n * x + self.level

    class Inner:
        value = 3
        def get(self):
            return self.value

class Base:
    def who(self):
        return "base"

class Derived(Base):
    def who(self):
        return "derived of " + super().who()

@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0
    tags: list = dataclasses.field(default_factory=list, compare=False)

    def mirrored(self):
        return Point(-self.x, -self.y)

class Color(enum.Enum):
    RED = 1
    BLUE = "b"

class Flags(enum.IntFlag):
    A = 1
    B = 2

class Trouble(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code

def trouble(code):
    raise Trouble(code)

def decorate(function):
    @functools.wraps(function)
    def wrapper(*args):
        return "wrapped", function(*args)
    return wrapper

@decorate
def decorated(x):
    return x + LIMIT

@functools.lru_cache
def expensive(x):
    return x + LIMIT

def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

def colors(color):
    return color is Color.RED, Color("b"), {Color.RED: Flags.A | Flags.B}

def checks(thing):
    return isinstance(thing, Config), type(thing) is Config, isinstance(Config(1), type(thing))

def make_adder(n):
    def add(x):
        return x + n + LIMIT
    return add

def main():
    with Executor(1, initializer=init, initargs=(3,)) as executor:
        answers = [executor.submit(predict, n).result() for n in range(4)]
    assert answers == [(0.0, 1), (3.0, 2), (6.0, 3), (9.0, 4)], answers
    assert "model" not in globals()

    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result()

        assert [call(cached, n) for n in (1, 2, 1)] == [(1, 1), (4, 2), (1, 2)]
        assert cache == {}
        assert [call(constant, n) for n in (5, 10)] == [5, 7]

        made = call(Config.raise_level)
        assert made.n == 2 and type(made) is Config and isinstance(made, Config)
        assert (Config.level, Config.names) == (1, []), (Config.level, Config.names)
        assert made.level == 1
        assert call(Config.raise_level).n == 3, "the worker's class keeps its state"
        assert (Config.level, Config.names) == (1, [])
        assert call(Config.static, 4) == -4
        assert call(Config(2).method, 5) == 13
        assert call(checks, Config(1)) == (True, True, True)
        assert call(Config.Inner().get) == 3
        assert type(call(Config.Inner)) is Config.Inner
        assert call(Derived().who) == "derived of base"

        assert call(Point(1.0, 2.0).mirrored) == Point(-1.0, -2.0)
        assert isinstance(call(Point(1.0).mirrored), Point)
        assert call(dataclasses.replace, Point(1.0), ) == Point(1.0)
        first, blue, table = call(colors, Color.RED)
        assert first is True and blue is Color.BLUE and table == {Color.RED: Flags.A | Flags.B}
        try:
            call(trouble, 42)
        except Trouble as error:
            assert error.code == 42 and type(error) is Trouble
        else:
            raise AssertionError("no error")

        assert call(decorated, 1) == ("wrapped", 8)
        assert call(expensive, 1) == 8
        assert call(even, 10) is True and call(odd, 10) is False
        assert call(functools.partial(constant, 100)) == 7
        assert list(executor.map(constant, range(5, 10))) == [5, 6, 7, 7, 7]

"""

_EXTRA = """
def more():
    # What the standard library cannot do, or does only in workers that it forks later.
    global LIMIT, cache
    with Executor(1) as executor:
        call = lambda f, *args: executor.submit(f, *args).result()
        assert call(lambda x: x + LIMIT, 1) == 8
        assert call(make_adder(5), 1) == 13
        assert [f(1) for f in call(lambda: [lambda x: x + LIMIT, make_adder(1)])] == [8, 9]
        LIMIT = 9
        assert call(constant, 10) == 9, "a changed global arrives"
        assert call(make_adder(5), 1) == 15
        LIMIT = 7
        assert call(constant, 10) == 7
        cache[5] = "changed in place"
        assert call(cached, 5) == ("changed in place", 1)
        cache.clear()

        big = np.arange(4.0)
        class Local:
            level = 1
            def get(self):
                return self.level, big.sum()
            @classmethod
            def up(cls):
                cls.level += 1
                return cls()
        assert call(Local().get) == (1, 6.0)
        assert type(call(Local.up)) is Local
        assert Local.level == 1
"""

_NDSHARE = "from ndshare import ProcessPoolExecutor as Executor\n"
_STDLIB = """
import concurrent.futures, multiprocessing
def Executor(*args, **kwargs):
    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(*args, mp_context=context, **kwargs)
"""
_RUN = "main()\nmore()\nprint('works')\n"


def test_program_states_what_the_standard_library_does_with_fork(run_script: RunScript) -> None:
    """The part that is drop-in holds for `concurrent.futures` with fork: the measure is right."""
    done = run_script(_STDLIB + _PROGRAM + "main()\nprint('works')\n", timeout=_TIMEOUT_S)
    assert done.stdout == "works\n"


def test_program_holds_in_a_script(run_script: RunScript) -> None:
    """Without main guard."""
    done = run_script(_NDSHARE + _PROGRAM + _EXTRA + _RUN, timeout=_TIMEOUT_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_program_holds_with_python_dash_c(tmp_path: Path) -> None:
    """Where there is no file at all."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _NDSHARE + _PROGRAM + _EXTRA + _RUN],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=tmp_path,
        env=dict(os.environ),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_program_holds_in_a_notebook(run_script: RunScript, tmp_path: Path) -> None:
    """In cells."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from tests.processes.test_starting import _NOTEBOOK

    (tmp_path / "cells.json").write_text(json.dumps([_NDSHARE, _PROGRAM, _EXTRA, _RUN]))
    assert run_script(_NOTEBOOK, timeout=_TIMEOUT_S).stdout == "works\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_program_holds_under_each_start_method(run_script: RunScript, method: str) -> None:
    """Whatever `multiprocessing.set_start_method` says, and in a process started that way.

    In a child of spawn or forkserver the program is a module called ``__mp_main__``.
    """
    source = f"""
import multiprocessing
{_NDSHARE}{_PROGRAM}{_EXTRA}
def everything():
    main()
    more()
    print("works", flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    everything()
    child = multiprocessing.Process(target=everything)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
    done = run_script(source, timeout=_TIMEOUT_S)
    assert done.stdout == "works\nworks\n", done.stderr


def test_large_global_is_sent_once_per_worker(run_script: RunScript) -> None:
    """8 MB that 1,000 tasks use cross over once for each worker, and again when they are replaced."""
    done = run_script(
        """
import numpy as np
from ndshare import ProcessPoolExecutor
from ndshare._transport import mainspace

sent = []
deliver = mainspace.deliver
def counting(*args, **options):
    draft = deliver(*args, **options)
    if draft is not None:
        sent.append(sorted(draft.delivers))
    return draft
mainspace.deliver = counting

table = np.arange(1_000_000.0)
blob = bytes(range(256)) * 4096

def use(n):
    return table[n] + blob[n % 256]

with ProcessPoolExecutor(2) as executor:
    futures = [executor.submit(use, n) for n in range(1000)]
    assert [f.result() for f in futures] == [n + n % 256 for n in range(1000)]
    assert list(executor.map(use, range(1000))) == [n + n % 256 for n in range(1000)]
    assert 1 <= sum("table" in names for names in sent) <= 2, sent
    assert 1 <= sum("blob" in names for names in sent) <= 2, sent
    # Through the sockets go the tasks themselves, and what is too small for shared memory.
    through_sockets = executor._pool.delivery.bytes_sent
    assert through_sockets < 4000 * 200 + 2 * len(blob) + 100_000, through_sockets
    table = table + 1
    assert executor.submit(use, 0).result() == 1.0
    table[1] = 5  # in place
    assert executor.submit(use, 1).result() == 6.0
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "works\n", done.stderr


def test_global_that_is_set_to_none_is_none(run_script: RunScript) -> None:
    """Also if it was a function that a worker has, and something else was sent meanwhile."""
    done = run_script(
        """
import ndshare

def helper():
    return "old"

def other():
    return "other"

keep = helper
with ndshare.ProcessPoolExecutor(1) as executor:
    for freed in (False, True):
        assert executor.submit(lambda: helper()).result() == "old"
        old, helper = helper, None
        if freed:
            del old, keep
        assert executor.submit(lambda: other()).result() == "other"
        assert executor.submit(lambda: helper is None).result()
        if not freed:
            helper = old
print("works")
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "works\n", done.stderr


def test_global_that_cannot_be_pickled_is_named(run_script: RunScript) -> None:
    """The error says which global of which function, and what to do; other functions run."""
    done = run_script(
        """
from ndshare import ProcessPoolExecutor
line = (n for n in range(3))
def helper():
    return next(line)
def work():
    return helper()
def fine():
    return 2
with ProcessPoolExecutor(1) as executor:
    future = executor.submit(work)
    try:
        future.result(timeout=30)
    except TypeError as error:
        print(error)
    print(executor.submit(fine).result())
""",
        timeout=_TIMEOUT_S,
    )
    text, number, _ = done.stdout.split("\n")
    assert "'line'" in text
    assert "'helper'" in text
    assert number == "2"


def test_function_of_main_calls_what_is_defined_later(run_script: RunScript) -> None:
    """A name that was missing the first time is delivered once it exists."""
    done = run_script(
        """
from ndshare import ProcessPoolExecutor
def work():
    return later()
executor = ProcessPoolExecutor(1)
try:
    executor.submit(work).result()
except NameError as error:
    print(error)
def later():
    return "now"
print(executor.submit(work).result())
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "name 'later' is not defined\nnow\n"


def test_main_of_one_executor_does_not_show_in_the_warm_worker_of_the_next(run_script: RunScript) -> None:
    """A new executor sees the caller's globals, not what a task of an older executor did to them."""
    done = run_script(
        """
from ndshare import ProcessPoolExecutor
state = []
def add(x):
    state.append(x)
    return len(state)
for _ in range(2):
    with ProcessPoolExecutor(1) as executor:
        print(executor.submit(add, 1).result(), executor.submit(add, 1).result())
""",
        timeout=_TIMEOUT_S,
    )
    assert done.stdout == "1 2\n1 2\n"
