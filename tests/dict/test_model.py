"""Random use of a SharedDict against a plain dict with a lock: threads, forks and spawned processes."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading

import hypothesis
import hypothesis.stateful as st
import numpy as np
import pytest
from hypothesis import strategies as some

import ndshare
from ndshare import SharedDict
from ndshare._dict import files
from tests.dict.dict_tasks import ended, forked

pytestmark = pytest.mark.once

_KEYS = ("a", "b", ("c", 1))
_SHAPES = {"a": (3,), "b": (2, 2), ("c", 1): ()}
_keys = some.lists(some.sampled_from(_KEYS), min_size=1, max_size=3, unique=True)
_numbers = some.integers(-1000, 1000)

_CHILD = """
import pickle, sys
from ndshare import SharedDict
from tests.dict import test_model as model
for line in sys.stdin.buffer:
    name, step = pickle.loads(bytes.fromhex(line.decode()))
    with SharedDict.attach(name) as d:
        answer = model.do(d, *step)
    sys.stdout.write(pickle.dumps(answer).hex() + "\\n")
    sys.stdout.flush()
"""


def _axpy(new, old):
    return old * 3 + new


def do(d, how, keys, number):
    """Take one step; return what it gave."""
    if how == "read":
        return {key: value.tolist() for key, value in d.read(keys).items()}
    if how == "write":
        return d.write(dict.fromkeys(keys, number), atomic=number % 2 == 0)
    if how == "update":
        out = d.update(dict.fromkeys(keys, number), _axpy, atomic=number % 2 == 0, copy=number % 3 == 0)
        return {key: value.tolist() for key, value in out.items()}
    if how == "fail":
        with contextlib.suppress(ZeroDivisionError):
            d.update(dict.fromkeys(keys, number), lambda new, old: 1 // 0)
        return None
    with contextlib.suppress(KeyError), d.locked(*keys) as arrays:
        for array in arrays if len(keys) > 1 else (arrays,):
            array += number
        if how == "drop":
            raise KeyError
    return None


class _Model:
    """A plain dict with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values = {key: np.zeros(_SHAPES[key], int) for key in _KEYS}
        self.versions = dict.fromkeys(_KEYS, 1)

    def do(self, how, keys, number):
        with self.lock:
            out = None
            for key in keys:
                old = self.values[key]
                if how == "write":
                    self.values[key] = np.full_like(old, number)
                elif how == "update":
                    self.values[key] = _axpy(number, old)
                elif how == "locked":
                    self.values[key] = old + number
                else:
                    continue
                self.versions[key] += 1
            if how in ("read", "update"):
                out = {key: self.values[key].tolist() for key in keys}
            return out


class SharedDictMachine(st.RuleBasedStateMachine):
    """Whoever takes a step, and through whichever attachment: the outcome is that of the model."""

    spawned: subprocess.Popen[bytes] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.model = _Model()
        self.dicts = [SharedDict({key: np.zeros(_SHAPES[key], int) for key in _KEYS})]
        self.name = self.dicts[0].name

    @st.rule()
    def attach(self) -> None:
        if len(self.dicts) < 6:
            self.dicts.append(SharedDict.attach(self.name))

    @st.rule()
    def unpickle(self) -> None:
        if len(self.dicts) < 6:
            self.dicts.append(pickle.loads(pickle.dumps(self.dicts[0])))

    @st.rule(which=some.integers(0, 5))
    def close(self, which: int) -> None:
        if len(self.dicts) > 1:
            self.dicts.pop(which % len(self.dicts)).close()

    @st.rule()
    def prune(self) -> None:
        assert self.name not in ndshare.prune(persistent=True)

    @st.rule(
        where=some.sampled_from(("here", "here", "here", "thread", "fork", "spawned")),
        which=some.integers(0, 5),
        how=some.sampled_from(("read", "write", "update", "locked", "drop", "fail")),
        keys=_keys,
        number=_numbers,
    )
    def step(self, where: str, which: int, how: str, keys: list, number: int) -> None:
        d = self.dicts[which % len(self.dicts)]
        expected = self.model.do(how, keys, number)
        if where == "here":
            assert do(d, how, keys, number) == expected
        elif where == "thread":
            out = []
            thread = threading.Thread(target=lambda: out.append(do(d, how, keys, number)))
            thread.start()
            thread.join()
            assert out == [expected]
        elif where == "fork":

            def child() -> None:
                assert do(d, how, keys, number) == expected
                d.close()

            assert ended(forked(child)) == 0
        else:
            assert self._spawned(how, keys, number) == expected

    def _spawned(self, how: str, keys: list, number: int) -> object:
        process = type(self).spawned
        assert process is not None
        process.stdin.write(pickle.dumps((self.name, (how, keys, number))).hex().encode() + b"\n")
        process.stdin.flush()
        return pickle.loads(bytes.fromhex(process.stdout.readline().decode()))

    @st.rule(number=_numbers, counts=some.lists(some.integers(1, 4), min_size=2, max_size=3))
    def concurrently(self, number: int, counts: list[int]) -> None:
        """Updates that commute, by threads and forks at once."""
        d = self.dicts[0]

        def add(times: int) -> None:
            for _ in range(times):
                d.update(dict.fromkeys(_KEYS, number), lambda new, old: old + new, atomic=times % 2 == 0)

        pid = forked(lambda: add(counts[0]))
        threads = [threading.Thread(target=add, args=(times,)) for times in counts[1:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended(pid) == 0
        for _ in range(sum(counts)):
            self.model.do("locked", _KEYS, number)

    @st.invariant()
    def everybody_sees_the_model(self) -> None:
        for d in self.dicts:
            for key, value in d.read().items():
                assert (value == self.model.values[key]).all()
                assert (d.view(key) == self.model.values[key]).all()
                assert d.version(key) == self.model.versions[key]

    def teardown(self) -> None:
        for d in self.dicts:
            d.close()
        assert self.name not in [info.name for info in files.infos()]


def test_shared_dict_behaves_as_a_dict_with_a_lock():
    """The machine above, with one spawned process for all its runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    SharedDictMachine.spawned = process
    try:
        st.run_state_machine_as_test(
            SharedDictMachine,
            settings=hypothesis.settings(
                max_examples=25, stateful_step_count=30, deadline=None, database=None, print_blob=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )  # fmt: skip
    finally:
        SharedDictMachine.spawned = None
        process.communicate()
    assert process.returncode == 0
