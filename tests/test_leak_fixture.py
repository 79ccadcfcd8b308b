"""The fixture that looks for what a test leaves behind finds a demo leak of every kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_TESTS = Path(__file__).parent

# One demo leak per resource: the text that must be reported, and how to leak it.
LEAKS = {
    "child process": "keep.append(subprocess.Popen(['sleep', '30']))",
    "thread": "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
    "open descriptor": "keep.append(os.open('/dev/null', os.O_RDONLY))",
    "mapping of a memfd": (
        "fd = os.memfd_create('demo'); os.ftruncate(fd, 4096); keep.append(mmap.mmap(fd, 4096)); os.close(fd)"
    ),
    "/dev/shm entry": "keep.append(tempfile.mkdtemp(prefix='ndshare-demo-leak-', dir='/dev/shm'))",
}

# Child processes are killed and the entry removed afterwards: the demo leaks must not be real.
_SOURCE = """
import atexit, mmap, os, subprocess, tempfile, threading, time
from tests import leaks
leaks.left_behind.__defaults__ = (0.3, frozenset())
keep = []

@atexit.register
def tidy():
    for thing in keep:
        if isinstance(thing, subprocess.Popen):
            thing.kill()
            thing.wait()
        elif isinstance(thing, str):
            os.rmdir(thing)

def test_demo():
    {leak}
"""


def _run_pytest(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_demo.py").write_text(source)
    shutil.copy(_TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(_TESTS.parent), *sys.path))},
        check=False,
    )


@pytest.mark.parametrize("resource", LEAKS)
def test_fixture_demo_leak_is_reported(resource: str, tmp_path: Path) -> None:
    """A test that leaks one resource fails, and the report names the resource."""
    done = _run_pytest(tmp_path, _SOURCE.format(leak=LEAKS[resource]))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "left behind by this test" in done.stdout
    assert f"  {resource}: " in done.stdout


def test_fixture_failed_test_does_no_harm_to_the_next(tmp_path: Path) -> None:
    """What a failed test leaves is ended and removed, a stopped process too; one failure stays one."""
    body = """
    import pathlib, signal
    child = subprocess.Popen(['sleep', '30'], stdout=subprocess.PIPE)
    child.send_signal(signal.SIGSTOP)
    pathlib.Path(f'/dev/shm/ndshare-demo-left-{child.pid}').touch()
    assert not child.pid

def test_next():
    import glob
    assert glob.glob('/dev/shm/ndshare-demo-left-*') == []
    assert leaks.RESOURCES[0].picture() == {}
"""
    done = _run_pytest(tmp_path, _SOURCE.format(leak=body))
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr


def test_fixture_clean_test_passes(tmp_path: Path) -> None:
    """A test that opens and closes one of each passes."""
    body = """
    fd = os.open('/dev/null', os.O_RDONLY); os.close(fd)
    subprocess.run(['true'])
    thread = threading.Thread(target=int); thread.start(); thread.join()
"""
    done = _run_pytest(tmp_path, _SOURCE.format(leak=body.strip()))
    assert done.returncode == 0, done.stdout + done.stderr


def test_fixture_orphan_of_a_finished_child_is_reported(tmp_path: Path) -> None:
    """A grandchild whose parent has ended is found although it is no descendant any more."""
    leak = """pid = int(subprocess.run(['sh', '-c', 'sleep 2 >/dev/null 2>&1 & echo $!'],
                             capture_output=True, text=True).stdout)"""
    done = _run_pytest(tmp_path, _SOURCE.format(leak=leak))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "orphan" in done.stdout
