"""``ndshare doctor`` finds what is planted: each fault as it is met on real machines."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare import cli
from ndshare.cli.doctor import calls, command, limits, processors, python
from ndshare.cli.doctor.finding import Finding, readable, worst

pytestmark = pytest.mark.once

needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="mount namespaces are not permitted here",
)
_DOCTOR = (sys.executable, "-m", "ndshare", "doctor", "--json")


def _examined(
    *words: str, before: Sequence[str] = (), test: bool = False, **environment: str
) -> tuple[int, dict[str, Finding]]:
    """Run the doctor as a program; return its exit status and its findings by name."""
    done = subprocess.run(
        [*before, *_DOCTOR, *([] if test else ["--no-self-test"]), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    found = {row["name"]: Finding(**row) for row in said["checks"]}
    assert said["verdict"] == worst(list(found.values()))
    assert done.returncode == ["ok", "warn", "fail"].index(said["verdict"])
    return done.returncode, found


def _in_shell(line: str) -> tuple[str, ...]:
    return ("sh", "-c", f'{line} && exec "$@"', "sh")


def test_doctor_looks_at_everything_and_tests_itself() -> None:
    """Each check has something to say, and the self-test does its five steps."""
    status, found = _examined(test=True)
    assert status in (0, 1)
    assert set(found) == {*command.checks(None), "self-test"}
    for name, finding in found.items():
        assert finding.name == name
        assert finding.found, name
        assert "could not be looked at" not in finding.found
        assert bool(finding.remedy) == (finding.verdict != "ok"), name
    for step in ("task", "map", "queue", "dict", "kill"):
        assert f"{step} 0." in found["self-test"].found or f"{step} " in found["self-test"].found
    assert found["self-test"].verdict == "ok"
    assert ndshare.__version__ in found["ndshare"].found


def test_doctor_prints_text_that_fits(capsys, monkeypatch) -> None:
    """Without --json: a line or more per check, no wider than the terminal, options in one piece."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NDSHARE_MEMORY_LIMITS", "1G")
    assert cli.main(["doctor", "--no-self-test", "--workers", "1000"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("ndshare works here, with ")
    assert any(line.startswith("warn  environment") for line in lines)
    assert any("docker run --cpus" in line for line in lines)


@needs_mounts
def test_doctor_finds_a_small_dev_shm() -> None:
    """The 64 MB that containers have by default: a warning with the size, and how to enlarge it."""
    status, found = _examined(
        before=("unshare", "--mount", *_in_shell("mount -t tmpfs -o size=64m tmpfs /dev/shm"))
    )
    assert status == 1
    assert found["/dev/shm"].verdict == "warn"
    assert found["/dev/shm"].found.startswith("67.1 MB")
    assert "--shm-size" in found["/dev/shm"].remedy


@needs_mounts
def test_doctor_finds_that_dev_shm_is_missing() -> None:
    """Nothing there, or read-only: no SharedDict works, and it says so."""
    status, found = _examined(
        before=("unshare", "--mount", *_in_shell("mount -t tmpfs -o ro tmpfs /dev/shm"))
    )
    assert status == 1
    assert "no SharedDict works" in found["/dev/shm"].found


def test_doctor_finds_few_descriptors() -> None:
    """``ulimit -n 64``: a warning with the number; everything still works."""
    status, found = _examined(before=_in_shell("ulimit -n 64"), test=True)
    assert status == 1
    assert found["open files"].verdict == "warn"
    assert "ulimit -n is 64" in found["open files"].found
    assert found["self-test"].verdict == "ok", found["self-test"].found


def test_doctor_finds_more_workers_than_processors() -> None:
    """One processor by affinity, eight workers meant: a warning that says how many are of use."""
    one = str(min(os.sched_getaffinity(0)))
    status, found = _examined("--workers", "8", before=("taskset", "-c", one))
    assert status == 1
    assert found["processors"].verdict == "warn"
    assert "1 usable here" in found["processors"].found
    assert "8 workers asked for" in found["processors"].found
    assert found["processors"].remedy.startswith("Use 1:")
    assert _examined("--workers", "1", before=("taskset", "-c", one))[1]["processors"].verdict == "ok"


def test_doctor_finds_too_many_threads() -> None:
    """``OMP_NUM_THREADS=64``: how many threads that makes, and the command that undoes it."""
    status, found = _examined(OMP_NUM_THREADS="64")
    assert status == 1
    assert found["BLAS"].verdict == "warn"
    assert "OMP_NUM_THREADS=64" in found["BLAS"].found
    assert "unset OMP_NUM_THREADS" in found["BLAS"].remedy
    assert _examined(OMP_NUM_THREADS="1")[1]["BLAS"].verdict == "ok"


def test_doctor_finds_stale_dicts(run_script) -> None:
    """A dict whose program was killed is named; those in use and those made to stay are not."""
    space = {"NDSHARE_DICT_SPACE": "doctor"}
    run_script(
        "import os, signal, ndshare\nd = ndshare.SharedDict({'a': 1}, 'stale')\nos.kill(os.getpid(), signal.SIGKILL)",
        check=False,
        **space,
    )
    try:
        status, found = _examined(**space)
        assert status == 1
        assert found["SharedDicts"].verdict == "warn"
        assert "1 left over" in found["SharedDicts"].found
        assert "stale" in found["SharedDicts"].found
        assert "ndshare prune" in found["SharedDicts"].remedy
    finally:
        subprocess.run([sys.executable, "-m", "ndshare", "prune"], env={**os.environ, **space}, check=True)
    with ndshare.SharedDict({"a": np.zeros(3)}):
        assert _examined()[1]["SharedDicts"].verdict == "ok"


@needs_mounts
def test_doctor_finds_that_proc_is_missing() -> None:
    """Where ``import ndshare`` refuses, the doctor still speaks: what is missing first, and what follows."""
    status, found = _examined(
        before=("unshare", "--mount", *_in_shell("mount -t tmpfs tmpfs /proc")), test=True
    )
    assert status == 2
    assert found["/proc"].verdict == "fail"
    assert "mount -t proc" in found["/proc"].remedy
    assert found["ndshare"].verdict == "fail"
    assert found["self-test"].verdict == "fail"
    assert found["system calls"].verdict == "ok"


_NUMBERS = {
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "pidfd_open": {"x86_64": 434, "aarch64": 434},
}
_OLD_KERNEL = """
import ctypes, os, struct, sys
ENOSYS, ALLOW = 0x0005_0000 | 38, 0x7FFF_0000
number, wanted = int(sys.argv[1]), sys.argv[2:]
program = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 1, number),
    (0x06, 0, 0, ENOSYS),
    (0x06, 0, 0, ALLOW),
])
code = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(code)))) != 0:
    sys.exit("no seccomp")
os.execv(wanted[0], wanted)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of calls are not known")
@pytest.mark.parametrize("name", list(_NUMBERS))
def test_doctor_finds_a_missing_call(name: str) -> None:
    """A call that the kernel does not have, by a seccomp filter as in a container: named, with its version."""
    number = str(_NUMBERS[name][platform.machine()])
    old = (sys.executable, "-c", _OLD_KERNEL, number)
    if subprocess.run([*old, "/bin/true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("seccomp is not permitted here")
    status, found = _examined(before=old, test=name == "memfd_create")
    assert status == 2
    assert found["system calls"].verdict == "fail"
    assert f"{name}: ENOSYS" in found["system calls"].found
    assert "seccomp: filtered" in found["system calls"].found
    assert "seccomp profile" in found["system calls"].remedy
    assert name != "memfd_create" or found["self-test"].verdict == "fail"


def test_doctor_survives_a_self_test_that_hangs() -> None:
    """It is killed with all that it has started after its time, and the step is named."""
    finding = command.self_test(0.01)
    assert finding.verdict == "fail"
    assert "not done after" in finding.found


def test_doctor_survives_a_call_that_kills() -> None:
    """A filter may answer with a signal: the child that tried dies, and not the doctor."""
    assert calls._try(lambda: os.kill(os.getpid(), signal.SIGSYS)) == "the process that tried it was killed"
    assert calls._try(lambda: None) == ""
    assert "no such library" in calls._try(lambda: ctypes.CDLL("no such library"))


def test_doctor_survives_a_check_that_fails() -> None:
    """A check with an error is a finding, and the others go on."""

    def broken() -> Finding:
        raise OSError(5, "Input/output error")

    finding = command._guarded("disk", broken)
    assert (finding.name, finding.verdict) == ("disk", "warn")
    assert "Input/output error" in finding.found


def test_doctor_finds_limits_of_the_process(run_script) -> None:
    """``ulimit -v``, and a small number of mappings."""
    _, found = _examined(before=_in_shell("ulimit -v 16000000"))
    assert "RLIMIT_AS" in found["limits of the process"].found
    assert found["limits of the process"].verdict == "warn"


def test_doctor_names_unknown_variables(monkeypatch) -> None:
    """A variable of ndshare that does not exist is likely a typing error."""
    monkeypatch.setenv("NDSHARE_MEMORY", "1G")
    assert "NDSHARE_MEMORY" in python.variables().found
    assert python.variables().verdict == "warn"


def test_doctor_names_other_processes() -> None:
    """A process that holds segments is named with its memory."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        pid = executor.submit(os.getpid).result()
        _, found = _examined()
    text = found["other processes"].found
    assert "segments" in text
    assert str(os.getpid()) in text or str(pid) in text or "…" in text
    ndshare.shutdown()


def test_doctor_zero_workers_are_refused(capsys) -> None:
    """``--workers 0`` is refused with a sentence."""
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--workers", "0"])
    assert "at least 1 worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (67_108_864, "67.1 MB"), (25.3e9, "25.3 GB"), (3e13, "30 TB")]
)
def test_sizes_are_readable(nbytes: float, text: str) -> None:
    """Three digits and a unit."""
    assert readable(nbytes) == text


def test_checks_need_no_second_look(monkeypatch: Any) -> None:
    """What cannot be read is said to be unknown, not guessed."""
    monkeypatch.setattr(limits, "number_of", lambda path: None)
    assert "not known" in limits.mappings().found
    assert processors.usable() >= 1
