"""ndshare.compat.npshmex keeps what callers of npshmex rely on."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ndshare.compat import npshmex

RunScript = Callable[..., subprocess.CompletedProcess[str]]


class Wrapper:
    """Something with an array in it."""

    def __init__(self, name, data):
        self.name = name
        self.data = data


class Derived(Wrapper):
    """Found by isinstance."""


@pytest.fixture
def registered() -> Iterator[None]:
    """Register the wrapper for a test."""
    npshmex.register_array_wrapper(Wrapper, "data")
    yield
    npshmex._array_wrappers.clear()


@pytest.fixture
def ex() -> Iterator[npshmex.ProcessPoolExecutor]:
    """Return an executor."""
    with npshmex.ProcessPoolExecutor(2) as made:
        yield made


def add_one(x):
    """The README's."""
    return x + 1


def square(x):
    """Of npshmex's own tests."""
    return x**2


def square_wrapper(w):
    """Change the array of a wrapper."""
    w.data = w.data**2
    return w


def two_arrays(x):
    """Return a dict of results."""
    return {"sum": x.sum(keepdims=True), "twice": 2 * x, "name": "two"}


_README = """
import numpy as np
from ndshare.compat.npshmex import ProcessPoolExecutor

def add_one(x):
    return x + 1

ex = ProcessPoolExecutor()
big_data = np.ones(int(2e7))

f = ex.submit(add_one, big_data)
print(f.result()[0])           # 2.0
"""

_OWN_TESTS = """
from ndshare.compat import npshmex
from ndshare.compat.npshmex import *
import numpy as np
import os

def left():
    return [name for name in os.listdir("/dev/shm") if name.startswith("npshmex")]

def square(x):
    return x ** 2

def square_2(bla):
    assert bla['y'] == 'something'
    return dict(x=bla['x']**2, y=bla['y'])

def nop(x):
    return x

class Wrapper:
    def __init__(self, bla, data):
        self.bla = bla
        self.data = data

def square_wrapper(w):
    w.data = w.data**2
    return w

before = left()
with ProcessPoolExecutor() as ex:
    f = ex.submit(square, np.arange(10))
    assert f.result().sum() == 285
    assert left() == before

    x = shm_put(np.arange(10))
    f = ex.submit(square, x)
    assert f.result().sum() == 285
    assert len(left()) == len(before) + 1
    assert shm_pop(x, keep=False).sum() == 45
    assert left() == before

    inp = dict(x=np.arange(10), y='something')
    result = ex.submit(square_2, inp).result()
    assert isinstance(result, dict)
    assert result['x'].sum() == 285
    assert result['y'] == 'something'
    assert len(result) == 2

    x = np.zeros(2, dtype=[('a', float), ('b', float)])
    x[0]['a'] = 42
    assert ex.submit(nop, x).result()[0]['a'] == 42

    register_array_wrapper(Wrapper, 'data')
    w = ex.submit(square_wrapper, Wrapper(42, np.arange(10))).result()
    assert w.bla == 42 and isinstance(w, Wrapper)
    np.testing.assert_array_equal(w.data, np.arange(10)**2)
"""


def test_documented_example_runs_with_one_import_line_changed(run_script: RunScript) -> None:
    """The synopsis, without a main guard."""
    assert run_script(_README, interpreter_args=("-W", "error")).stdout == "2.0\n"


def test_documented_example_runs_unchanged_after_install(run_script: RunScript) -> None:
    """The same with the original's own import line."""
    head = "import ndshare.compat; ndshare.compat.install('npshmex')\n"
    source = _README.replace("from ndshare.compat.npshmex", "from npshmex").replace("2e7", "2e4")
    assert run_script(head + source).stdout == "2.0\n"


def test_tests_of_the_original_pass(run_script: RunScript) -> None:
    """What npshmex's own test file states."""
    run_script(_OWN_TESTS)


# ---------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("array", "kind"), [(np.arange(3), "data"), (np.zeros(2, [("a", "i4"), ("b", "f8")]), "sdata")]
)
@pytest.mark.parametrize("temp", [False, True])
def test_keep_keys_look_so(array, kind: str, temp: bool) -> None:
    """Scheme, kind, sixteen characters, ending."""
    key = npshmex.shm_put(array, temp=temp)
    assert re.fullmatch(rf"shm://npshmex_{kind}_[A-Z0-9]{{16}}_{'TEMP' if temp else ''}", key)
    assert npshmex.is_shmkey(key)
    assert not npshmex.is_shmkey("shm://other")
    assert not npshmex.is_shmkey(array)
    npshmex.shm_del(key)


def test_keep_wrapper_keys(registered) -> None:
    """A wrapper has a key of its own kind and one for its array; both go together."""
    before = set(os.listdir("/dev/shm"))
    key = npshmex.shm_put(Wrapper("w", np.arange(3)), temp=True)
    assert key.startswith("shm://npshmex_wrapper_")
    assert len(set(os.listdir("/dev/shm")) - before) == 2
    popped = npshmex.shm_pop(key)
    assert (popped.name, popped.data.tolist()) == ("w", [0, 1, 2])
    key = npshmex.shm_put(Wrapper("w", np.arange(3)))
    npshmex.shm_del(key)


def put_in_worker(name):
    """Put a wrapper under a key, in a worker: it has to know that it is one."""
    return npshmex.is_shmable(Derived(name, np.arange(3))), npshmex.shm_put(Derived(name, np.arange(4)))


def test_keep_wrappers_are_known_in_workers(registered) -> None:
    """Registered before the workers start, as in npshmex; and what is registered later, too."""
    with npshmex.ProcessPoolExecutor(1) as executor:
        known, key = executor.submit(put_in_worker, "w").result()
        assert known
        assert key.startswith("shm://npshmex_wrapper_")
        popped = npshmex.shm_pop(key, keep=False)
        assert (popped.name, popped.data.tolist()) == ("w", [0, 1, 2, 3])
        npshmex.register_array_wrapper(Later, "values")
        assert executor.submit(npshmex.is_shmable, Later()).result()


class Later:
    """Registered when the workers run."""

    values = np.arange(3)


def test_keep_key_as_argument_arrives_as_array_and_survives(ex) -> None:
    """Positional and by name; as often as wanted."""
    key = npshmex.shm_put(np.arange(4))
    assert ex.submit(add_one, key).result().tolist() == [1, 2, 3, 4]
    assert ex.submit(add_one, x=key).result().tolist() == [1, 2, 3, 4]
    assert npshmex.shm_pop(key, keep=False).tolist() == [0, 1, 2, 3]


def test_keep_temp_keys_end_with_the_first_pop_unless_kept(ex) -> None:
    """And others survive it unless told otherwise."""
    key = npshmex.shm_put(np.arange(4), temp=True)
    assert npshmex.shm_pop(key, keep=True).sum() == 6
    assert ex.submit(add_one, key).result().sum() == 10
    with pytest.raises(FileNotFoundError):
        npshmex.shm_pop(key)
    key = npshmex.shm_put(np.arange(4))
    assert npshmex.shm_pop(key).sum() == 6
    assert npshmex.shm_pop(key, keep=False).sum() == 6
    with pytest.raises(FileNotFoundError):
        npshmex.shm_del(key)


def test_keep_pop_copies_nothing() -> None:
    """Who pops the same key sees the same memory, also after the key is gone."""
    key = npshmex.shm_put(np.zeros(3))
    one, other = npshmex.shm_pop(key), npshmex.shm_pop(key, keep=False)
    one[:] = 5
    assert other.tolist() == [5, 5, 5]
    assert type(one) is np.ndarray


def write_through(x):
    """Write to what a key stands for."""
    x[0] = 99
    return os.getpid()


def test_keep_workers_attach_to_kept_keys(ex) -> None:
    """What a worker writes there, others see."""
    key = npshmex.shm_put(np.zeros(3))
    mine = npshmex.shm_pop(key)
    assert ex.submit(write_through, key).result() != os.getpid()
    assert mine[0] == 99
    npshmex.shm_del(key)


def put_again(x):
    """Return a key, and one in a dict."""
    return {"key": npshmex.shm_put(x, temp=True)}


def put_one(x):
    """Return a key."""
    return npshmex.shm_put(x, temp=True)


def test_keep_keys_in_results_are_unpacked_before_set_result(ex) -> None:
    """Callbacks see arrays."""
    seen: list[object] = []
    future = ex.submit(put_one, np.arange(3))
    future.add_done_callback(lambda done: seen.append(done.result()))
    assert future.result().tolist() == [0, 1, 2]
    assert ex.submit(put_again, np.arange(3)).result()["key"].tolist() == [0, 1, 2]
    ex.shutdown()
    assert [type(x) for x in seen] == [np.ndarray]


# ---------------------------------------------------------------------- results


def test_keep_results_are_arrays_wrappers_or_dicts_and_writable(ex, registered) -> None:
    """Found by isinstance, so that derived classes count."""
    x = np.arange(200_000.0)
    result = ex.submit(add_one, x).result()
    result += 1
    assert result[-1] == 200_001.0
    wrapped = ex.submit(square_wrapper, Derived("d", x)).result()
    assert type(wrapped) is Derived
    wrapped.data[0] = 7
    results = ex.submit(two_arrays, x).result()
    assert results["name"] == "two"
    results["twice"][:] = 0
    assert (x == np.arange(200_000.0)).all()
    assert npshmex.is_shmable(Derived("d", x))
    assert not npshmex.is_shmable([x])


def key_as_it_is(key):
    """Return what arrives."""
    return key


def test_keep_both_options_off_is_stock_behaviour(ex) -> None:
    """Keys stay strings then."""
    key = npshmex.shm_put(np.arange(3))
    assert ex.submit(key_as_it_is, key, shm_input=False, shm_output=False).result() == key
    assert ex.submit(add_one, np.arange(3), shm_input=False, shm_output=False).result().sum() == 6
    npshmex.shm_del(key)


def test_keep_arguments_are_read_by_submit(ex) -> None:
    """A buffer may be filled anew at once."""
    buffer, futures = np.zeros(100_000), []
    for number in range(10):
        buffer[:] = number
        futures.append(ex.submit(np.max, buffer))
    assert [future.result() for future in futures] == list(range(10))


def test_keep_helpers() -> None:
    """Dtypes and objects as arrays of bytes, and back."""
    dtype = np.dtype([(("a title", "a"), "i4"), ("b", "f8", (2,))])
    assert np.dtype(npshmex.dtype_to_tuple(dtype)) == dtype
    assert npshmex.unpack_dtype(npshmex.pack_dtype(dtype)) == dtype
    assert npshmex.unpickle_from_array(npshmex.pickle_as_array({"a": 1})) == {"a": 1}
    assert issubclass(npshmex.Future, concurrent.futures.Future)
    result = npshmex.shm_wrap_f(two_arrays, npshmex.shm_put(np.arange(3), temp=True))
    assert npshmex.is_shmkey(result["twice"])
    assert npshmex.unshm(result)["twice"].tolist() == [0, 2, 4]
    assert result["sum"].tolist() == [3]
    assert npshmex.shm_wrap_f(add_one, np.arange(2), shm_out=False).tolist() == [1, 2]
    assert npshmex.unshm(5) == 5


def test_shm_clear_removes_what_no_live_process_holds() -> None:
    """Keys of a process that was killed go; those of this one and what somebody has attached stay."""
    script = (
        "import numpy as np, sys, time\nfrom ndshare.compat import npshmex\n"
        "for _ in range(3): print(npshmex.shm_put(np.ones(10)), flush=True)\ntime.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    theirs = [child.stdout.readline().strip() for _ in range(3)]
    mine = npshmex.shm_put(np.ones(3))
    npshmex.shm_clear()
    attached = npshmex.shm_pop(theirs[0])
    assert npshmex.shm_pop(theirs[1]).sum() == 10
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    npshmex.shm_clear()
    assert npshmex.shm_pop(mine).sum() == 3
    assert npshmex.shm_pop(theirs[0]).sum() == attached.sum() == 10
    for key in theirs[1:]:
        with pytest.raises(FileNotFoundError):
            npshmex.shm_pop(key)
    del attached
    npshmex.shm_clear(all=True)
    for key in (mine, theirs[0]):
        with pytest.raises(FileNotFoundError):
            npshmex.shm_pop(key)


def test_wrong_keys_and_things_are_refused(registered) -> None:
    """With an error that says what is allowed."""
    for wrong in ("shm://npshmex_../../etc_x_", "other", 3):
        with pytest.raises(ValueError, match="not a key"):
            npshmex.shm_pop(wrong)
    with pytest.raises(ValueError, match="register_array_wrapper"):
        npshmex.shm_put([1, 2])
    with pytest.raises(ValueError, match="Python objects"):
        npshmex.shm_put(np.array([{}]))


def test_keys_in_workers_of_scripts(run_script: RunScript) -> None:
    """A wrapper of a class of the script arrives under a key."""
    script = """
        import numpy as np
        from ndshare.compat import npshmex
        class Mine:
            def __init__(self, data):
                self.data = data
        npshmex.register_array_wrapper(Mine, "data")
        def total(w):
            return w.data.sum()
        with npshmex.ProcessPoolExecutor(1) as ex:
            key = npshmex.shm_put(Mine(np.arange(4)), temp=True)
            assert ex.submit(total, key).result() == 6
    """
    run_script(textwrap.dedent(script))
