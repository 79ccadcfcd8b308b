"""Maps over two simulated hosts, and under MPI: everything as the programs of a user start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_HERE = Path(__file__).parent
_NAMESPACE = ["unshare", "--net", "--mount"]


def _may_make_hosts() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    probe = (
        "mount -t tmpfs tmpfs /dev/shm && ip link set lo up && ip link add first type veth peer name second"
    )
    return subprocess.run([*_NAMESPACE, "sh", "-c", probe], capture_output=True, check=False).returncode == 0


def _run(*words: str, timeout: float = 110) -> str:
    search = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


needs_hosts = pytest.mark.skipif(not _may_make_hosts(), reason="network namespaces are not permitted here")


def _check_inputs(lines: list[str], workers: int) -> None:
    """An input is once on each host, in memory as on the network; the second map sends nothing of it."""
    first, second = (json.loads(line.partition(" map ")[2]) for line in lines[:2])
    for found in (first, second):
        assert found["workers"] == 2 * workers, lines
        assert found["copies"] == 2, lines
        assert all(0.95 < held < 1.4 for held in found["memory"]), lines
    assert first["contents"] == 2, lines
    assert all(1 <= sent < 1.1 for sent in first["sent"].values()), lines
    assert second["contents"] == 0, lines
    assert all(nbytes < 2e6 for nbytes in second["bytes sent"].values()), lines


@needs_hosts
def test_two_hosts() -> None:
    """An input; a workspace; the suite; a network that is cut for 5 s changes nothing."""
    pytest.importorskip("distributed")
    lines = _run(*_NAMESPACE, sys.executable, str(_HERE / "two_hosts.py")).splitlines()
    _check_inputs(lines, 2)
    assert lines[2] == "workspace: copies 2 sent 2"
    assert lines[3].endswith("passed")
    assert lines[4] == "after the cut 2 hosts"


@needs_hosts
@pytest.mark.chaos
def test_an_input_of_1_gb_on_eight_workers(chaos_rounds: int) -> None:
    """Held twice in all, sent twice in all, and not again (scripts/chaos)."""
    pytest.importorskip("distributed")
    if chaos_rounds == 1:
        pytest.skip("1 GB only in scripts/chaos")
    words = ["--megabytes", "1000", "--workers", "4", "--only-inputs"]
    said = _run(*_NAMESPACE, sys.executable, str(_HERE / "two_hosts.py"), *words, timeout=600)
    print(said)
    _check_inputs(said.splitlines(), 4)


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
