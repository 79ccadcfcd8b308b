"""Workers that are forked from the program, where something can only be inherited."""

from __future__ import annotations

import ctypes
import io
import mmap
import multiprocessing
import os
import queue
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._processes import own_crew

_LATE_S = 30.0
_given: dict[str, Any] = {}
_state = ["as imported"]


def _take(thing: Any) -> None:
    _given["it"] = thing


def _holds_lock() -> int:
    with _given["it"]:
        return os.getpid()


def _adds() -> None:
    with _given["it"].get_lock():
        _given["it"].value += 1


def _fills(number: int) -> None:
    _given["it"][number] = number


def _waits() -> bool:
    return bool(_given["it"].wait(_LATE_S))


def _meets() -> int:
    return int(_given["it"].wait(_LATE_S))


def _puts(number: int) -> None:
    _given["it"].put(number)


class _Slow:
    def __reduce__(self) -> Any:
        time.sleep(0.5)
        return str, ("slow",)


def _puts_slowly() -> None:
    """Put what the thread of a queue is not done with when the worker is to end."""
    _given["it"].put(_Slow())


def _looks() -> str:
    return _state[0]


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def context(request: pytest.FixtureRequest) -> Any:
    """The ways to start processes that `multiprocessing` has; what it makes is bound to one."""
    return multiprocessing.get_context(request.param)


def _pool(thing: Any, workers: int = 2, **options: Any) -> ndshare.ProcessPoolExecutor:
    return ndshare.ProcessPoolExecutor(workers, initializer=_take, initargs=(thing,), **options)


def _sets(number: int) -> None:
    _given["it"][number] = 1


@pytest.mark.parametrize("start", ["auto", "fork"])
def test_mapped_memory_as_initargs_is_the_callers(start: Any) -> None:
    """As it is, as an array of ctypes (`multiprocessing.RawArray` is one) and as one of NumPy."""
    mapping = mmap.mmap(-1, 4096)
    raw = (ctypes.c_double * 4).from_buffer(mapping)
    for given, array in ((raw, raw), (np.frombuffer(raw), raw), (mapping, mapping)):
        array[0:4] = b"\0" * 4 if array is mapping else [0] * 4
        with _pool(given, start=start) as executor:
            list(executor.map(_sets, range(4)))
        assert list(array[0:4]) == [1] * 4


def test_array_in_a_file_as_initargs_needs_no_fork(tmp_path: Path) -> None:
    """Warm workers map it again."""
    array = np.memmap(tmp_path / "a", "f8", "w+", shape=4)
    with _pool(array) as executor:
        list(executor.map(_sets, range(4)))
        assert not executor._pool.inherited
    assert array.tolist() == [1] * 4


@pytest.mark.parametrize("name", ["Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"])
def test_a_lock_as_initargs_is_the_callers(context: Any, name: str) -> None:
    """Workers wait while the caller has it."""
    lock = getattr(context, name)()
    with _pool(lock) as executor:
        assert executor.submit(_holds_lock).result(_LATE_S) != os.getpid()
        with lock:
            waiting = executor.submit(_holds_lock)
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
        assert waiting.result(_LATE_S) > 0
        assert executor.start_method == "fork"
        assert "through inheritance" in executor.start_reason or "fork context" in executor.start_reason


@pytest.mark.leaves("open descriptor", "child process")  # the memory of Values, and who tracks locks
def test_a_value_and_an_array_as_initargs(context: Any) -> None:
    """What workers write the caller sees."""
    value = context.Value("i", 0)
    with _pool(value) as executor:
        for future in [executor.submit(_adds) for _ in range(40)]:
            future.result(_LATE_S)
    assert value.value == 40
    array = context.Array("i", 5)
    with _pool(array) as executor:
        list(executor.map(_fills, range(5)))
    assert list(array) == [0, 1, 2, 3, 4]


def test_an_event_and_a_barrier_as_initargs(context: Any) -> None:
    """Who sets and who waits may be in any process."""
    event = context.Event()
    with _pool(event) as executor:
        waiting = executor.submit(_waits)
        event.set()
        assert waiting.result(_LATE_S)
    barrier = context.Barrier(2)
    with _pool(barrier) as executor:
        assert sorted(future.result(_LATE_S) for future in [executor.submit(_meets) for _ in range(2)]) == [
            0, 1
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_a_queue_as_initargs(context: Any, kind: str) -> None:
    """Nothing is lost when the workers end, and the caller may have used it before."""
    things = getattr(context, kind)()
    things.put(-1)
    with _pool(things) as executor:
        list(executor.map(_puts, range(20)))
    assert sorted(_got(things) for _ in range(21)) == list(range(-1, 20))
    with _pool(things, 1) as executor:
        executor.submit(_puts_slowly).result(_LATE_S)
    assert _got(things) == "slow"
    if kind != "SimpleQueue":
        things.close()
        things.join_thread()
    else:
        things.close()


def _got(things: Any) -> Any:
    return things.get() if not hasattr(things, "get_nowait") else things.get(timeout=_LATE_S)


def test_clean_workers_refuse_it() -> None:
    """Who asks for them is told what cannot be sent."""
    with _pool(multiprocessing.Lock(), start="clean") as executor:
        with pytest.raises(ndshare.InitializerError, match=r"inheritance|fork context"):
            executor.submit(_holds_lock).result(_LATE_S)
        assert executor.start_method == "clean"
        assert executor.start_reason == ""


def test_threads_forbid_a_fork_and_are_named() -> None:
    """Unless the user answers for them."""
    go_on = threading.Event()
    thread = threading.Thread(target=lambda: go_on.wait(), name="reader of something")
    thread.start()
    try:
        with _pool(multiprocessing.Lock()) as executor:
            with pytest.raises(ndshare.InitializerError, match="reader of something"):
                executor.submit(_holds_lock).result(_LATE_S)
        with _pool(multiprocessing.Lock(), start="fork") as executor:
            assert executor.submit(_holds_lock).result(_LATE_S)
    finally:
        go_on.set()
        thread.join()


def test_fork_has_the_state_of_the_program_when_the_first_worker_is_wanted() -> None:
    """Not that of when the executor was made, or a module was imported."""
    with ndshare.ProcessPoolExecutor(2, start="fork") as executor:
        _state[0] = "as changed"
        try:
            assert executor.submit(_looks).result(_LATE_S) == "as changed"
        finally:
            _state[0] = "as imported"
        assert executor.start_method == "fork"


def test_auto_and_clean_workers_are_not_forked_without_need() -> None:
    """Module state is that of a process of their own."""
    _state[0] = "as changed"
    try:
        for start in ("auto", "clean"):
            with ndshare.ProcessPoolExecutor(1, start=start) as executor:  # type: ignore[arg-type]
                assert executor.submit(_looks).result(_LATE_S) == "as imported"
                assert executor.start_method == "clean"
    finally:
        _state[0] = "as imported"


def test_wrong_start_is_refused() -> None:
    """The text names what is allowed."""
    with pytest.raises(ValueError, match=r"'clean', 'fork' or 'auto', got 'spawn'"):
        ndshare.ProcessPoolExecutor(1, start="spawn")  # type: ignore[arg-type]


def test_forked_workers_are_replaced() -> None:
    """After their last task, and after they were killed; with the same lock."""
    with _pool(multiprocessing.Lock(), 1, max_tasks_per_child=1) as executor:
        pids = {executor.submit(_holds_lock).result(_LATE_S) for _ in range(3)}
        assert len(pids) == 3
    with _pool(multiprocessing.Lock(), 1) as executor:
        pid = executor.submit(_holds_lock).result(_LATE_S)
        doomed = executor.submit(time.sleep, _LATE_S)
        while not doomed.running():
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        assert isinstance(doomed.exception(_LATE_S), ndshare.WorkerDiedError)
        assert executor.submit(_holds_lock).result(_LATE_S) != pid


def test_another_process_is_forked_when_the_first_one_was_killed() -> None:
    """That all workers come from."""
    with _pool(multiprocessing.Lock(), 1) as executor:
        assert executor.submit(_holds_lock).result(_LATE_S)
        (ear,) = [ear for spec, ear in own_crew().zygotes.items() if spec.inherited]
        os.kill(ear.zygote.process.pid, signal.SIGKILL)
        while executor.workers():
            time.sleep(0.01)
        assert executor.submit(_holds_lock).result(_LATE_S)


def test_the_process_that_was_forked_ends_with_its_executor() -> None:
    """However the executor ends."""
    ends: list[Callable[[ndshare.ProcessPoolExecutor], None]] = [
        lambda executor: executor.shutdown(),
        lambda executor: executor.kill_workers(),
        lambda executor: None,  # it is forgotten
    ]
    for end in ends:
        executor = _pool(multiprocessing.Lock())
        assert executor.submit(_holds_lock).result(_LATE_S)
        end(executor)
        del executor
        deadline = time.monotonic() + _LATE_S
        while any(spec.inherited for spec in own_crew().zygotes) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(spec.inherited for spec in own_crew().zygotes)


@pytest.mark.parametrize("chunksize", [1, 7])
def test_helper_of_tqdm_shows_its_bar_again_and_again(chunksize: int) -> None:
    """It hands its lock to the workers; from the second time on its monitor runs as a thread."""
    concurrent = pytest.importorskip("tqdm.contrib.concurrent")
    auto = pytest.importorskip("tqdm.auto")
    try:
        for _ in range(3):
            shown = io.StringIO()
            results = concurrent._executor_map(
                ndshare.ProcessPoolExecutor, abs, range(40), file=shown, chunksize=chunksize, max_workers=2
            )
            assert results == list(range(40))
            assert f"{-(-40 // chunksize)}/40" in shown.getvalue()  # it counts calls of `submit`
    finally:
        if auto.tqdm.monitor is not None:
            auto.tqdm.monitor.exit()
            auto.tqdm.monitor = None


def test_script_with_a_lock_of_its_own(run_script: Callable[..., Any]) -> None:
    """Functions and globals of ``__main__``, by initializer and inherited."""
    done = run_script(
        textwrap.dedent("""
        import multiprocessing as mp
        import ndshare

        lock, count = mp.Lock(), mp.Value("i", 0)
        step = 2

        def init(given):
            global mine
            mine = given

        def add():
            with mine:
                count.value += step
            return lock.acquire(block=False) and not lock.release()

        with ndshare.ProcessPoolExecutor(2, initializer=init, initargs=(lock,)) as executor:
            assert all(future.result(30) for future in [executor.submit(add) for _ in range(1)])
            assert executor.start_method == "fork"
        assert count.value == 2, count.value
        with ndshare.ProcessPoolExecutor(2, start="fork") as executor:
            step = 3
            mine = None
            executor.submit(lambda: init(lock)).result(30)
        print("fine")
        """)
    )
    assert "fine" in str(done)


def test_what_an_initializer_makes_of_globals_of_a_script_stays(run_script: Callable[..., Any]) -> None:
    """Bound anew or changed in place; and what the caller changes later arrives."""
    done = run_script(
        textwrap.dedent("""
        import functools
        import multiprocessing as mp
        import ndshare

        lock, made, given, step, fixed = None, None, {}, 1, mp.Lock()

        class Model:
            pass

        class Setup:
            def run(self, one): init(one)
            def __call__(self, one): init(one)

        def init(one):
            global lock, made
            lock, given["lock"], made = one, one, Model()
            with fixed:
                pass

        def look():
            return lock is not None, list(given), isinstance(made, Model), step

        used = mp.Lock()
        for start, one in (("auto", 1), ("fork", 1), ("fork", used), ("auto", used)):
            for initializer in (init, functools.partial(init, one), Setup().run, Setup()):
                args = () if isinstance(initializer, functools.partial) else (one,)
                if one == 1 and initializer is not init:
                    continue
                with ndshare.ProcessPoolExecutor(1, initializer=initializer, initargs=args, start=start) as executor:
                    assert executor.submit(look).result(30) == (True, ["lock"], True, step), initializer
                    step += 1
                    assert executor.submit(look).result(30) == (True, ["lock"], True, step), initializer
                with ndshare.ProcessPoolExecutor(2, initializer=initializer, initargs=args, start=start) as executor:
                    assert set(map(str, executor.map(lambda _: look(), range(4)))) == {
                        str((True, ["lock"], True, step))
                    }
        print("fine")
        """)
    )
    assert "fine" in str(done)


def test_ctrl_c_reaches_a_task_of_a_forked_worker() -> None:
    """It is interrupted, and the worker goes on."""
    with _pool(multiprocessing.Lock(), 1) as executor:
        assert executor.submit(_holds_lock).result(_LATE_S)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            executor.submit(time.sleep, _LATE_S).result()
        timer.join()
        assert executor.submit(_holds_lock).result(_LATE_S)
        assert time.monotonic() - began < _LATE_S


def test_workspace_and_queue_of_the_standard_library_are_told_apart() -> None:
    """An ordinary queue cannot be inherited as one of processes: it is refused as before."""
    with _pool(queue.Queue()) as executor:
        with pytest.raises(ndshare.InitializerError, match="pickle"):
            executor.submit(abs, 1).result(_LATE_S)
        assert executor.start_method == "clean"
