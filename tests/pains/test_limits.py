"""Limits of machines, containers and processes, which other libraries run into: each as it is set on real systems."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

needs_mounts = pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="mount namespaces are not permitted here",
)


def test_02_bystanders_take_nothing_away(run_script: Any, tmp_path: Path) -> None:
    """An unrelated interpreter attaches and ends: the creator still reads, and nothing is printed by either."""
    import numpy as np

    import ndshare

    with ndshare.SharedDict({"a": np.arange(5.0)}, "pains-02") as d:
        done = run_script("import ndshare\nprint(ndshare.SharedDict.attach('pains-02')['a'].sum())")
        assert (done.stdout, done.stderr) == ("10.0\n", "")
        assert d["a"].sum() == 10
    alone = run_script(
        "import os, time, ndshare\na = ndshare.ones(10**6)\npid = os.fork()\n"
        "if pid == 0: time.sleep(1); os._exit(0)\nprint(a.sum())"
    )
    assert (alone.stdout, alone.stderr) == ("1000000.0\n", "")


@needs_mounts
def test_03_small_dev_shm(tmp_path: Path) -> None:
    """With a /dev/shm of 64 MB, 1 GB works; a SharedDict that does not fit is a MemoryError with figures. Never SIGBUS."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import numpy as np, ndshare
a = ndshare.ones(1 << 30, np.uint8)
with ndshare.ProcessPoolExecutor(1) as ex:
    assert ex.submit(np.sum, a).result() == 1 << 30
try:
    ndshare.SharedDict({"a": np.zeros(1 << 24)}, "pains-03")
except MemoryError as error:
    print(error)
"""
    )
    mounted = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec " + f"{sys.executable} {program}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "/dev/shm" in done.stdout


def test_10_one_copy_for_all(run_script: Any) -> None:
    """A gigabyte that 8 workers read in 100 tasks is in memory once, and next to nothing goes through sockets."""
    out = run_script(
        """
import json, os
import numpy as np, ndshare
from tests.kernel import descendants, pss
a = ndshare.ones(1 << 27)
def look(x, i):
    return float(x[i :: 1 << 16].sum())
with ndshare.ProcessPoolExecutor(8) as ex:
    assert len([f.result() for f in [ex.submit(look, a, i) for i in range(100)]]) == 100
    print(json.dumps(sum(map(pss, [os.getpid(), *descendants(os.getpid())]))))
""",
        timeout=300,
    ).stdout
    assert json.loads(out) < 1.35e9  # with the interpreters of ten processes


@pytest.mark.parametrize("limit", [64, 256])
def test_20_many_arrays_few_descriptors(run_script: Any, limit: int) -> None:
    """With `ulimit -n 64`, 10,000 live arrays in 2 workers: no error, no name anywhere."""
    done = run_script(
        f"""
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
import numpy as np, ndshare
before = set(os.listdir("/dev/shm"))
arrays = [ndshare.full(100, i) for i in range(10_000)]
def total(part):
    return sum(int(a[0]) for a in part)
with ndshare.ProcessPoolExecutor(2) as ex:
    parts = [arrays[:5000], arrays[5000:]]
    assert sum(ex.map(total, parts)) == sum(range(10_000))
assert set(os.listdir("/dev/shm")) == before
"""
    )
    assert done.stderr == ""


def test_24_workers_follow_affinity(run_script: Any) -> None:
    """With one processor by `taskset` there is one worker by default, with two there are two."""
    for count in (1, 2):
        cpus = sorted(os.sched_getaffinity(0))[:count]
        if len(cpus) < count:
            continue
        out = run_script(
            f"import os\nos.sched_setaffinity(0, {cpus})\nimport ndshare\n"
            "with ndshare.ProcessPoolExecutor() as ex: print(ex._max_workers)"
        ).stdout
        assert int(out) == count


def test_36_a_lazy_map_holds_a_window(run_script: Any) -> None:
    """`next(map(f, itertools.count()))` returns, and results that nobody reads do not pile up."""
    run_script(
        """
import itertools, numpy as np, ndshare
from tests.kernel import descendants, pss
import os
def make(i):
    return np.full(125_000, i)
with ndshare.ProcessPoolExecutor(2) as ex:
    results = ex.map(make, itertools.count(), buffersize=8)
    for i in range(1000):
        assert next(results)[0] == i
    used = sum(map(pss, [os.getpid(), *descendants(os.getpid())]))
    assert used < 500e6, used
    results.close()
"""
    )


def test_38_the_account_is_right(run_script: Any) -> None:
    """What `stats` says is held is what the kernel counts, and what cannot fit is refused before it is touched."""
    run_script(
        """
import numpy as np, ndshare
def shmem():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Shmem"))
before = shmem()
arrays = [ndshare.ones(n) for n in (1 << 20, 1 << 21, 12_345)]
held = shmem() - before
assert abs(ndshare.stats().own_bytes - held) < 0.02 * held + 4 * 65536, (ndshare.stats(), held)
try:
    ndshare.empty(1 << 45, np.uint8)
except MemoryError as error:
    assert "free" in str(error) or "available" in str(error), error
else:
    raise SystemExit("not refused")
"""
    )


_NO_SHM = r"""
#include <errno.h>
int shm_open(const char *n, int f, int m) { errno = ENOSYS; return -1; }
void *sem_open(const char *n, int f, ...) { errno = ENOSYS; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_39_without_posix_shared_memory(tmp_path: Path, run_script: Any) -> None:
    """Where shm_open and sem_open do not exist (AWS Lambda), import and maps work all the same."""
    (tmp_path / "no.c").write_text(_NO_SHM)
    library = tmp_path / "no.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "no.c"], check=True)
    done = run_script(
        "import ndshare\nout = ndshare.alloc(5)\n"
        "ndshare.map(lambda w, i, v: out.__setitem__(i, v), range(5))\nprint(out.sum())",
        LD_PRELOAD=str(library),
    )
    assert (done.stdout, done.stderr) == ("10.0\n", "")
