"""What a worker logs reaches the caller's handlers, and NumPy's error state goes with the work."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ndshare

pytestmark = pytest.mark.once

_LOGGER = logging.getLogger("tests.records")


@pytest.fixture
def executor() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Two workers."""
    with ndshare.ProcessPoolExecutor(2) as made:
        yield made


def _log(level: int, text: str, *args: object) -> int:
    _LOGGER.log(level, text, *args)
    return os.getpid()


def _log_error() -> None:
    try:
        raise ValueError("broken detector")
    except ValueError:
        _LOGGER.exception("no image")


def _log_extra() -> None:
    _LOGGER.warning("with %s", "more", extra={"run": 7, "path": ["a", "b"]})


def _log_in_thread() -> None:
    threads = [threading.Thread(target=_LOGGER.warning, args=("thread %d", n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _log_and_die() -> None:
    _LOGGER.warning("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def _log_much(count: int) -> float:
    for number in range(count):
        _LOGGER.warning("%d", number)
    return float(np.ones(1_000_000).sum())


def test_record_arrives_before_the_result(
    executor: ndshare.ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """With the worker's process, the logger's name and the formatted message."""
    pid = executor.submit(_log, logging.WARNING, "half of %d", 10).result()
    (record,) = caplog.records
    assert record.getMessage() == "half of 10"
    assert (record.name, record.levelno, record.process) == ("tests.records", logging.WARNING, pid)
    assert record.funcName == "_log"


def test_level_of_the_caller_holds(
    executor: ndshare.ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """For the root logger and for single ones, as often as it changes."""
    executor.submit(_log, logging.INFO, "too low").result()
    with caplog.at_level(logging.DEBUG):
        executor.submit(_log, logging.DEBUG, "root").result()
    executor.submit(_log, logging.INFO, "too low again").result()
    with caplog.at_level(logging.INFO, logger="tests.records"):
        executor.submit(_log, logging.INFO, "own").result()
    executor.submit(_log, logging.INFO, "too low at last").result()
    assert [record.getMessage() for record in caplog.records] == ["root", "own"]


def test_traceback_extra_fields_and_long_texts_arrive(
    executor: ndshare.ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else a record holds comes as text; what is too long is cut."""
    executor.submit(_log_error).result()
    executor.submit(_log_extra).result()
    executor.submit(_log, logging.WARNING, "%s", "x" * 10_000_000).result()
    error, extra, long = caplog.records
    assert error.exc_text is not None
    assert "broken detector" in error.exc_text
    assert (extra.run, extra.path) == (7, "['a', 'b']")  # type: ignore[attr-defined]
    assert long.getMessage().startswith("xxxx")
    assert len(long.getMessage()) < 20_000


def test_records_of_threads_and_of_a_worker_that_dies_arrive(
    executor: ndshare.ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost with the process, nor mixed with messages of other threads."""
    executor.submit(_log_in_thread).result()
    assert sorted(record.getMessage() for record in caplog.records) == [f"thread {n}" for n in range(8)]
    caplog.clear()
    with pytest.raises(ndshare.WorkerDiedError):
        executor.submit(_log_and_die).result()
    assert caplog.messages == ["last words"]


def test_many_records_between_results_with_arrays(
    executor: ndshare.ProcessPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """They share the socket with results that have descriptors."""
    assert list(executor.map(_log_much, [500] * 8)) == [1e6] * 8
    assert len(caplog.records) == 4_000


def test_handler_that_fails_harms_no_task(
    executor: ndshare.ProcessPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its traceback is printed."""

    def refuse(_record: logging.LogRecord) -> bool:
        raise RuntimeError("filter broken")

    _LOGGER.addFilter(refuse)
    try:
        assert executor.submit(_log, logging.WARNING, "x").result() > 0
    finally:
        _LOGGER.removeFilter(refuse)
    assert "filter broken" in capfd.readouterr().err


def test_record_of_a_kernel_names_its_item(caplog: pytest.LogCaptureFixture) -> None:
    """As attribute ``ndshare_item``."""

    def kernel(_worker_id: int, index: int, value: int) -> None:
        if value % 10 == 0:
            _LOGGER.warning("value %d", value)

    ndshare.ProcessContext(2).map(kernel, range(100, 150))
    found = sorted((record.ndshare_item, record.getMessage()) for record in caplog.records)  # type: ignore[attr-defined]
    assert found == [(10 * n, f"value {100 + 10 * n}") for n in range(5)]


_SCRIPT = """
import logging, ndshare
def f(x):
    logging.getLogger("a").warning("seen %d", x)
executor = ndshare.ProcessPoolExecutor(1)
executor.submit(f, 1).result()
logging.basicConfig(format="%(name)s %(message)s in %(filename)s")
executor.submit(f, 2).result()
"""


def test_without_handlers_a_worker_prints_warnings_as_any_process(tmp_path: object) -> None:
    """And once there are some, they are used."""
    script = os.path.join(str(tmp_path), "script.py")
    with open(script, "w") as file:
        file.write(_SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == ["seen 1", "a seen 2 in script.py"]


def _divide(x: float) -> float:
    return float(np.float64(1.0) / np.float64(x))


def test_error_state_goes_with_a_task(executor: ndshare.ProcessPoolExecutor) -> None:
    """That of the thread that submits it, for this task only."""
    with np.errstate(all="raise"):
        failing = executor.submit(_divide, 0.0)
        failing_too = executor.map(_divide, [0.0])
        with pytest.raises(FloatingPointError):
            failing.result()
        with pytest.raises(FloatingPointError):
            list(failing_too)
    with np.errstate(divide="ignore"):
        assert executor.submit(_divide, 0.0).result() == np.inf
    with pytest.warns(RuntimeWarning, match="divide"):
        _divide(0.0)


@pytest.mark.parametrize(
    "make",
    [
        ndshare.SerialContext,
        lambda: ndshare.ThreadContext(2),
        lambda: ndshare.ProcessContext(2),
        lambda: ndshare.ProcessContext(2, start="fork"),
    ],
    ids=["serial", "threads", "pool", "fork"],
)
def test_error_state_goes_with_a_map(make: type[ndshare.MapContext]) -> None:
    """In every context."""
    context = make()  # type: ignore[call-arg]
    out = context.alloc(4, float)

    def kernel(_worker_id: int, index: int, value: float) -> None:
        out[index] = np.float64(1.0) / np.float64(value)

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        context.map(kernel, [1.0, 2.0, 0.0, 4.0])
    with np.errstate(divide="ignore"):
        context.map(kernel, [1.0, 2.0, 0.0, 4.0])
    assert out.tolist() == [1.0, 0.5, np.inf, 0.25]


def test_names_of_levels_are_the_callers(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """As it has named them when the executor begins; those of an earlier one are forgotten, a worker's own stay."""
    done = run_script(
        """
import logging, sys, ndshare
logging.basicConfig(stream=sys.stdout, level=1, format="%(levelname)s %(levelno)d %(message)s")
def named(): return logging.getLevelName(25), logging.getLevelName("NOTICE"), logging.getLevelName("WARN")
def own():
    logging.addLevelName(7, "OWN")
    logging.log(7, "of a worker")
for names in ({25: "NOTICE", 20: "information"}, {26: "NOTICE"}):
    for level, name in names.items(): logging.addLevelName(level, name)
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(logging.log, 25, "x").result()
        executor.submit(logging.info, "y").result()
        print(*executor.submit(named).result())
        executor.submit(own).result()
        logging.getLogger("other").setLevel(30)
        executor.submit(logging.log, 25, "z").result()
    def kernel(worker_id, index, value): logging.log(25, "item")
    ndshare.ProcessContext(1, start="pool").map(kernel, range(1))
    logging.addLevelName(25, "SECOND")
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(logging.getLevelName, 7).result() == "Level 7"
"""
    )
    assert done.stdout.splitlines() == [
        "NOTICE 25 x", "information 20 y", "NOTICE 25 30", "OWN 7 of a worker", "NOTICE 25 z", "NOTICE 25 item",
        "SECOND 25 x", "information 20 y", "SECOND 26 30", "OWN 7 of a worker", "SECOND 25 z", "SECOND 25 item",
    ]  # fmt: skip
    assert done.stderr == ""
