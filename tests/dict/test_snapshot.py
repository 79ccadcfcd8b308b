"""Snapshots on disk: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import random
import signal
import time

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from ndshare._dict import snapshot
from tests.dict.dict_tasks import ended, forked, running, until

pytestmark = pytest.mark.once

_ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    ("t", None): np.array("2020-02-02", "M8[D]"),
    1: np.zeros((0, 3)),
    "r": np.ones(2, [("x", "f4"), ("y", "S3")]),
    "e": np.array(["", ""], "S"),
}


@pytest.fixture
def path(tmp_path):
    """Where snapshots go."""
    return tmp_path / "state.snapshot"


def test_snapshot_is_written_and_loaded(path):
    """What close() and sync() write is what the next dict of that path begins with."""
    with SharedDict(_ARRAYS, path=path) as d:
        assert d.path == str(path)
        assert not path.exists()
        d["a"] = 5
        d.sync()
        with SharedDict.attach(d.name) as other:
            assert other.path == str(path)
            other["a"] = 6
            other.sync()
    for arrays in (None, _ARRAYS, {key: np.zeros_like(value) for key, value in reversed(_ARRAYS.items())}):
        with SharedDict(arrays, path=path) as d:
            assert (d["a"] == 6).all()
            for key in _ARRAYS.keys() - {"a"}:
                assert d[key].dtype == _ARRAYS[key].dtype
                assert d[key].tobytes() == _ARRAYS[key].tobytes()
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_snapshot_needs_a_path_and_the_same_arrays(path):
    """No path, no arrays, other arrays: errors that say so."""
    with SharedDict({"a": 1}) as d, pytest.raises(ValueError, match="has no path"):
        d.sync()
    with pytest.raises(TypeError, match="there is no snapshot at"):
        SharedDict(path=path)
    SharedDict({"a": np.zeros(3)}, path=path).close()
    with pytest.raises(ValueError, match=r"key 'a' is float64 \(3,\), not float64 \(4,\)"):
        SharedDict({"a": np.zeros(4)}, path=path)


def test_snapshot_that_cannot_be_written(path):
    """A directory that is gone: OSError; the dict is closed and removed all the same."""
    os.mkdir(path.parent / "gone")
    d = SharedDict({"a": 1}, path=path.parent / "gone" / "x")
    os.rmdir(path.parent / "gone")
    with pytest.raises(FileNotFoundError):
        d.sync()
    with pytest.raises(FileNotFoundError):
        d.close()
    assert d.closed
    with pytest.raises(FileNotFoundError):
        SharedDict.attach(d.name)


def test_snapshot_torn_or_damaged_is_refused(path):
    """Any byte that is wrong, any end that is missing: LayoutError, no value is used."""
    SharedDict(_ARRAYS, path=path).close()
    content = path.read_bytes()
    rng = random.Random(3)
    for number in range(400):
        if number % 2:
            changed = content[: rng.randrange(len(content))]
        else:
            at = rng.randrange(len(content))
            changed = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        path.write_bytes(changed)
        with pytest.raises(ndshare.LayoutError):
            SharedDict(_ARRAYS, path=path)
    path.write_bytes(content)
    SharedDict(path=path).close()


@pytest.mark.chaos
def test_snapshot_writer_killed_at_random(path, chaos_rng, chaos_rounds):
    """Killed while it writes, at any instant: the last whole snapshot is there, with equal values."""
    name = None
    last = 0.0
    for _ in range(40 * chaos_rounds):

        def write_all():
            with SharedDict({"a": np.zeros(20_000), "b": np.zeros(3)}, path=path) as d:
                value = d["b"][0]
                while True:
                    value += 1
                    d.write({"a": value, "b": value}, atomic=True)
                    d.sync()

        pid = forked(write_all)
        time.sleep(chaos_rng.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        ndshare.prune()
        if path.exists():
            saved = snapshot.load(str(path))
            assert (saved["a"] == saved["b"][0]).all()
            assert saved["b"][0] >= last
            last = saved["b"][0]
    print(f"{last:.0f} snapshots")
    assert last > 0
    assert name is None


def test_snapshot_of_several_writers_never_goes_back(path):
    """Several processes sync at once: a newer snapshot is never replaced by an older one."""
    with SharedDict({"a": np.zeros(1000)}, path=path) as d:
        d.sync()

        def count():
            with SharedDict.attach(d.name) as mine:
                while True:
                    mine.update({"a": 1}, lambda new, old: old + new)
                    mine.sync()

        last = 0.0
        with running(count, count, count):
            until(lambda: d["a"][0] > 5)
            for _ in range(100):
                value = snapshot.load(str(path))["a"]
                assert (value == value[0]).all()
                assert value[0] >= last
                last = value[0]


def test_snapshot_on_a_full_disk(path, run_script):
    """No room for the new snapshot: OSError, the old one is still there, no temporary file."""
    done = run_script(
        """
import os, resource, signal, sys
import numpy as np, ndshare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
d = ndshare.SharedDict({"a": np.zeros(100_000)}, path=sys.argv[1])
d.sync()
d["a"] = 5
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for use in (d.sync, d.close):
    try:
        use()
    except OSError as error:
        print(error.strerror)
print(d.closed, os.listdir(os.path.dirname(sys.argv[1])))
""",
        str(path),
    )
    assert done.stdout.splitlines()[:2] == ["File too large"] * 2
    assert "True" in done.stdout
    assert ".tmp" not in done.stdout
    with SharedDict(path=path) as d:
        assert (d["a"] == 0).all()
