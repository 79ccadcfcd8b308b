"""Threads that Python did not start: whose they are, and what a map does about them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.unsanitized]  # a sanitizer is a library with threads of its own

_BEGIN = """
import ctypes, os, signal, sys, threading, time
import numpy as np
import ndshare
from ndshare._system import fork_hazards, native_threads
signal.alarm(90)  # nothing here hangs

libc = ctypes.CDLL(None)
def start(function=libc.pause, name=None):
    thread = ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, function, None) == 0
    if name is not None:
        libc.pthread_setname_np(thread, name)
    time.sleep(0.05)
"""

_NAMED = """
#include <unistd.h>
void *wait_here(void *nothing) { for (;;) pause(); return nothing; }
"""


def test_process_without_other_threads_has_none(run_script) -> None:
    """Those of OpenBLAS, busy or not, of Python and of faulthandler count for nothing."""
    script = """
from ndshare._system import threads
for _ in range(50):
    threads._found.clear()
    np.ones((300, 300)) @ np.ones((300, 300))
    assert fork_hazards() == []
    assert native_threads().harmful == (), native_threads()
import faulthandler
faulthandler.dump_traceback_later(60)
thread = threading.Thread(target=time.sleep, args=(0.2,))
thread.start()
print(native_threads(), fork_hazards(parked=False))
thread.join()
faulthandler.cancel_dump_traceback_later()
"""
    assert run_script(_BEGIN + script).stdout == "Native(harmful=(), openmp=False) []\n"


def test_thread_of_a_library_is_named(run_script, tmp_path: Path) -> None:
    """The library on its stack, and the package that the library lies in."""
    package = tmp_path / "site-packages" / "fastlib"
    package.mkdir(parents=True)
    source, library = tmp_path / "fast.c", package / "_fast_core.so"
    source.write_text(_NAMED)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    script = f"""
start(ctypes.CDLL({str(library)!r}).wait_here)
start(name=b"unknown-pool")
print(native_threads().harmful)
"""
    found = run_script(_BEGIN + script).stdout
    assert found == "('_fast_core.so of fastlib', \"a thread named 'unknown-pool'\")\n"


def test_threads_that_harm_nobody_are_let_be(run_script) -> None:
    """By their names."""
    script = """
start(name=b"jemalloc_bg_thd")
start(name=b"ZMQbg/IO/0")
print(native_threads())
"""
    assert run_script(_BEGIN + script).stdout == "Native(harmful=(), openmp=False)\n"


_MAPS = """
import warnings
guard = threading.Lock()
out = ndshare.alloc(4)
def careful(w, i, v):
    with guard:
        out[i] = i
def plain(w, i, v):
    out[i] = i
def attempt(start, kernel):
    try:
        print(ndshare.ProcessContext(2, start=start).map(kernel, range(4)).start_method)
    except (TypeError, RuntimeError) as error:
        print(type(error).__name__, "strange-pool" in str(error))
"""


def test_maps_do_not_fork_beside_a_thread_of_a_library(run_script) -> None:
    """Refused by name where only a fork would do, else done in warm workers."""
    script = """
attempt("fork", careful), attempt("pool", careful)
start(name=b"strange-pool")
attempt("fork", plain), attempt("pool", careful), attempt("auto", careful), attempt("auto", plain)
import ndshare.compat.pasha as psh
psh.ProcessContext(2).map(lambda w, i, v: out.__setitem__(i, ord(os.sep)), range(4))
print(out)
"""
    assert run_script(_BEGIN + _MAPS + script).stdout.splitlines() == [
        "fork", "fork", "RuntimeError True", "TypeError True", "TypeError True", "pool", "[47. 47. 47. 47.]",
    ]  # fmt: skip


def test_executors_do_not_fork_beside_a_thread_of_a_library(run_script) -> None:
    """Refused where it was asked for, with advice that helps; warm workers run."""
    script = """
import multiprocessing
from ndshare import ProcessPoolExecutor as Executor
early = Executor(1, start="fork")
assert early.submit(abs, -1).result(30) == 1
late = Executor(1, start="fork")
start(name=b"strange-pool")
assert early.submit(abs, -2).result(30) == 2  # of the process that was forked before
for options in ({"start": "fork"}, {"initializer": str, "initargs": (multiprocessing.Lock(),)}):
    try:
        with (late if len(options) == 1 else Executor(1, **options)) as executor:
            executor.submit(abs, -1).result(30)
    except (RuntimeError, ndshare.InitializerError) as error:
        assert "strange-pool" in str(error) and 'start="fork"' not in str(error), error
    else:
        raise AssertionError
with Executor(1) as executor:
    print(executor.submit(abs, -3).result(30))
early.shutdown()
"""
    assert run_script(_BEGIN + script).stdout == "3\n"


def test_raw_threads_of_python_are_seen(run_script) -> None:
    """Also those that the module threading does not know."""
    script = """
import _thread
def wait():
    time.sleep(30)
_thread.start_new_thread(wait, ())
time.sleep(0.05)
attempt("pool", careful), attempt("fork", plain)
"""
    assert run_script(_BEGIN + _MAPS + script).stdout.splitlines() == ["TypeError False", "fork"]


def test_forked_workers_use_openmp_that_the_caller_has_used(run_script) -> None:
    """One thread each: the caller's team is not there."""
    pytest.importorskip("sklearn")
    script = """
from sklearn.cluster import KMeans
points = np.random.default_rng(0).random((3000, 8))
def fit():
    return KMeans(3, n_init=1, random_state=0).fit(points).inertia_
def kernel(w, i, v):
    out[i] = fit()
expected = fit()
for workers in (1, 2):
    out[:] = 0
    ndshare.ProcessContext(workers, start="fork", threads_per_worker=2).map(kernel, range(4))
    assert np.allclose(out, expected)
print(native_threads().harmful)
"""
    assert run_script(_BEGIN + _MAPS + script).stdout == "()\n"


def test_child_with_a_limit_starts_no_threads_of_openblas(run_script) -> None:
    """It is told how many to use; those beyond would spin beside what the child is there for."""
    script = """
from ndshare._system import blas_controller, limit_child
libraries = blas_controller()
used = [library for library in libraries.info() if library["internal_api"] == "openblas"]
assert used
(dynlib,) = [lib.dynlib for lib in libraries.lib_controllers if lib.internal_api == "openblas"]
if not hasattr(dynlib, "blas_server_avail"):  # that of NumPy 2.5 does not show it
    print("not told")
    sys.exit()
pid = os.fork()
if pid == 0:
    limit_child(libraries, {"blas": 1, "openmp": 1})
    assert {library["num_threads"] for library in libraries.info()} == {1}
    assert len(os.listdir("/proc/self/task")) == 1
    assert (np.ones((300, 300)) @ np.ones((300, 300)) == 300).all()
    assert len(os.listdir("/proc/self/task")) == 1
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    printed = run_script(_BEGIN + script).stdout
    if printed == "not told\n":
        pytest.skip("this OpenBLAS does not tell whether its threads are there")
    assert printed == "0\n"
