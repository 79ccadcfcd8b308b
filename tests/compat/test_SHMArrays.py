"""ndshare.compat.SHMArrays keeps what callers of SHMArrays rely on, and has not its faults."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ndshare.compat.SHMArrays import SHMArrays, partition_sizes, split_dicts, var_spec

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_README = """
from ndshare.compat.SHMArrays import SHMArrays
from collections import OrderedDict
import numpy as np

array_dict = OrderedDict([(k,np.random.randn(10,10)) for k in range(10)])
shm_array = SHMArrays(array_dict)
keys = shm_array.get_keys()

shm_array2 = SHMArrays(array_dict,keys=keys)

new_arrays = array_dict
read_vals = shm_array2.read_arrays(new_arrays)
results = shm_array2.update_arrays(new_arrays,lambda new,old: 0.1*new + 0.9*old)
for k in range(10):
    assert np.allclose(results[k], array_dict[k]) and np.allclose(read_vals[k], array_dict[k])

# the gradient descent example, in several processes
import multiprocessing
import sys

state = OrderedDict([("x", np.array([4.0, -2.0]))])
state_shm = SHMArrays(state)
keys = state_shm.get_keys()
alpha, iters = 0.05, 100

def grad(state):
    return OrderedDict([("x", 2 * state["x"])])

def work(keys, state):
    state_shm = SHMArrays(state,keys=keys)
    for i in range(iters):
        gradient = grad(state)
        state = state_shm.update_arrays(gradient,lambda grad,state: state - alpha*grad)

processes = [multiprocessing.get_context("fork").Process(target=work, args=(keys, state)) for _ in range(2)]
for process in processes: process.start()
for process in processes: process.join()
assert all(process.exitcode == 0 for process in processes)
assert abs(state_shm.read_arrays()["x"]).max() < 1e-2
"""


def test_documented_example_runs_with_one_import_line_changed(run_script: RunScript) -> None:
    """The README's pieces, as one script without a main guard."""
    run_script(_README)


def test_documented_example_runs_unchanged_after_install(run_script: RunScript) -> None:
    """The same with the original's own import line."""
    head = "import ndshare.compat; ndshare.compat.install('SHMArrays')\n"
    run_script(head + _README.replace("from ndshare.compat.SHMArrays", "from SHMArrays"))


def _arrays() -> OrderedDict[object, np.ndarray]:
    return OrderedDict([("b", np.arange(4.0)), (2, np.ones((2, 3))), (("a", 1.5), np.zeros(5))])


@pytest.fixture
def shm() -> Iterator[SHMArrays]:
    """Return one of three arrays."""
    with SHMArrays(_arrays()) as made:
        yield made


def test_keep_keys_are_plain_and_attach_ignores_values(shm) -> None:
    """Named tuples of int that can be pickled; an equal-shaped dict is enough."""
    keys = pickle.loads(pickle.dumps(shm.get_keys()))
    assert [type(number) for key in keys for number in (key.memory_key, key.semaphore_key)] == [int, int]
    assert keys[0]._fields == ("memory_key", "semaphore_key")
    other = OrderedDict((key, np.full_like(value, 99)) for key, value in _arrays().items())
    with SHMArrays(other, keys=keys) as same:
        assert same.read_arrays()["b"].tolist() == [0, 1, 2, 3]
        same.write_arrays({**_arrays(), "b": np.full(4, 7.0)})
    assert shm.read_arrays()["b"].tolist() == [7, 7, 7, 7]
    with pytest.raises(ValueError, match="shapes"):
        SHMArrays({"b": np.zeros(5)}, keys=keys)


def test_keep_update_function_gets_new_and_old_and_its_result_is_cast_to_new(shm) -> None:
    """Stored and returned."""
    seen = []

    def update(new, old):
        seen.append((new.sum(), old.sum()))
        return new + old

    new = OrderedDict((key, np.ones_like(value)) for key, value in _arrays().items())
    new["b"] = np.ones(4, np.float32)
    results = shm.update_arrays(new, update)
    assert sorted(seen) == sorted([(4, 6), (6, 6), (5, 0)])
    assert results["b"].dtype == np.float32
    assert results["b"].tolist() == shm.read_arrays()["b"].tolist() == [1, 2, 3, 4]
    default = shm.update_arrays(new)
    assert np.allclose(default["b"], 0.1 + 0.9 * np.arange(1, 5))
    assert shm.add_updates({2: np.ones((2, 3))})[2].shape == (2, 3)


def test_keep_results_are_private_copies(shm) -> None:
    """Writing to them changes nothing."""
    for results in (
        shm.read_arrays(),
        shm.update_arrays(_arrays()),
        shm.update_arrays(_arrays(), lambda n, o: n),
    ):
        before = shm.read_arrays()["b"]
        results["b"][:] = -5
        assert np.array_equal(shm.read_arrays()["b"], before)
    given = _arrays()
    results = shm.update_arrays(given, lambda new, old: new)
    results["b"][:] = -5
    assert given["b"].tolist() == [0, 1, 2, 3]


def test_keep_results_are_private_whoever_has_what_the_function_returned(shm) -> None:
    """Something it has kept, the new value, the old one, a part, a list, a read-only array, another dtype."""
    kept = np.full(4, 3.0)
    frozen = np.full(4, 4.0)
    frozen.flags.writeable = False
    for update, expected in (
        (lambda new, old: kept, 3),
        (lambda new, old: new, 1),
        (lambda new, old: old, 1),
        (lambda new, old: np.full(9, 5.0)[2:6], 5),
        (lambda new, old: [6.0] * 4, 6),
        (lambda new, old: frozen, 4),
        (lambda new, old: np.full(4, 7, np.int16), 7),
        (lambda new, old: np.full((1, 4), 8.0)[0], 8),
    ):
        new = {"b": np.ones(4)}
        result = shm.update_arrays(new, update)["b"]
        assert result.tolist() == [expected] * 4
        assert result.dtype == np.float64
        result[:] = -5
        assert shm.read_arrays()["b"].tolist() == [expected] * 4
        assert (kept == 3).all()
        assert (frozen == 4).all()
        assert (new["b"] == 1).all()


def test_keep_shapes_of_new_may_differ_if_the_size_does_not(shm) -> None:
    """The function gets both in the shape of `new`, and so is the result."""
    result = shm.update_arrays({"b": np.ones((2, 2))}, lambda new, old: new + old)["b"]
    assert result.tolist() == [[1, 2], [3, 4]]
    assert shm.read_arrays()["b"].tolist() == [1, 2, 3, 4]


def test_keep_partitions_follow_element_counts() -> None:
    """One if the largest is small; else greedy by size, none above the largest."""
    sizes = [30000, 10000, 25000, 4000, 100]
    assert [part.tolist() for part in partition_sizes(sizes)] == [[0], [2], [1, 3, 4]]
    assert len(partition_sizes([19_999] * 5)) == 1
    assert sorted(np.concatenate(partition_sizes([1, 2, 3], min_size=2)).tolist()) == [0, 1, 2]
    pairs = OrderedDict([("a", 1), ("b", 2), ("c", 3)])
    assert split_dicts(pairs, [[2], [0, 1]]) == [OrderedDict(c=3), OrderedDict(a=1, b=2)]
    with SHMArrays(OrderedDict((n, np.zeros(n)) for n in sizes)) as shm:
        assert [part.tolist() for part in shm.partitioning] == [[0], [2], [1, 3, 4]]
        assert len(shm.get_keys()) == 3


def test_keep_attributes(shm) -> None:
    """Specs, dtype, size."""
    assert shm.specs["b"] == var_spec(4, (4,), np.dtype("f8"))
    assert shm.store_dtype == np.dtype("f8")
    assert shm.total_size == 15 * 8
    with SHMArrays(_arrays(), store_dtype=np.dtype("f4")) as other:
        assert other.total_size == 15 * 4


def test_keep_partitions_pipeline(run_script: RunScript) -> None:
    """While one process is at the second partition, another is at the first: each waits for the other."""
    script = """
        import os, select
        import numpy as np
        from ndshare.compat.SHMArrays import SHMArrays
        d = {"a": np.zeros(30000), "b": np.zeros(29000)}
        shm = SHMArrays(d)
        assert len(shm.partitioning) == 2
        at_b, say_at_b = os.pipe()
        at_a, say_at_a = os.pipe()
        def said(end):
            assert select.select([end], [], [], 30)[0], "the other process cannot begin its partition"
            os.read(end, 1)
        def first(new, old):
            if len(new) == 29000:
                os.write(say_at_b, b"x")
                said(at_a)  # holds "b" until the other one is at "a"
            return old + 1
        def second(new, old):
            if len(new) == 30000:
                os.write(say_at_a, b"x")
            return old + 1
        if (pid := os.fork()) == 0:
            shm.update_arrays(d, first)
            os._exit(0)
        said(at_b)
        shm.update_arrays(d, second)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert all((a == 2).all() for a in shm.read_arrays().values())
        shm.close()
    """
    run_script(textwrap.dedent(script))


def test_keep_any_hashable_keys_in_the_order_of_the_input(shm) -> None:
    """Output has the order of the first dict."""
    assert list(shm.read_arrays()) == list(_arrays())
    assert list(shm.update_arrays(dict(reversed(_arrays().items())))) == list(_arrays())
    key = object()
    with SHMArrays({key: np.ones(2), frozenset({1}): np.ones(1)}) as other:
        assert other.read_arrays()[key].tolist() == [1, 1]


def test_gone_exception_in_update_func_leaves_the_semaphore(shm) -> None:
    """It is raised, the value is as before, and the next update works."""
    with pytest.raises(ZeroDivisionError):
        shm.update_arrays(_arrays(), lambda new, old: 1 // 0)
    assert shm.read_arrays()["b"].tolist() == [0, 1, 2, 3]
    assert shm.add_updates(_arrays())["b"].tolist() == [0, 2, 4, 6]


def test_gone_death_leaves_the_semaphore(shm) -> None:
    """Nothing it had begun counts, and nobody waits."""
    if (pid := os.fork()) == 0:
        shm.update_arrays(_arrays(), lambda new, old: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert shm.add_updates(_arrays())["b"].tolist() == [0, 2, 4, 6]


def test_gone_everything_is_stored_in_the_first_dtype() -> None:
    """Each array keeps its own: neither digits nor nanoseconds are lost."""
    arrays = {
        "f4": np.ones(2, "f4"),
        "f8": np.full(2, 1 / 3),
        "i8": np.full(2, 2**53 + 1),
        "c": np.full(1, 1j),
    }
    with SHMArrays(arrays) as shm:
        for key, value in shm.read_arrays().items():
            assert value.dtype == arrays[key].dtype
            assert np.array_equal(value, arrays[key])


def test_gone_new_is_matched_by_position(shm) -> None:
    """Keys count, some are enough, unknown ones are an error."""
    assert list(shm.update_arrays({2: np.full((2, 3), 4.0)}, lambda new, old: new)) == [2]
    assert shm.read_arrays()[2].sum() == 24
    assert shm.read_arrays()["b"].tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        shm.update_arrays({"other": np.zeros(4)})


def test_gone_segments_outlive_the_program(run_script: RunScript) -> None:
    """The last one who closes, or ends, removes them."""
    script = """
        import os
        import numpy as np
        from ndshare.compat.SHMArrays import SHMArrays
        before = set(os.listdir("/dev/shm"))
        shm = SHMArrays({"a": np.zeros(1000)})
        print(shm.get_keys()[0].memory_key)
    """
    number = run_script(textwrap.dedent(script)).stdout.strip()
    assert not [name for name in os.listdir("/dev/shm") if f"SHMArrays-{number}" in name]


def test_gone_reads_and_writes_are_not_atomic(run_script: RunScript) -> None:
    """What is written together is read together, over all partitions."""
    script = """
        import os, signal
        import numpy as np
        from ndshare.compat.SHMArrays import SHMArrays
        d = {n: np.zeros(30000 + n) for n in range(4)}
        shm = SHMArrays(d)
        assert len(shm.partitioning) == 4
        if (pid := os.fork()) == 0:
            for value in range(1, 10**9):
                shm.write_arrays({key: np.full(a.shape, value) for key, a in d.items()})
        seen = set()
        for _ in range(200):
            values = [np.unique(a).tolist() for a in shm.read_arrays().values()]
            assert all(value == values[0] and len(value) == 1 for value in values), values
            seen.add(values[0][0])
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        assert len(seen) > 1
        shm.close()
    """
    run_script(textwrap.dedent(script))


_COPIES = """
import sys
import numpy as np
import ndshare
from ndshare.compat.SHMArrays import SHMArrays

count, nbytes = int(sys.argv[1]), 64_000_000
arrays = {key: np.ones(nbytes // 8 // count) for key in range(count)}
shm = SHMArrays(arrays)

def resident(name):
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith(name)]
    return int(line.split()[1]) * 1024

def taken(call, *args):
    "New memory while it runs, at most, in copies of the arrays; large blocks that are taken, per array."
    for _ in range(3):
        call(*args)  # from now on both slots of every array have pages
    ndshare.trim()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak of resident memory begins anew
    before, stats = resident("VmRSS"), ndshare.stats()
    result = call(*args)
    now = ndshare.stats()
    blocks = now.fresh + now.recycled - stats.fresh - stats.recycled
    return (resident("VmHWM") - before) / nbytes, blocks / count

def in_place(new, old):
    return np.add(new, old, out=old)

def fresh(new, old):
    return new + old

def fresh_part(new, old):
    return np.concatenate([new, old])[: len(new)]

for call, *args, memory, blocks in [
    (shm.write_arrays, arrays, 0, 0),
    (shm.read_arrays, 1, 0),  # straight into ordinary memory
    (shm.update_arrays, arrays, in_place, 1, 1),  # `old`, which becomes the result
    (shm.update_arrays, arrays, fresh, 1 + 1 / count, 2),  # and what the function makes
    (shm.update_arrays, arrays, fresh_part, None, 3),  # the yardstick moves: a part is copied once
]:
    rise, seen = taken(call, *args)
    assert seen == blocks, (call, args, rise, seen)
    assert memory is None or rise < memory + 0.2, (call, args, rise, seen)
shm.close()
"""


@pytest.mark.parametrize("count", [1, 4])
def test_gone_several_full_copies_per_update(run_script: RunScript, count: int) -> None:
    """One copy out of shared memory and one into it; no other, counted by blocks and by resident pages."""
    run_script(_COPIES, str(count))


def test_gone_segments_are_world_writable(shm) -> None:
    """Mode 0600."""
    [name] = [n for n in os.listdir("/dev/shm") if f"SHMArrays-{shm.get_keys()[0].memory_key}" in n]
    assert stat.S_IMODE(os.stat(f"/dev/shm/{name}").st_mode) == 0o600


def test_gone_python_2_only() -> None:
    """It runs on Python 3."""
    assert sys.version_info >= (3, 11)
