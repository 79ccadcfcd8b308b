"""What workers are like: numbers, threads, environment, caller's state, modules, retries, copies."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import ProcessPoolExecutor, RepeatedCopyWarning, WorkerDiedError
from tests import jobs

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_HANG_S = 60


@pytest.fixture
def executor() -> Iterator[ProcessPoolExecutor]:
    """Return an executor of two workers."""
    with ProcessPoolExecutor(2) as executor:
        yield executor


# ---------------------------------------------------------------------- random numbers


def test_random_streams_of_workers_differ() -> None:
    """No two workers draw the same numbers, from `np.random` or `random`; nor does a replaced one."""
    with ProcessPoolExecutor(3, max_tasks_per_child=4) as executor:
        drawn = [future.result(_HANG_S) for future in [executor.submit(jobs.draw) for _ in range(24)]]
    assert len({pid for pid, _, _ in drawn}) >= 6
    assert len({number for _, number, _ in drawn}) == 24
    assert len({number for _, _, number in drawn}) == 24


def test_random_streams_differ_with_preloaded_modules_and_default_rng() -> None:
    """A module that uses the generators while it is preloaded does not tie workers together."""
    with ProcessPoolExecutor(2, preload=["random", "numpy.random", "scipy.stats"]) as executor:
        drawn = [future.result(_HANG_S) for future in [executor.submit(jobs.draw) for _ in range(8)]]
        assert len({pid for pid, _, _ in drawn}) == 2
    assert len({number for _, number, _ in drawn}) == 8
    assert len({number for _, _, number in drawn}) == 8


# ---------------------------------------------------------------------- what initializers set


def test_what_an_initializer_has_set_stays(run_script: RunScript) -> None:
    """Whatever else changes at the caller; what itself changes there is followed, and the next executor is clean."""
    source = """
import gc, logging, os, sys, time, warnings, ndshare
def init():
    os.environ["MODE"] = "fast"
    del os.environ["GONE"]
    os.chdir("/")
    sys.path.insert(0, "/first")
    sys.path.append("/last")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.setrecursionlimit(4321)
    gc.set_threshold(11, 2, 2)
    os.nice(1)
    sys.argv.append("own")
    warnings.filterwarnings("ignore", message="mine")
    logging.getLogger("loud").setLevel(5)
def look():
    return [os.environ.get("MODE"), "GONE" in os.environ, os.getcwd(), sys.path[0], sys.path[-1],
            len(os.sched_getaffinity(0)), sys.getrecursionlimit(), gc.get_threshold(), os.nice(0), sys.argv[-1],
            any("mine" in str(f[1]) for f in warnings.filters), logging.getLogger("loud").level]
def changed(): return os.environ.get("OTHER"), "/new" in sys.path, warnings.filters[1][0], round(sys.getswitchinterval(), 3)
os.environ["GONE"] = "1"
before = look()
with ndshare.ProcessPoolExecutor(1, initializer=init) as executor:
    expected = executor.submit(look).result()
    assert expected[:5] == ["fast", False, "/", "/first", "/last"] and expected[5] == 1
    os.environ["OTHER"] = "1"
    assert executor.submit(look).result() == expected
    sys.path.append("/new")
    assert executor.submit(look).result() == expected
    warnings.simplefilter("once")
    assert executor.submit(look).result() == expected
    sys.setswitchinterval(0.025)
    time.sleep(0.05)
    logging.getLogger("quiet").setLevel(50)
    assert executor.submit(look).result() == expected
    assert executor.submit(changed).result() == ("1", True, "once", 0.025)
    os.environ["MODE"] = "slow"
    os.chdir("/usr")
    assert executor.submit(look).result() == ["slow", False, "/usr", *expected[3:]]
os.chdir(before[2])
del os.environ["MODE"]
with ndshare.ProcessPoolExecutor(1) as executor:
    now = executor.submit(look).result()
    assert [*now[:4], *now[5:]] == [*before[:4], *before[5:]], (now, before)
print("works")
"""
    done = run_script(source, timeout=_HANG_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


# ---------------------------------------------------------------------- time zone


def test_time_zone_is_the_callers(run_script: RunScript) -> None:
    """Of this executor and the next, in workers that are warm; what a task has set is put back."""
    source = """
import os, time, ndshare
def hour(): return time.localtime(0).tm_hour
def elsewhere():
    os.environ["TZ"] = "America/New_York"
    time.tzset()
for zone, expected in (("UTC", 0), ("Asia/Tokyo", 9), (None, None), ("UTC", 0)):
    if zone is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = zone
    time.tzset()
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(hour).result() == hour()
        assert zone is None or hour() == expected
        executor.submit(elsewhere).result()
        os.environ["TZ"] = "Asia/Kolkata"
        time.tzset()
        assert executor.submit(hour).result() == 5
print("works")
"""
    done = run_script(source, timeout=_HANG_S)
    assert (done.stdout, done.stderr) == ("works\n", "")


# ---------------------------------------------------------------------- snapshot


@pytest.mark.parametrize("retries", [0, 1])
def test_snapshot_at_submit_reads_arguments_at_once(tmp_path: Path, retries: int) -> None:
    """What is changed after `submit` does not change what the task sees."""
    with ProcessPoolExecutor(1, snapshot="submit", retries=retries) as executor:
        head = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
        jobs.wait_for((tmp_path / "started").exists)
        small, large, words = np.zeros(4), np.zeros(100_000), ["a"]
        futures = [executor.submit(jobs.capture, small, large, words=words) for _ in range(2)]
        small += 1
        large += 1
        words.append("b")
        rows = executor.map(np.sum, [small, large])
        small += 1
        large += 1
        (tmp_path / "go").touch()
        assert head.result(_HANG_S) == "went on"
        for future in futures:
            (first, second), keywords = future.result(_HANG_S)
            assert first.sum() == second.sum() == 0
            assert keywords == {"words": ["a"]}
        assert list(rows) == [4, 100_000]


def test_snapshot_at_start_reads_arguments_when_the_task_is_sent(tmp_path: Path) -> None:
    """The default, as the standard library's: what waits in the queue is not copied."""
    with ProcessPoolExecutor(1) as executor:
        head = executor.submit(jobs.touch_and_wait, tmp_path / "started", tmp_path / "go")
        jobs.wait_for((tmp_path / "started").exists)
        data = np.zeros(500_000)
        future = executor.submit(np.sum, data)
        data += 1
        (tmp_path / "go").touch()
        assert head.result(_HANG_S) == "went on"
        assert future.result(_HANG_S) == 500_000


def test_snapshot_at_submit_refuses_what_cannot_be_pickled_at_the_call() -> None:
    """The error is raised by `submit`, nothing is queued."""
    with ProcessPoolExecutor(1, snapshot="submit") as executor:
        with pytest.raises(TypeError, match="generator"):
            executor.submit(jobs.identity, (n for n in range(3)))
        assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


# ---------------------------------------------------------------------- threads


def _blas_threads() -> set[int]:
    import threadpoolctl

    return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}


def _thread_variables() -> set[str | None]:
    return {os.environ.get(f"{name}_NUM_THREADS") for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_per_worker_reach_blas_and_the_environment(threads: int) -> None:
    """What is asked for is what threadpoolctl finds, and what libraries loaded later read."""
    with ProcessPoolExecutor(1, threads_per_worker=threads) as executor:
        assert executor.submit(_blas_threads).result(_HANG_S) == {threads}
        assert executor.submit(_thread_variables).result(_HANG_S) == {str(threads)}
        assert float(executor.submit(np.linalg.det, np.eye(200)).result(_HANG_S)) == 1.0


def test_threads_by_default_divide_the_processors() -> None:
    """Workers times threads do not exceed the processors; a warm worker is changed for the next executor."""
    processors = len(os.sched_getaffinity(0))
    for workers in (processors, 1):
        with ProcessPoolExecutor(workers) as executor:
            expected = max(1, ndshare._system.default_workers() // workers)
            assert executor.submit(_blas_threads).result(_HANG_S) == {expected}


# ---------------------------------------------------------------------- env


def test_env_as_a_dict_reaches_all_workers(executor: ProcessPoolExecutor) -> None:
    """On top of the caller's environment, numbers included; others do not see it."""
    with ProcessPoolExecutor(2, env={"NDSHARE_TEST_A": "x", "NDSHARE_TEST_B": 5}) as other:
        assert list(other.map(jobs.environment, ["NDSHARE_TEST_A", "NDSHARE_TEST_B"])) == ["x", "5"]
        assert other.submit(jobs.environment, "PATH").result(_HANG_S) == os.environ["PATH"]
    assert executor.submit(jobs.environment, "NDSHARE_TEST_A").result(_HANG_S) is None
    assert "NDSHARE_TEST_A" not in os.environ


def _slow_environment(name: str) -> tuple[int, str | None]:
    import time

    time.sleep(0.05)
    return os.getpid(), os.environ.get(name)


@pytest.mark.parametrize("form", ["list", "function"])
def test_env_per_worker_gives_each_its_own(form: str) -> None:
    """A list or a function of the number: one mapping per worker, also when a worker is replaced."""
    env: Any = [{"NDSHARE_GPU": str(n)} for n in range(2)]
    if form == "function":
        env = lambda number: {"NDSHARE_GPU": str(number)}  # noqa: E731
    with ProcessPoolExecutor(2, env=env) as executor:
        futures = [executor.submit(_slow_environment, "NDSHARE_GPU") for _ in range(8)]
        found = dict(future.result(_HANG_S) for future in futures)
        assert sorted(found.values()) == ["0", "1"]
        assert isinstance(executor.submit(jobs.kill_self).exception(_HANG_S), WorkerDiedError)
        futures = [executor.submit(_slow_environment, "NDSHARE_GPU") for _ in range(8)]
        found = dict(future.result(_HANG_S) for future in futures)
        assert sorted(found.values()) == ["0", "1"]


def test_env_function_that_fails_fails_the_tasks_and_hangs_nobody() -> None:
    """An error in the user's function is the error of the tasks that need a worker."""

    def env(number: int) -> dict[str, str]:
        raise LookupError(f"no GPU for worker {number}")

    with ProcessPoolExecutor(2, env=env) as executor:
        futures = [executor.submit(jobs.add_one, n) for n in range(5)]
        for future in futures:
            with pytest.raises(LookupError, match="no GPU for worker"):
                future.result(_HANG_S)


def test_env_function_that_gives_nonsense_says_so() -> None:
    """What the function returns is checked as a mapping is."""
    bad: Any = lambda number: ["A=1"]  # noqa: E731
    with (
        ProcessPoolExecutor(1, env=bad) as executor,
        pytest.raises(TypeError, match=r"env must give a mapping .* got \['A=1'\]"),
    ):
        executor.submit(jobs.add_one, 1).result(_HANG_S)


def test_env_that_is_too_large_is_refused_at_once() -> None:
    """It would not reach a worker in one piece."""
    with pytest.raises(ValueError, match=r"env holds 100004 bytes; .* are allowed"):
        ProcessPoolExecutor(1, env={"A": "x" * 50_000, "BBB": "y" * 50_000})
    with ProcessPoolExecutor(1, env={"A": "x" * 25_000}) as executor:
        assert executor.submit(jobs.environment, "A").result(_HANG_S) == "x" * 25_000


def test_env_that_is_read_at_import_is_set_before_it() -> None:
    """``OMP_NUM_THREADS`` and the like are there before NumPy is loaded, and are what BLAS uses."""
    with ProcessPoolExecutor(1, env={"OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "7"}) as executor:
        assert executor.submit(_blas_threads).result(_HANG_S) == {2}
        assert executor.submit(jobs.environment, "OPENBLAS_NUM_THREADS").result(_HANG_S) == "2"
        one = executor.submit(_hash_of, "text").result(_HANG_S)
    with ProcessPoolExecutor(1, env={"PYTHONHASHSEED": "7"}) as executor:
        assert executor.submit(_hash_of, "text").result(_HANG_S) == one


def _hash_of(text: str) -> int:
    return hash(text)


# ---------------------------------------------------------------------- preload

_THREADED = """
import threading, time
beats = 0
def _beat():
    global beats
    while True:
        beats += 1
        time.sleep(0.005)
threading.Thread(target=_beat, daemon=True, name="heart").start()
def alive():
    before = beats
    deadline = time.monotonic() + 30
    while beats == before and time.monotonic() < deadline:
        time.sleep(0.005)
    return beats > before, [t.name for t in threading.enumerate()].count("heart")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return a function that writes a module to a directory on `sys.path`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        return path

    return write


def test_preload_imports_before_the_first_task(module: Callable[[str, str], Path]) -> None:
    """Modules are imported once, in the process that workers are forked from."""
    module("preloaded_once", "import os\nWHERE = os.getpid()\ndef where():\n    return WHERE\n")
    with ProcessPoolExecutor(2, preload=["preloaded_once"]) as executor:
        assert executor.submit(jobs.in_modules, "preloaded_once").result(_HANG_S)
        places = {
            executor.submit(jobs.import_and_call, "preloaded_once", "where").result(_HANG_S) for _ in range(6)
        }
        pids = {future.result(_HANG_S) for future in [executor.submit(jobs.nap_pid, 0.05) for _ in range(4)]}
        assert len(places) == 1
        assert not places & (pids | {os.getpid()})


def test_preload_of_a_module_that_starts_threads_gives_each_worker_its_own(
    module: Callable[[str, str], Path],
) -> None:
    """Its thread lives in every worker: it is imported there and not inherited."""
    module("preloaded_threads", _THREADED)
    with ProcessPoolExecutor(2, preload=["preloaded_threads"]) as executor:
        futures = [executor.submit(jobs.import_and_call, "preloaded_threads", "alive") for _ in range(4)]
        assert [future.result(_HANG_S) for future in futures] == [(True, 1)] * 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "preloaded_bad"),
        ("raise OSError('no licence')", "no licence"),
        ("import sys; sys.exit(4)", "preloaded_bad"),
    ],
    ids=["missing", "raises", "exits"],
)
def test_preload_that_fails_is_told(
    module: Callable[[str, str], Path], source: str | None, words: str
) -> None:
    """Tasks fail with the reason, quickly, instead of waiting for a worker that cannot start."""
    if source:
        module("preloaded_bad", source)
    with ProcessPoolExecutor(1, preload=["preloaded_bad"]) as executor:
        futures = [executor.submit(jobs.add_one, 1) for _ in range(3)]
        for future in futures:
            error = future.exception(_HANG_S)
            assert error is not None
            assert words in str(error), error


# ---------------------------------------------------------------------- retries


def _die_until(directory: Path, times: int) -> int:
    tries = len(list(directory.iterdir()))
    (directory / str(tries)).touch()
    if tries < times:
        jobs.kill_self()
    return tries


def test_retries_try_again_when_the_worker_died(tmp_path: Path) -> None:
    """So many times and no more; the number of attempts is told."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with ProcessPoolExecutor(2, retries=2) as executor:
        assert executor.submit(_die_until, tmp_path / "a", 2).result(_HANG_S) == 2
        with pytest.raises(WorkerDiedError, match="tried 3 times") as caught:
            executor.submit(_die_until, tmp_path / "b", 5).result(_HANG_S)
        assert caught.value.attempts == 3
    assert len(list((tmp_path / "b").iterdir())) == 3


def test_retries_do_not_repeat_a_task_that_raises(tmp_path: Path) -> None:
    """An exception is an outcome."""
    with ProcessPoolExecutor(1, retries=5) as executor, pytest.raises(FileExistsError):
        executor.submit(_make_twice, tmp_path).result(_HANG_S)
    assert [path.name for path in tmp_path.iterdir()] == ["once"]


def _make_twice(directory: Path) -> None:
    (directory / "once").mkdir()
    (directory / "once").mkdir()


def test_retries_of_a_task_with_arrays_send_them_again(tmp_path: Path) -> None:
    """The second worker gets what the first had."""
    (tmp_path / "t").mkdir()
    with ProcessPoolExecutor(1, retries=1, snapshot="submit") as executor:
        data = np.arange(300_000)
        future = executor.submit(_sum_second_time, tmp_path / "t", data)
        data[:] = 0
        assert future.result(_HANG_S) == 300_000 * 299_999 // 2


def _sum_second_time(directory: Path, data: np.ndarray) -> int:
    total = int(data.sum())
    data[:] = -1
    _die_until(directory, 1)
    return total


# ---------------------------------------------------------------------- repeated copies


def test_repeated_copies_are_hinted_at_once(executor: ProcessPoolExecutor) -> None:
    """At the third time, in the caller's own line, with shape, bytes and remedy; never again."""
    data = np.zeros((500, 1000))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            executor.submit(np.sum, data).result(_HANG_S)
        assert not caught
        for _ in range(8):
            executor.submit(np.sum, data).result(_HANG_S)
    assert len(caught) == 1
    assert caught[0].category is RepeatedCopyWarning
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "(500, 1000)" in text
    assert "12,000,000 bytes" in text
    assert "ndshare.share(" in text


def test_repeated_copies_as_an_error_leave_the_executor_usable(executor: ProcessPoolExecutor) -> None:
    """Under ``-W error`` the third `submit` raises, and nothing else is lost."""
    data = np.zeros(200_000)
    futures = [executor.submit(np.sum, data) for _ in range(2)]
    with pytest.raises(RepeatedCopyWarning):
        executor.submit(np.sum, data)
    futures.append(executor.submit(np.sum, data))
    assert [future.result(_HANG_S) for future in futures] == [0, 0, 0]


def test_different_small_and_shared_arrays_are_not_hinted_at(executor: ProcessPoolExecutor) -> None:
    """The hint is for one large ordinary array."""
    small, shared = np.zeros(1000), ndshare.zeros(200_000)
    for _ in range(6):
        executor.submit(np.sum, small).result(_HANG_S)
        executor.submit(np.sum, shared).result(_HANG_S)
        executor.submit(np.sum, np.zeros(200_000)).result(_HANG_S)


# ---------------------------------------------------------------------- how many

_COUNT = "import ndshare, os\nprint(ndshare.ProcessPoolExecutor()._max_workers)\n"


def test_count_by_default_follows_the_affinity(run_script: RunScript) -> None:
    """A process bound to one processor gets one worker."""
    everything = run_script(_COUNT).stdout
    assert int(everything) == ndshare._system.default_workers() <= len(os.sched_getaffinity(0))
    one = run_script("import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + _COUNT)
    assert one.stdout == "1\n"


@pytest.mark.parametrize(("quota", "expected"), [(None, 64), (0.5, 1), (1.0, 1), (2.5, 3), (100.0, 64)])
def test_count_by_default_follows_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    """A container's quota is rounded up, and never gives none."""
    from ndshare._system import platform

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(platform, "cpu_quota", lambda: quota)
    assert ndshare._system.default_workers() == expected
    executor = ProcessPoolExecutor()
    assert executor._max_workers == expected
    executor.shutdown()


# ---------------------------------------------------------------------- the caller's state


def test_state_of_the_caller_is_as_it_is_at_dispatch(
    executor: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory and environment are followed from task to task, also what is taken away."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("NDSHARE_TEST_STATE", name)
        assert executor.submit(jobs.working_directory).result(_HANG_S) == str(tmp_path / name)
        assert executor.submit(jobs.environment, "NDSHARE_TEST_STATE").result(_HANG_S) == name
    monkeypatch.delenv("NDSHARE_TEST_STATE")
    assert executor.submit(jobs.environment, "NDSHARE_TEST_STATE").result(_HANG_S) is None


def test_state_that_a_task_changes_does_not_last(tmp_path: Path) -> None:
    """The next executor's tasks find the caller's directory, environment and floating-point state."""
    with ProcessPoolExecutor(1) as executor:
        executor.submit(_make_a_mess, tmp_path).result(_HANG_S)
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(jobs.working_directory).result(_HANG_S) == os.getcwd()
        assert executor.submit(jobs.environment, "NDSHARE_TEST_MESS").result(_HANG_S) is None
        assert executor.submit(np.geterr).result(_HANG_S) == np.geterr()
        assert executor.submit(_mess_in_path).result(_HANG_S) is False


def _make_a_mess(directory: Path) -> None:
    os.chdir(directory)
    os.environ["NDSHARE_TEST_MESS"] = "x"
    sys.path.append("/nowhere/mess")
    np.seterr(all="raise")
    warnings.simplefilter("ignore")


def _mess_in_path() -> bool:
    return "/nowhere/mess" in sys.path


def test_state_path_added_after_the_workers_started_is_followed(
    executor: ProcessPoolExecutor, module: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """A module found through a later `sys.path`, relative entries included, is found by warm workers."""
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2
    module("added_later", "def answer():\n    return 42\n")
    import added_later  # type: ignore[import-not-found]

    assert executor.submit(added_later.answer).result(_HANG_S) == 42
    del sys.modules["added_later"]


def _warn() -> str:
    warnings.warn("careful", RuntimeWarning, stacklevel=1)
    return "warned"


def test_state_warning_filters_are_the_callers(executor: ProcessPoolExecutor) -> None:
    """An error here is an error there; ignored here is ignored there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="careful"):
            executor.submit(_warn).result(_HANG_S)
        warnings.simplefilter("ignore")
        assert executor.submit(_warn).result(_HANG_S) == "warned"
        warnings.filterwarnings("error", message="care")
        with pytest.raises(RuntimeWarning, match="careful"):
            executor.submit(_warn).result(_HANG_S)


def test_state_directory_that_was_removed_stops_nobody(
    executor: ProcessPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whose working directory is gone can still run tasks."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2
    with ProcessPoolExecutor(1, env={"PYTHONHASHSEED": "1"}) as other:  # a zygote of its own
        assert other.submit(jobs.add_one, 1).result(_HANG_S) == 2


# ---------------------------------------------------------------------- modules


def test_module_changed_on_disk_is_not_used_from_a_warm_worker(
    module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two executors a source file changes: the second runs what is on disk."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for answer in (1, 2, 3):
        path = module("changing", f"def answer():\n    return {answer}\n")
        os.utime(path, ns=(10**18 + answer, 10**18 + answer))
        with ProcessPoolExecutor(1) as executor:
            assert executor.submit(jobs.import_and_call, "changing", "answer").result(_HANG_S) == answer


def test_module_made_at_run_time_goes_by_value(executor: ProcessPoolExecutor) -> None:
    """What workers cannot import is sent: functions and classes of a module that has no file."""
    dynamic = types.ModuleType("made_at_run_time")
    exec(
        "factor = 3\ndef triple(x):\n    return factor * x\n"
        "class Box:\n    def __init__(self, x):\n        self.x = x\n"
        "    def get(self):\n        return triple(self.x)\n",
        dynamic.__dict__,
    )
    sys.modules["made_at_run_time"] = dynamic
    try:
        assert executor.submit(dynamic.triple, 2).result(_HANG_S) == 6
        assert list(executor.map(dynamic.triple, range(4))) == [0, 3, 6, 9]
        assert executor.submit(dynamic.Box(4).get).result(_HANG_S) == 12
        box = executor.submit(jobs.identity, dynamic.Box(4)).result(_HANG_S)
        assert type(box) is dynamic.Box
        assert list(executor.map(jobs.identity, [dynamic.Box(n) for n in range(3)]))[2].get() == 6
    finally:
        del sys.modules["made_at_run_time"]


def test_module_that_nobody_has_is_that_tasks_error(executor: ProcessPoolExecutor) -> None:
    """A module missing in the task itself is an ordinary error and is not tried again."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        executor.submit(jobs.import_and_call, "no_such_module", "f").result(_HANG_S)
    assert executor.submit(jobs.add_one, 1).result(_HANG_S) == 2


_IMPORTER = """
import importlib.abc, importlib.machinery, sys, types, ndshare
class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "virtual" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec("offset = 5\\ndef shifted(x): return x + offset", vars(module))
sys.meta_path.insert(0, Importer())
import virtual
by_hand = sys.modules["by_hand"] = types.ModuleType("by_hand")
exec("factor = 7\\ndef scaled(x): return x * factor", vars(by_hand))
"""


def test_module_of_an_importer_of_the_programs_own_is_used_or_named(run_script: Callable[..., Any]) -> None:
    """What a function uses goes by value; an import at run time says who has the module."""
    done = run_script(
        _IMPORTER
        + """
def both(): return virtual.shifted(1), by_hand.scaled(2)
def late(name): return __import__(name)
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(virtual.shifted, 1).result() == 6
    assert executor.submit(by_hand.scaled, 2).result() == 14
    assert executor.submit(both).result() == (6, 14)
    for name in ("virtual", "by_hand", "nowhere_at_all"):
        error = executor.submit(late, name).exception()
        assert isinstance(error, ModuleNotFoundError) and error.name == name
        assert ("this process has it" in str(error)) == (name != "nowhere_at_all"), error
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
