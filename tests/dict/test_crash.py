"""Processes that die while they use a SharedDict: at every step of writing, and at any instruction."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from ndshare import SharedDict
from tests.dict import dict_tasks
from tests.dict.dict_tasks import (
    KEYS,
    accounts,
    check,
    ended,
    forked,
    is_locked,
    killed_at,
    running,
    transfer,
    until,
    work,
)

pytestmark = pytest.mark.once

_MOST_STEPS = 200  # more than any action has


def _move_locked(d):
    with d.locked("a", "c") as (a, c):
        a -= 5
        c += 5


def _move_update(d):
    d.update({"c": 5, "b": -5}, lambda new, old: old + new, atomic=True)


def _move_write(d):
    d.write({"a": 90, "b": 95, "c": 115}, atomic=True)


def _update_one(d):
    d.update({"single": 1}, lambda new, old: old + new)


def _locked_one(d):
    with d.locked("single") as single:
        single += 1


@pytest.mark.parametrize("action", [_move_locked, _move_update, _move_write, _update_one, _locked_one])
def test_shared_dict_killed_at_every_step(action):
    """Whatever step of writing is the last: readers see all or nothing, and the next writer works at once."""
    outcomes = []
    for steps in range(_MOST_STEPS):
        with SharedDict(accounts()) as d, SharedDict.attach(d.name) as watcher:
            before = {key: value[0] for key, value in d.read().items()}
            versions = {key: d.version(key) for key in d}
            status = ended(forked(lambda d=d, steps=steps: killed_at(d.name, steps, action)))
            assert status in (0, -signal.SIGKILL)
            for reader in (d, watcher):
                check(reader)
            after = {key: value[0] for key, value in d.read().items()}
            outcomes.append(after != before)
            changed = {key for key in d if after[key] != before[key]}
            assert {key for key in d if d.version(key) != versions[key]} == changed
            # Whoever comes next, with the same keys, others, or the same leader, has no trouble.
            for follow in (_move_update, _move_locked, _locked_one):
                with SharedDict.attach(d.name) as late:
                    check(late)
                    follow(late)
                check(watcher)
            assert watcher.read(["single"])["single"][0] == after["single"] + 1
            if status == 0:
                break
    else:
        pytest.fail("the action has more steps than expected")
    # Nothing before some step, all of it from there on.
    assert outcomes == sorted(outcomes)
    assert outcomes[-1]
    assert not outcomes[0]


def test_shared_dict_killed_after_commit_stays_committed():
    """A transaction that was committed but not finished survives the next ones of its leader."""
    for steps in range(_MOST_STEPS):
        with SharedDict(accounts()) as d:
            status = ended(forked(lambda d=d, steps=steps: killed_at(d.name, steps, _move_locked)))
            moved = d["c"][0] == 105
            # "a" led; now it leads others, while nobody touches "c".
            for _ in range(3):
                d.write({"a": d["a"], "b": d["b"]}, atomic=True)
                assert (d["c"][0] == 105) == moved
                check(d)
            if status == 0:
                return
    pytest.fail("the action has more steps than expected")


@pytest.mark.chaos
def test_shared_dict_killed_at_random(chaos_rng, chaos_rounds):
    """Updaters are killed at any instruction: no torn value, no lost sum, no lock that stays taken."""
    with SharedDict(accounts()) as d:

        def watch():
            with SharedDict.attach(d.name) as mine:
                while True:
                    check(mine)

        with running(watch) as watchers:
            for _ in range(50 * chaos_rounds):
                pids = [forked(lambda: work(d.name, chaos_rng.getrandbits(32))) for _ in range(2)]
                time.sleep(chaos_rng.uniform(0.0005, 0.01))
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                    assert ended(pid) == -signal.SIGKILL
                check(d)
                for key in KEYS:  # had at once: nobody living has it
                    d.update({key: 0}, lambda new, old: old + new, timeout=5)
                transfer(d, chaos_rng)
                d.update({"single": 1}, lambda new, old: old + new, timeout=5)
                check(d)
                for pid in watchers:
                    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "a reader saw a torn or mixed value"
        assert d.version("single") - 1 == d["single"][0]


def test_shared_dict_reader_is_bounded_under_writers_at_full_speed():
    """Readers of a large and of many small keys come to an end while writers never pause."""
    arrays = {"big": np.zeros(400_000), **{i: np.zeros(3) for i in range(200)}}
    with SharedDict(arrays) as d:

        def write_all(seed):
            with SharedDict.attach(d.name) as mine:
                i = 0
                while True:
                    i += 1
                    mine.write({"big": i}, atomic=True)
                    mine.write({i * seed % 200: i}, atomic=True)

        with running(lambda: write_all(1), lambda: write_all(7)):
            until(lambda: d.version("big") > 3)
            for _ in range(30):
                big = d["big"]
                assert (big == big[0]).all()
                everything = d.read()
                assert len(everything) == 201
                assert all((value == value.flat[0]).all() for value in everything.values())
            seen = d.version("big")
            until(lambda: d.version("big") > seen + 3)  # and readers stopped nobody


def test_shared_dict_snapshots_are_of_one_instant():
    """Two keys always written together are read together, whatever the writers do."""
    with SharedDict({"x": np.zeros(50), "y": np.zeros(50)}) as d:

        def write_both():
            with SharedDict.attach(d.name) as mine:
                i = 0
                while True:
                    i += 1
                    mine.write({"x": i, "y": i}, atomic=True)

        with running(write_both, write_both):
            until(lambda: d.version("x") > 3)
            for _ in range(2000):
                both = d.read(["y", "x"])
                assert (both["x"] == both["y"][0]).all()
                assert (both["y"] == both["y"][0]).all()


def test_shared_dict_killed_reader_stops_nobody():
    """A slow reader that is killed or stopped with a gate in its hands is no obstacle once it is gone."""
    with SharedDict({"big": np.zeros(300_000)}) as d:

        def write_all():
            with SharedDict.attach(d.name) as mine:
                i = 0
                while True:
                    i += 1
                    mine["big"] = i

        def read_all():
            with SharedDict.attach(d.name) as mine:
                while True:
                    mine.read()

        rng = random.Random(1)
        with running(write_all, write_all):
            for _ in range(20):
                seen = d.version("big")
                with running(read_all, read_all):
                    time.sleep(rng.uniform(0.001, 0.02))
                d.wait("big", seen + 5, timeout=60)


def test_shared_dict_holder_killed_frees_its_lock():
    """The lock of a process that is killed inside a block goes to who waits for it."""
    with SharedDict({"a": np.zeros(3)}) as d:

        def hold():
            mine = SharedDict.attach(d.name)
            with mine.locked("a") as a:
                a[:] = 7
                signal.pause()

        with running(hold) as (pid,):
            until(lambda: is_locked(d, "a"))
            with pytest.raises(TimeoutError, match=f"key 'a'.*process {pid} has it"):
                d.update({"a": 1}, lambda new, old: old + new, timeout=0.05)
            os.kill(pid, signal.SIGKILL)
            assert d.update({"a": 1}, lambda new, old: old + new)["a"].tolist() == [1, 1, 1]


def test_shared_dict_update_function_that_kills_its_process():
    """Death inside the function: nothing is stored, the lock is free."""
    with SharedDict(accounts()) as d:

        def die(new, old):
            old[:] = 5
            os.kill(os.getpid(), signal.SIGKILL)

        for atomic in (False, True):
            pid = forked(
                lambda atomic=atomic: SharedDict.attach(d.name).update(
                    dict.fromkeys(KEYS, 1), die, atomic=atomic
                )
            )
            assert ended(pid) == -signal.SIGKILL
            check(d)
            d.update(dict.fromkeys(KEYS, 0), lambda new, old: old + new, atomic=True, timeout=1)
    assert dict_tasks.N == 2000


def test_shared_dict_waiter_of_a_writer_that_dies_before_waking_anybody():
    """A value that was published is noticed, although its writer was killed before it could say so."""
    for steps in range(_MOST_STEPS):
        with SharedDict(accounts()) as d:
            found = []
            waiter = threading.Thread(target=lambda d=d, found=found: found.append(d.wait("single", 1, 60)))
            waiter.start()
            status = ended(forked(lambda d=d, steps=steps: killed_at(d.name, steps, _update_one)))
            if d.version("single") == 1:
                d["single"] = 5
            waiter.join()
            assert found == [2]
            if status == 0:
                return
    pytest.fail("the action has more steps than expected")
