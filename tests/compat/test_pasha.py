"""ndshare.compat.pasha keeps what callers of pasha rely on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare.compat import pasha as psh
from ndshare.compat.pasha import context, functor
from tests import seed_programs

_CONTEXTS = [psh.SerialContext, psh.ThreadContext, psh.ProcessContext]
RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def fresh_default():
    """Forget the default context of other tests."""
    psh._default_context = None
    yield
    psh._default_context = None


def _collect(ctx, values):
    """Map and return the entries that kernels were called with, in order."""
    seen = []
    ctx.map(lambda *entry: seen.append(entry), values)
    return seen


# ---------------------------------------------------------------------- the documented program


def test_documented_example_runs_with_one_import_line_changed(run_script: RunScript) -> None:
    """The README's program, as a script without a main guard."""
    line = {"import pasha as psh": "from ndshare.compat import pasha as psh"}
    run_script(seed_programs.changed(seed_programs.PASHA, line), interpreter_args=("-W", "error"))


def test_documented_example_runs_unchanged_after_install(run_script: RunScript) -> None:
    """The same with the original's own import line."""
    head = "import ndshare.compat; ndshare.compat.install('pasha')\n"
    run_script(head + seed_programs.PASHA, interpreter_args=("-W", "error"))


# ---------------------------------------------------------------------- contexts


def test_keep_default_context_is_processes_made_lazily() -> None:
    """Nobody makes one before it is asked for, and it is the same one then."""
    assert psh._default_context is None
    ctx = psh.get_default_context()
    assert isinstance(ctx, psh.ProcessContext)
    assert psh.get_default_context() is ctx


def test_keep_positional_number_of_workers_and_isinstance() -> None:
    """`ProcessContext(n)` takes a number; callers ask for the class."""
    ctx = psh.ProcessContext(3)
    assert ctx.num_workers == 3
    assert isinstance(ctx, psh.ProcessContext)
    assert isinstance(ctx, context.PoolContext)
    assert not isinstance(psh.ThreadContext(3), psh.ProcessContext)


def test_keep_serial_context_ignores_its_arguments() -> None:
    """Whoever asks for seven workers gets one."""
    assert psh.SerialContext(num_workers=7).num_workers == 1
    assert psh.SerialContext(5).num_workers == 1


def test_keep_set_default_context_by_name_and_object() -> None:
    """Names take options; an unknown one is a ValueError."""
    psh.set_default_context("threads", num_workers=4)
    assert isinstance(psh.get_default_context(), psh.ThreadContext)
    assert psh.alloc(2, per_worker=True).shape == (4, 2)
    ctx = psh.SerialContext()
    psh.set_default_context(ctx)
    assert psh.get_default_context() is ctx
    with pytest.raises(ValueError, match="invalid map method"):
        psh.set_default_context("cluster")


@pytest.mark.parametrize("kind", _CONTEXTS)
def test_keep_kernel_returns_are_dropped_and_map_returns_none(kind) -> None:
    """There is nothing to gather."""
    assert kind(2).map(lambda worker_id, index, value: value, range(3)) is None


def test_options_make_map_return_a_report() -> None:
    """Whoever uses what pasha has not, gets the report of ndshare."""
    report = psh.ThreadContext(2).map(lambda *_: 1 / 0, range(3), on_error="collect")
    assert isinstance(report, ndshare.MapReport)
    assert len(report.errors) == 3


@pytest.mark.parametrize("kind", _CONTEXTS)
def test_keep_first_exception_is_raised_again(kind) -> None:
    """With its own type."""

    def kernel(worker_id, index, value):
        if index == 2:
            raise KeyError("not this one")

    with pytest.raises(KeyError, match="not this one"):
        kind(2).map(kernel, range(5))


@pytest.mark.parametrize("kind", _CONTEXTS)
def test_keep_worker_ids_are_below_num_workers(kind) -> None:
    """So that rows of per_worker arrays can be told apart."""
    ctx = kind(3)
    rows = ctx.alloc(1, int, per_worker=True, fill=0)

    def kernel(worker_id, index, value):
        rows[worker_id] += 1

    ctx.map(kernel, np.arange(100))
    assert rows.shape == (ctx.num_workers, 1)
    assert rows.sum() == 100


# ---------------------------------------------------------------------- state at the time of map


def test_keep_kernel_may_be_a_closure_over_anything() -> None:
    """A lock, a generator and a lambda: nothing of it is pickled."""
    guard, numbers, double = threading.Lock(), iter(range(100)), lambda x: 2 * x
    ctx = psh.ProcessContext(2)
    out = ctx.alloc(10, int)

    def kernel(worker_id, index, value):
        with guard:
            next(numbers)
            out[index] = double(value)

    ctx.map(kernel, range(10))
    assert out.tolist() == [2 * value for value in range(10)]


def test_keep_kernel_sees_the_state_at_the_time_of_map(run_script: RunScript) -> None:
    """Globals of the script and of modules it imports, changed between two maps."""
    script = """
        import ndshare.compat; ndshare.compat.install("pasha")
        import numpy as np, pasha as psh, os
        from tests.compat import pasha_user
        out = psh.alloc(4)
        state = {"a": 1}
        factor = 1
        def kernel(worker_id, index, value):
            out[index] = factor * state["a"] * pasha_user.SETTINGS["scale"] * value
        for factor, state["a"], pasha_user.SETTINGS["scale"] in [(1, 2, 3), (5, 6, 7)]:
            psh.map(kernel, np.ones(4))
            assert out.tolist() == [factor * state["a"] * pasha_user.SETTINGS["scale"]] * 4, out
        pasha_user.SETTINGS["scale"] = 11
        assert pasha_user.scaled(np.ones(3)).tolist() == [11] * 3
    """
    run_script(textwrap.dedent(script))


def test_keep_captured_arrays_are_private_to_each_worker(run_script: RunScript) -> None:
    """Scratch buffers, as EXtra uses them: each worker has its own, the caller's stays as it was."""
    script = """
        import warnings
        import numpy as np
        import ndshare
        from ndshare.compat import pasha as psh
        warnings.simplefilter("ignore", ndshare.SilentWriteWarning)
        for big in (10, 500_000):
            for extra in ([], {}):  # with a dict among its globals the kernel's workers are forked
                trace = np.zeros(big)
                out = psh.alloc(200)
                def kernel(worker_id, index, value):
                    trace[:] = value
                    assert (trace == value).all()
                    out[index] = trace.sum() + len(extra)
                psh.map(kernel, np.arange(200.0))
                assert np.array_equal(out, np.arange(200.0) * big)
                assert not trace.any()
    """
    run_script(textwrap.dedent(script))


def test_kernels_run_beside_threads_of_the_program(run_script: RunScript) -> None:
    """A fork is not safe then: warm workers, which find installed modules as the program does."""
    script = """
        import ndshare.compat; ndshare.compat.install("pasha")
        import threading
        import numpy as np, pasha as psh
        from tests.compat import pasha_user
        done = threading.Event()
        thread = threading.Thread(target=done.wait); thread.start()
        ctx = psh.ProcessContext(2)
        assert pasha_user.scaled(np.arange(5.0), ctx).tolist() == [0, 1, 2, 3, 4]
        out = ctx.alloc(5)
        class Mine(pasha_user.CountdownFunctor):
            pass
        def kernel(worker_id, index, value, word):
            out[index] = value
        report = ctx.map(kernel, Mine(pasha_user.Countdown(5)), retries=1)
        assert out.tolist() == [5, 4, 3, 2, 1] and report.start_method == "pool"
        done.set(); thread.join()
    """
    run_script(textwrap.dedent(script))


# ---------------------------------------------------------------------- alloc


@pytest.mark.parametrize("kind", _CONTEXTS)
def test_keep_alloc_defaults(kind) -> None:
    """float64, C order, a plain array; an int or any iterable for a shape."""
    ctx = kind(2)
    a = ctx.alloc(5)
    assert type(a) is np.ndarray
    assert a.dtype == np.float64
    assert a.shape == (5,)
    assert ctx.alloc(iter([2, 3])).shape == (2, 3)
    assert ctx.alloc((2, 3)).flags.c_contiguous
    assert ctx.alloc((2, 3), order="F").flags.f_contiguous
    with pytest.raises(ValueError, match="array shape must be specified"):
        ctx.alloc()


def test_keep_alloc_like_gives_shape_dtype_and_order_and_arguments_win() -> None:
    """Whatever is given beside `like` takes precedence over it."""
    like = np.zeros((3, 4), np.int16, order="F")
    a = psh.alloc(like=like)
    assert a.shape == (3, 4)
    assert a.dtype == np.int16
    assert a.flags.f_contiguous
    b = psh.alloc((5,), like=like)
    assert b.shape == (5,)
    assert b.dtype == np.int16
    c = psh.alloc(like=like, dtype="f4", order="C", fill=2)
    assert c.dtype == np.float32
    assert c.flags.c_contiguous
    assert (c == 2).all()
    assert psh.alloc(like=like[::2, ::2]).flags.c_contiguous


def test_keep_per_worker_axis_is_first_for_c_and_last_for_f() -> None:
    """One array per worker."""
    ctx = psh.ProcessContext(3)
    assert ctx.alloc((4, 5), per_worker=True).shape == (3, 4, 5)
    assert ctx.alloc((4, 5), per_worker=True, order="F").shape == (4, 5, 3)


def test_objects_can_be_allocated_for_threads_only() -> None:
    """Threads share objects; processes cannot."""
    assert psh.ThreadContext(2).alloc(2, object, fill="a").tolist() == ["a", "a"]
    with pytest.raises(TypeError, match="object"):
        psh.ProcessContext(2).alloc(2, object)


# ---------------------------------------------------------------------- functors


def test_keep_kernel_gets_worker_id_index_value() -> None:
    """In the order of the items, with one worker."""
    assert _collect(psh.SerialContext(), "abc") == [(0, 0, "a"), (0, 1, "b"), (0, 2, "c")]


@pytest.mark.parametrize("kind", _CONTEXTS)
def test_keep_kernel_gets_worker_id_and_whatever_the_functor_yields(no_registrations, kind) -> None:
    """``(worker_id, *entry)``, as for EXtra-data's index, train id and data."""

    class Trains(functor.Functor):
        def split(self, num_workers):
            return functor.gen_split_slices(6, n_parts=num_workers)

        def iterate(self, share):
            for index in range(*share.indices(6)):
                yield index, 1000 + index, {"x": index / 2}

    ctx = kind(2)
    out = ctx.alloc((6, 3))

    def kernel(worker_id, index, train_id, data):
        out[index] = worker_id < ctx.num_workers, train_id, data["x"]

    ctx.map(kernel, Trains())
    assert out.tolist() == [[1, 1000 + index, index / 2] for index in range(6)]


def test_keep_str_and_range_are_sequences() -> None:
    """And lists and tuples."""
    for value in ("abc", range(3), [1], (1, 2)):
        assert type(functor.Functor.try_wrap(value)) is psh.SequenceFunctor


def test_keep_shares_are_slices_of_nearly_equal_length() -> None:
    """``i * n // k``, empty ones allowed."""
    assert psh.SequenceFunctor("abcdefg").split(3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert psh.SequenceFunctor("a").split(3) == [slice(0, 0), slice(0, 0), slice(0, 1)]
    assert functor.gen_split_slices(7, part_len=3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    with pytest.raises(ValueError, match="must specify either part_len or n_parts"):
        functor.gen_split_slices(7)


def test_keep_axis_is_swapped_with_the_first() -> None:
    """Not moved: values of (2, 3, 4) along axis 2 have shape (3, 2)."""
    values = np.arange(24).reshape(2, 3, 4)
    entries = _collect(psh.SerialContext(), psh.NdarrayFunctor(values, axis=2))
    assert [value.shape for _, _, value in entries] == [(3, 2)] * 4
    assert np.array_equal(entries[1][2], np.swapaxes(values, 0, 2)[1])


def test_keep_dim_is_transposed_to_the_front() -> None:
    """Of a DataArray, with its labels."""
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(np.zeros((2, 3, 4)), dims=("x", "y", "z"))
    entries = _collect(psh.SerialContext(), psh.DataArrayFunctor(array, dim="z"))
    assert [entry[2].dims for entry in entries] == [("x", "y")] * 4
    assert type(functor.Functor.try_wrap(array)) is psh.DataArrayFunctor


def test_keep_precedence_instance_then_hook_then_registered(no_registrations) -> None:
    """A functor is its own; then the object's hook; then the registered classes."""

    class Liked(list):
        def _pasha_functor_(self):
            return mine

    mine = psh.SequenceFunctor("xyz")
    assert functor.Functor.try_wrap(mine) is mine
    assert functor.Functor.try_wrap(Liked()) is mine
    native = ndshare.SequenceFunctor("abc")
    assert functor.Functor.try_wrap(native) is native


@pytest.fixture
def no_registrations():
    """Undo what a test registers."""
    before = list(functor.Functor._functor_types)
    yield
    functor.Functor._functor_types[:] = before


def test_keep_subclassing_registers_and_two_matches_are_ambiguous(no_registrations) -> None:
    """A second class that claims lists makes them ambiguous."""

    class Claims(functor.Functor):
        @classmethod
        def wrap(cls, value):
            return cls() if isinstance(value, list) else None

    with pytest.raises(ValueError, match="default functor is ambiguous"):
        functor.Functor.try_wrap([1])
    assert type(functor.Functor.try_wrap((1,))) is psh.SequenceFunctor


def test_keep_no_match_is_an_error() -> None:
    """The type is named."""
    with pytest.raises(ValueError, match="no default functor for <class 'dict'>"):
        psh.map(lambda *_: None, {"a": 1})
    with pytest.raises(NotImplementedError):
        psh.MapContext(1).map(print, [1])


def test_functor_for_a_kind_that_ndshare_knows_is_not_ambiguous(no_registrations) -> None:
    """A program that brought its own functor of DataFrames goes on to use it."""
    pandas = pytest.importorskip("pandas")

    class FrameFunctor(functor.Functor):
        @classmethod
        def wrap(cls, value):
            return cls() if isinstance(value, pandas.DataFrame) else None

    assert type(functor.Functor.try_wrap(pandas.DataFrame({"a": [1]}))) is FrameFunctor
    assert functor.Functor.try_wrap(pandas.Series([1])) is not None  # what nobody claims, ndshare knows


def test_keep_labelled_libraries_are_not_imported(run_script: RunScript) -> None:
    """Only looked up if already there."""
    done = run_script(
        "import sys\nfrom ndshare.compat import pasha\npasha.SerialContext().map(print, [1])\n"
        "print('xarray' in sys.modules or 'extra_data' in sys.modules or 'pandas' in sys.modules)"
    )
    assert done.stdout.splitlines() == ["0 0 1", "False"]


# ---------------------------------------------------------------------- install and code of others


def test_install_third_party_module_runs(run_script: RunScript) -> None:
    """Subclasses of Functor, MapContext, the pool contexts; `_alloc` and `run_worker` of their own."""
    script = """
        import ndshare.compat; ndshare.compat.install("pasha")
        import numpy as np, pasha as psh
        from tests.compat import pasha_user as user
        import pasha.context, pasha.functor
        assert psh.context is pasha.context and issubclass(user.CountdownFunctor, psh.functor.Functor)

        for ctx in (user.LoudContext(), psh.ProcessContext(2), psh.ThreadContext(2), psh.SerialContext(),
                    user.CountingProcesses(2), user.CountingThreads(2), user.QuietPool(2)):
            out = ctx.alloc(10, int, fill=-1)
            def kernel(worker_id, index, value, word):
                assert word == "extra" and 0 <= worker_id < ctx.num_workers
                out[index] = value
            ctx.map(kernel, user.Countdown(10))
            assert out.tolist() == list(range(10, 0, -1)), (ctx, out)
            hooked = ctx.alloc(3)
            ctx.map(lambda worker_id, index, value: hooked.__setitem__(index, value), user.Hooked())
            assert hooked.tolist() == [10, 20, 30], ctx
            if isinstance(ctx, user.LoudContext):
                assert ctx.allocated[0] == ((10,), np.dtype(int), "C", -1)
            if isinstance(ctx, user.CountingProcesses):
                assert ctx.shares.sum() == 4
            if isinstance(ctx, user.CountingThreads):
                assert ctx.begun == 4

        out = np.zeros(6)
        user.OddLoop().map(lambda worker_id, index, value: out.__setitem__(index, 1), range(6))
        assert out.tolist() == [0, 1, 0, 1, 0, 1]
        psh.set_default_context(user.LoudContext())
        assert psh.alloc(3, per_worker=True).shape == (2, 3)
    """
    run_script(textwrap.dedent(script), interpreter_args=("-W", "error"))


def test_install_comes_too_late_after_the_original(run_script: RunScript, tmp_path: Path) -> None:
    """Modules that hold the original would go on with it: refused."""
    (tmp_path / "pasha.py").write_text("")
    script = """
        import pasha, ndshare.compat
        try:
            ndshare.compat.install("pasha")
        except ImportError as error:
            assert "imported already" in str(error)
        else:
            raise AssertionError
    """
    run_script(textwrap.dedent(script))


def test_install_of_an_unknown_name_is_refused() -> None:
    """The error names what there is."""
    from ndshare import compat

    with pytest.raises(ValueError, match="'pasha'"):
        compat.install("numpy")
    assert "numpy" in sys.modules


def test_keep_extra_data_entries_and_children_that_open_files_anew(run_script: RunScript) -> None:
    """KeyData and DataCollection after install: index, train id and data; what is inherited is closed first."""
    pytest.importorskip("h5py")
    script = """
        import ndshare.compat; ndshare.compat.install("pasha")
        import os, weakref
        import h5py, numpy as np, extra_data
        import pasha as psh
        from extra_data.tests import make_examples
        os.mkdir("run")
        make_examples.make_fxe_run("run", raw=True)
        for n in range(2, 16):
            os.remove(f"run/RAW-R0450-LPD{n:02}-S00000.h5")
        with h5py.File("run/RAW-R0450-DA01-S00000.h5", "r+") as file:
            file["CONTROL/SA1_XTD2_XGM/DOOCS/MAIN/beamPosition/ixPos/value"][:400] = np.arange(400)
        run = extra_data.RunDirectory("run", parallelize=False)
        key = run["SA1_XTD2_XGM/DOOCS/MAIN", "beamPosition.ixPos.value"]
        expected = key.ndarray()  # leaves the files open
        trace = {"n": 0}
        opened = [weakref.ref(file._file) for file in key.files]
        assert all(file() for file in opened)  # an h5py file is true while it is open
        parent = os.getpid()
        for ctx in (psh.SerialContext(), psh.ThreadContext(2), psh.ProcessContext(2)):
            ids, out = ctx.alloc(480, "u8"), ctx.alloc(480)
            def kernel(worker_id, index, train_id, data):
                trace["n"] += 1
                assert os.getpid() == parent or not any(file() for file in opened)
                ids[index] = train_id
                out[index] = data
            ctx.map(kernel, key)
            assert ids.tolist() == [int(t) for t in run.train_ids], ctx
            assert np.array_equal(out, expected), ctx
        few = run.select("SA1_XTD2_XGM/DOOCS/MAIN", "*")[:20]
        def kernel(worker_id, index, train_id, data):
            out[index] = -data["SA1_XTD2_XGM/DOOCS/MAIN"]["beamPosition.ixPos.value"]
        psh.map(kernel, few)
        assert np.array_equal(out[:20], -expected[:20])
    """
    run_script(textwrap.dedent(script))


def test_threads_that_wait_do_not_keep_kernels_from_what_they_inherit(run_script: RunScript) -> None:
    """Forked where the kernel needs it; a thread that works is named, with advice that can be followed."""
    script = """
        import ndshare.compat; ndshare.compat.install("pasha")
        import concurrent.futures, multiprocessing, threading, time
        import numpy as np, pasha as psh
        done = threading.Event()
        waiting = [threading.Thread(target=done.wait, daemon=True), threading.Thread(target=time.sleep, args=(5,), daemon=True)]
        for thread in waiting: thread.start()
        pool = concurrent.futures.ThreadPoolExecutor(2); pool.submit(abs, 1).result()
        queue, lock = multiprocessing.Queue(), multiprocessing.Lock()
        queue.put(-1)
        ctx = psh.ProcessContext(2)
        out = ctx.alloc(6)
        def kernel(worker_id, index, value):
            with lock:
                out[index] += value
            queue.put(index)
        assert ctx.map(kernel, range(6), retries=0).start_method == "fork"
        assert out.tolist() == list(range(6))
        assert sorted(queue.get(timeout=5) for _ in range(7)) == list(range(-1, 6))
        def plain(worker_id, index, value):
            out[index] = value
        assert ctx.map(plain, range(6), retries=0).start_method == "pool"  # which needs no fork
        def work():
            while not done.is_set():
                pass
        worker = threading.Thread(target=work, name="at work", daemon=True); worker.start()
        try:
            ctx.map(kernel, range(6))
        except TypeError as error:
            text = str(error)
        assert "'lock'" in text and "thread 'at work'" in text and 'ProcessContext(start="fork")' in text
        assert "Thread-" not in text  # those that wait
        assert psh.ProcessContext(2, start="fork").map(kernel, range(6), retries=0).start_method == "fork"
        assert sorted(queue.get(timeout=5) for _ in range(6)) == list(range(6))
        done.set(); worker.join(); waiting[0].join(); pool.shutdown()
        try:
            psh.ProcessContext(2, start="spawn")
        except ValueError as error:
            assert "'spawn'" in str(error)
        else:
            raise AssertionError
    """
    run_script(textwrap.dedent(script))


def test_files_of_h5py_are_opened_by_name_in_warm_workers(run_script: RunScript) -> None:
    """Files, groups and datasets, read-only, also while the caller writes; told in the report."""
    pytest.importorskip("h5py")
    script = """
        import os, threading
        import h5py, numpy as np
        from ndshare.compat import pasha as psh
        with h5py.File("a.h5", "w") as file:
            file["x"] = np.arange(8.0)
            file["group/y"] = np.full(8, 100.0)
        done = threading.Event()
        thread = threading.Thread(target=done.wait, daemon=True); thread.start()
        ctx = psh.ProcessContext(2)
        out = ctx.alloc(8)
        for mode in ("r", "r+"):
            with h5py.File("a.h5", mode) as file:
                x, group = file["x"], file["group"]
                def kernel(worker_id, index, value):
                    out[index] = x[index] + group["y"][index] + len(file["x"])
                report = ctx.map(kernel, range(8), retries=0)
                assert out.tolist() == [108 + k for k in range(8)]
                assert report.start_method == "pool" and report.reason.count("a.h5") == 1, report.reason
                assert "read-only" in report.reason
                if mode == "r+":
                    def write(worker_id, index, value):
                        file["x"][index] = 0
                    try:
                        ctx.map(write, range(8))
                    except (OSError, KeyError, TypeError) as error:
                        assert "item" in str(error.__notes__)
                    else:
                        raise AssertionError("written where nobody sees it")
                    assert x[:].tolist() == list(range(8))
        try:
            ctx.map(kernel, range(8))  # with files that are closed
        except (RuntimeError, TypeError, ValueError):
            pass
        else:
            raise AssertionError
        done.set(); thread.join()
    """
    run_script(textwrap.dedent(script))
