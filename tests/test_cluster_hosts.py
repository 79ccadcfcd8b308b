"""Maps over two simulated hosts, and under MPI: everything as the programs of a user start it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_NAMESPACE = ["unshare", "--net", "--mount"]


def _may_make_hosts() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    probe = (
        "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && ip link add first type veth peer name second"
    )
    return subprocess.run([*_NAMESPACE, "sh", "-c", probe], capture_output=True, check=False).returncode == 0


def _run(*words: str) -> str:
    search = os.pathsep.join([str(_HERE), *(os.path.abspath(path) for path in sys.path if path)])
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not _may_make_hosts(), reason="network namespaces are not permitted here")
def test_two_hosts() -> None:
    """The suite; an input is held once per host and sent once; a network that is cut for 5 s changes nothing."""
    pytest.importorskip("distributed")
    lines = _run(*_NAMESPACE, sys.executable, str(_HERE / "two_hosts.py")).splitlines()
    assert lines[0] == "copies 2 sent 2"
    assert lines[1] == "sent again 0"
    assert lines[2] == "workspace: copies 2 sent 2"
    assert lines[3].endswith("passed")
    assert lines[4] == "after the cut 2 hosts"


def _mpiexec() -> str | None:
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@pytest.mark.skipif(_mpiexec() is None, reason="there is no mpiexec")
def test_mpi() -> None:
    """The suite on two ranks, with the caller in a third."""
    pytest.importorskip("mpi4py", exc_type=ImportError)
    script = str(_HERE / "cluster_suite.py")
    said = _run(str(_mpiexec()), "-n", "3", sys.executable, "-m", "mpi4py.futures", script)
    assert said.strip().endswith("passed")
