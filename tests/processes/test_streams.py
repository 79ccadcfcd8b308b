"""What tasks print goes where the caller's standard streams point when the task is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ndshare

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


def _say(text: str) -> None:
    print(text)
    print(text.upper(), end="", file=sys.stderr)


def test_prints_go_where_the_descriptors_point_now(capfd: pytest.CaptureFixture[str]) -> None:
    """Of a warm worker, too, and at once: before the result."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_say, "one").result()
        assert capfd.readouterr() == ("one\n", "ONE")
        with capfd.disabled():
            pass
        executor.submit(_say, "two").result()
        assert capfd.readouterr() == ("two\n", "TWO")
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_say, "three").result()
    assert capfd.readouterr() == ("three\n", "THREE")


def test_prints_of_maps_go_there_too(capfd: pytest.CaptureFixture[str]) -> None:
    """Of workers of a pool and of forked ones."""
    for start in ("pool", "fork"):
        context = ndshare.ProcessContext(1, start=start)

        def kernel(_worker_id: int, _index: int, value: int) -> None:
            print("item", value)

        context.map(kernel, range(2))
        assert capfd.readouterr().out == "item 0\nitem 1\n"


def test_prints_follow_dup2_and_new_objects(run_script: RunScript) -> None:
    """A log, a file as ``sys.stdout``, and back; processes that tasks start follow the descriptors."""
    done = run_script(
        """
import contextlib, io, os, subprocess, ndshare
def say(text): print(text)
def say_by_child(text): subprocess.run(["echo", text], check=True)
executor = ndshare.ProcessPoolExecutor(1)
executor.submit(say, "before").result()
kept = os.dup(1)
log = os.open("log", os.O_CREAT | os.O_RDWR)
os.dup2(log, 1)
executor.submit(say, "into the log").result()
executor.submit(say_by_child, "by a child").result()
assert open("log").read() == "into the log\\nby a child\\n"
with ndshare.ProcessPoolExecutor(1) as other:
    other.submit(say, "of another").result()
assert open("log").read().endswith("of another\\n")
os.dup2(kept, 1)
with open("file", "w", encoding="utf-16") as file, contextlib.redirect_stdout(file):
    executor.submit(say, "into the file ä").result()
    executor.submit(say_by_child, "a child").result()
assert open("file", encoding="utf-16").read() == "into the file ä\\n"
with contextlib.redirect_stdout(io.StringIO()):  # nobody else can write there
    executor.submit(say, "to the descriptor").result()
executor.submit(say, "after").result()
executor.shutdown()
"""
    )
    assert (done.stdout, done.stderr) == ("before\na child\nto the descriptor\nafter\n", "")


def test_idle_workers_keep_no_pipe_open(run_script: RunScript) -> None:
    """Who reads the other end of what standard output was sees its end while workers are warm."""
    done = run_script(
        """
import os, ndshare
def say(text): print(text)
kept = os.dup(1)
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)
with ndshare.ProcessPoolExecutor(2) as executor:
    for number in range(4):
        executor.submit(say, str(number)).result()
os.dup2(kept, 1)
with open(reader) as end:
    assert end.read() == "0\\n1\\n2\\n3\\n"
print("fine")
""",
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_task_that_closes_its_streams_harms_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    """The next executor prints."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_close).result()
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(_say, "again").result()
    assert capfd.readouterr().out == "again\n"


def _close() -> int:
    sys.stdout.close()
    os.close(2)
    return os.getpid()


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_streams_that_the_program_has_closed_are_nowhere(
    run_script: RunScript, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """Whatever has been given their numbers since is not written to."""
    source = f"""
import os, sys
import ndshare
told = os.open("told", os.O_CREAT | os.O_WRONLY)
for number in {closed}:
    os.close(number)
array = ndshare.zeros(100_000)
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(print, "lost", flush=True).exception(30)
    if executor.submit(abs, -1).result(30) == 1 and not array.any():
        os.write(told, b"works")
os._exit(0)
"""
    run_script(source, timeout=60)
    assert (tmp_path / "told").read_text() == "works"


@pytest.mark.parametrize("turns", ["object", "descriptor"])
def test_streams_that_an_initializer_has_turned_stay_so(run_script: RunScript, turns: str) -> None:
    """Wherever the caller's go to meanwhile; those of the next executor are the caller's."""
    done = run_script(
        f"""
import contextlib, os, sys, ndshare
def init():
    if {turns!r} == "object":
        sys.stdout = open("own", "w", buffering=1)
    else:
        os.dup2(os.open("own", os.O_CREAT | os.O_WRONLY), 1)
def say(text): print(text)
with ndshare.ProcessPoolExecutor(1, initializer=init) as executor:
    executor.submit(say, "one").result()
    with open("other", "w") as other, contextlib.redirect_stdout(other):
        executor.submit(say, "two").result()
    kept = os.dup(1)
    os.dup2(os.open("another", os.O_CREAT | os.O_WRONLY), 1)
    executor.submit(say, "three").result()
    os.dup2(kept, 1)
    executor.submit(say, "four").result()
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(say, "five").result()
assert open("own").read().split() == ["one", "two", "three", "four"]
assert open("other").read() == open("another").read() == ""
"""
    )
    assert (done.stdout, done.stderr) == ("five\n", "")
