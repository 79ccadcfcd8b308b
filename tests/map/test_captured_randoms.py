"""A random generator that a kernel or task captures draws the same numbers in every worker: that is told, by name."""

from __future__ import annotations

import functools
import random
import time
import warnings
from collections.abc import Callable
from random import gauss
from typing import Any

import numpy as np
import pytest
from numpy.random import normal as _legacy

import ndshare

out: Any = None


@pytest.fixture(autouse=True, scope="module")
def _output():
    """Make what the kernels write to, and give it back: other modules count what is there."""
    global out
    out = ndshare.zeros(40)
    yield
    out = None


def _told(act: Callable[[], Any]) -> list[tuple[str, str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
    assert all("draw the same numbers" in str(warning.message) for warning in seen)
    return sorted({(warning.message.name, warning.message.what) for warning in seen})


@pytest.fixture(params=["pool", "fork"], scope="module")
def context(request: pytest.FixtureRequest) -> ndshare.ProcessContext:
    """Workers that are sent the kernel, and workers that inherit it."""
    return ndshare.ProcessContext(2, start=request.param)


def _kernel(draw: Callable[[], float]) -> Callable[..., None]:
    def kernel(w, i, v):
        time.sleep(0.0005)
        out[i] = draw()

    return kernel


KINDS: dict[str, Any] = {
    "Generator(PCG64)": (np.random.default_rng(1), "normal"),
    "Generator(Philox)": (np.random.Generator(np.random.Philox(1)), "random"),
    "RandomState(MT19937)": (np.random.RandomState(1), "normal"),
    "SFC64": (np.random.SFC64(1), "random_raw"),
    "Random": (random.Random(1), "random"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_generator_that_a_kernel_advances_is_named(context, kind):
    """Of every kind, in a closure, behind a bound method or in a partial."""
    generator, method = KINDS[kind]
    what = f"random generator {kind}"
    assert _told(lambda: context.map(_kernel(lambda: getattr(generator, method)()), range(40))) == [
        ("generator", what)
    ]
    draw = getattr(generator, method)
    assert _told(lambda: context.map(_kernel(draw), range(40))) == [("draw", what)]

    def given(source, w, i, v):
        getattr(source, method)()

    assert _told(lambda: context.map(functools.partial(given, generator), range(40))) == [("source", what)]


def test_generators_of_objects_and_seeds_are_named(context):
    """``self.rng``, spawning from a generator, and from a SeedSequence."""

    class Model:
        def __init__(self):
            self.rng = np.random.default_rng(1)

        def kernel(self, w, i, v):
            self.rng.random()

    seeds, parent = np.random.SeedSequence(1), np.random.default_rng(1)
    assert [name for name, _ in _told(lambda: context.map(Model().kernel, range(9)))] == ["self.rng"]
    assert _told(lambda: context.map(lambda w, i, v: seeds.spawn(1), range(9))) == [
        ("seeds", "random generator SeedSequence")
    ]
    assert [name for name, _ in _told(lambda: context.map(lambda w, i, v: parent.spawn(1), range(9)))] == [
        "parent"
    ]


def test_generators_that_stay_as_they_were_are_not_named(context):
    """One that is only looked at, one that the kernel copies, one that has no state, and the map's own."""
    rng, system = np.random.default_rng(1), random.SystemRandom()

    def kernel(w, i, v):
        bits = type(rng.bit_generator)()
        bits.state = rng.bit_generator.state
        out[i] = np.random.Generator(bits.jumped(i)).normal() + system.random() + ndshare.item_rng().normal()

    assert _told(lambda: context.map(kernel, range(9), seed=1)) == []


def test_functions_of_the_modules_draw_other_numbers_in_each_worker(context):
    """``from random import gauss`` is ``random.gauss``: seeded in each worker, never copied."""
    for draw in (lambda: gauss(0, 1), _legacy, random.random):
        kernel = _kernel(draw)
        assert _told(lambda kernel=kernel: context.map(kernel, range(40))) == []
        assert len(set(out)) == 40


def test_threads_and_the_caller_share_their_generator():
    """Nothing is copied there."""
    rng = np.random.default_rng(1)
    for context in (ndshare.SerialContext(), ndshare.ThreadContext(2)):
        assert _told(lambda context=context: context.map(_kernel(rng.normal), range(40))) == []
        assert len(set(out)) == 40


def test_executor_names_captured_generators_and_lets_arguments_be():
    """Closures, partials and bound methods; what is given to a task is the task's own."""
    rng = np.random.default_rng(1)

    def draw(_):
        return rng.normal()

    def given(generator):
        return generator.normal()

    what = "random generator Generator(PCG64)"
    with ndshare.ProcessPoolExecutor(2) as executor, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        list(executor.map(lambda _: time.sleep(0.01) or draw(0), range(20)))
        list(executor.map(draw, range(20)))
    assert len(seen) == 1, "once, whichever workers say it"
    with ndshare.ProcessPoolExecutor(2) as executor:
        assert _told(lambda: list(executor.map(draw, range(60)))) == [("rng", what)]
        assert _told(lambda: executor.submit(functools.partial(given, rng)).result()) == [
            ("argument 1 of the partial", what)
        ]
        assert _told(lambda: list(executor.map(given, rng.spawn(4)))) == []
        assert _told(lambda: executor.submit(lambda: rng.bit_generator.state).result()) == []
        numbers: list[float] = []
        assert _told(lambda: numbers.extend(executor.map(lambda _: gauss(0, 1), range(8)))) == []
        assert len(set(numbers)) == 8
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


def test_executor_names_a_generator_that_a_later_task_is_the_first_to_use():
    """It arrives with the first task, and stays with the worker."""
    rng = random.Random(1)

    def maybe(use):
        return rng.random() if use else None

    with ndshare.ProcessPoolExecutor(1) as executor:
        assert _told(lambda: list(executor.map(maybe, [0, 0, 0, 0]))) == []
        assert _told(lambda: list(executor.map(maybe, [0, 1]))) == [("rng", "random generator Random")]


def test_script_with_a_global_generator_is_told(run_script):
    """In an executor, a workspace, and a map; an initializer that seeds for its worker is left in peace."""
    script = """
import os, warnings, numpy as np, ndshare
rng = np.random.default_rng(1)

def draw(x=0):
    return rng.normal()

def seeded():
    rng.bit_generator.state = np.random.default_rng(os.getpid()).bit_generator.state

def told(act):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
    return sorted({w.message.name for w in seen})

with ndshare.ProcessPoolExecutor(2) as executor:
    print(told(lambda: list(executor.map(draw, range(4)))))
with ndshare.Workspace({"gen": np.random.default_rng(2), "n": 2}, num_workers=2) as workspace:
    @workspace.register
    def one():
        return rng.normal() * n
    @workspace.register
    def other():
        return gen.normal() * n
    def both():
        one(), other()
        workspace.evaluate()
    print(told(both))
print(told(lambda: ndshare.map(lambda w, i, v: draw(), range(9))))
print(told(lambda: ndshare.ProcessContext(2, start="fork").map(lambda w, i, v: draw(), range(9))))
"""
    assert run_script(script).stdout.splitlines() == ["['rng']", "['gen', 'rng']", "['rng']", "['rng']"]


_NESTED = r"""
import collections, functools, random, warnings
import numpy as np
import ndshare

class Owner:
    rng = np.random.default_rng(3)
    def __init__(self):
        self.deep = [{"r": random.Random(4)}]
        self.draws = functools.partial(np.random.default_rng(5).normal, 0, 1)
    def of_class(self, *_): self.rng.normal()
    def of_class_by_name(self, *_): Owner.rng.normal()
    def inside(self, *_): self.deep[0]["r"].random()
    def by_method(self, *_): self.draws()
class Slots:
    __slots__ = ("rng",)
    def __init__(self): self.rng = np.random.default_rng(1)
    def __call__(self, *_): self.rng.normal()
table = {"a": {"b": [np.random.RandomState(3)]}}
deck = collections.deque([np.random.default_rng(3)])
def in_globals(*_): table["a"]["b"][0].normal()
def in_deque(*_): deck[0].normal()
def of_function(*_): of_function.rng.normal()
of_function.rng = np.random.default_rng(8)

kernels = {
    "rng": Owner().of_class, "rng by name": Owner().of_class_by_name, "deep[0]['r']": Owner().inside,
    "draws": Owner().by_method, ".rng": Slots(), "table['a']['b'][0]": in_globals, "deck[0]": in_deque,
    "of_function.rng": of_function,
}

def told(act):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
    assert all(isinstance(w.message, ndshare.SilentWriteWarning) for w in seen), seen
    return {w.message.name for w in seen}

def in_map(kernel, start):
    ndshare.ProcessContext(2, start=start).map(kernel, range(9))

def in_executor(kernel):
    with ndshare.ProcessPoolExecutor(2) as executor:
        executor.submit(kernel, 1, 2, 3).result()

def in_workspace(kernel):
    with ndshare.Workspace({"given_value": 1}, 1) as workspace:
        workspace.register(kernel)(1, 2, 3)
        workspace.evaluate()

for name, kernel in kernels.items():
    name = name.removesuffix(" by name")
    for act in (lambda: in_map(kernel, "pool"), lambda: in_map(kernel, "fork"), lambda: in_executor(kernel),
                lambda: in_workspace(kernel)):
        found = told(act)
        assert len(found) == 1 and next(iter(found)).endswith((name, "function")), (name, found)
given = np.random.default_rng(1)
with ndshare.ProcessPoolExecutor(1) as executor:
    assert told(lambda: executor.submit(lambda box: box["r"].normal(), {"r": given}).result()) == set()
print("works")
"""


def test_generators_within_objects_are_named_on_every_route(run_script):
    """Attributes, slots, classes, containers and methods: in maps, tasks and workspaces."""
    done = run_script(_NESTED, timeout=90)
    assert (done.stdout, done.stderr) == ("works\n", "")


def test_joblib_names_what_functions_bring_and_not_what_they_are_given():
    """A batch of calls is one object."""
    joblib = pytest.importorskip("joblib")
    import ndshare.integrations.joblib as backend

    backend.register()
    rng = np.random.default_rng(1)
    with joblib.parallel_config("ndshare", n_jobs=2):
        calls = joblib.Parallel()
        assert _told(lambda: calls(joblib.delayed(lambda _: rng.normal())(i) for i in range(4))) == [
            ("rng", "random generator Generator(PCG64)")
        ]
        assert _told(lambda: calls(joblib.delayed(lambda r: r.normal())(rng) for _ in range(4))) == []
