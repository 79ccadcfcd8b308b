"""What differs between processes and machines: subinterpreters, and the size of a page."""

from __future__ import annotations

import shutil
import subprocess

import pytest

pytestmark = pytest.mark.once

_BESIDE = """
import sys
try: import _interpreters as interpreters
except ImportError: import _xxsubinterpreters as interpreters
if sys.argv[1] == "before": import ndshare
run = getattr(interpreters, "exec", None) or interpreters.run_string
other = interpreters.create()
run(other, '''
try: import ndshare
except ImportError as error: print(error, flush=True)
else: print("imported", flush=True)
''')
import numpy as np, ndshare
from ndshare._memory import segments
_, limit = ndshare.stats().available, segments.set_idle_limit(0)
for _ in range(3):
    a = ndshare.empty(60 << 20, "u1"); a[::4096] = 1; del a
    with ndshare.shared_memory(): b = np.zeros(20 << 20)
    b.resize(10, refcheck=False); b.resize(3 << 20, refcheck=False); del b
    block = segments.stage(30 << 20); block.release()
segments.set_idle_limit(limit)
ndshare.trim()
with ndshare.ProcessPoolExecutor(1) as executor:
    print(executor.submit(np.add, np.ones(1 << 20), 1).result().sum())
interpreters.destroy(other)
print(ndshare.zeros(3))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_works_in_the_main_interpreter_and_refuses_others(run_script, when):
    """Memory is given back as always after another interpreter was made; there the import says why not."""
    done = run_script(_BESIDE, when)
    first, *rest = done.stdout.splitlines()
    assert (
        "was imported in a subinterpreter; ndshare works in the main interpreter of a process only" in first
    )
    assert rest == ["2097152.0", "[0. 0. 0.]"]


_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static long page(void) { return atol(getenv("PAGE_BYTES")); }
long sysconf(int name)
{
    long (*real)(int) = (long (*)(int))dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_PAGESIZE ? page() : real(name);
}
int getpagesize(void) { return (int)page(); }
"""

_PAGES = """
import mmap, os, random
import numpy as np, ndshare
from ndshare import _arrays
from ndshare._memory import segments
page = int(os.environ["PAGE_BYTES"])
assert mmap.PAGESIZE == page
rng, kept, next = random.Random(5), [], 0
for step in range(600):
    next = (next + 1) % 251
    n = rng.choice([1, 63, 3000, 4097, 17_000, 65_537, 200_000, 1_100_000, 5_000_000])
    a = _arrays.zeros(n, "u1") if step % 2 else _arrays.empty(n, "u1")
    assert step % 2 == 0 or not a.any()
    a[:] = next
    kept.append((a, next))
    if len(kept) > 25:
        b, expected = kept.pop(rng.randrange(25))
        assert (b == expected).all()
for n in (1, 5000, page + 1, 10 * page, 3 << 20):
    block = segments.stage(n)
    assert block.size % page == 0 and block.size >= n
    block.release()
assert all((b == expected).all() for b, expected in kept)
del kept, a, b
ndshare.trim()
with ndshare.ProcessPoolExecutor(2) as executor:
    for n in (1000, 200_000):
        assert (executor.submit(np.add, np.ones(n), 1).result() == 2).all()
q = ndshare.Queue()
q.put(np.arange(300_000)); assert q.get()[-1] == 299_999
q.close()
with ndshare.SharedDict({"a": np.zeros(100_000), "b": np.zeros(3)}) as d:
    d.write({"a": 1.0, "b": 2.0}); assert d["a"].sum() == 100_000 and d["b"].sum() == 6
out = ndshare.alloc(100)
def kernel(worker, index, value): out[index] = value
ndshare.map(kernel, np.arange(100.0)); assert out.sum() == 4950
ndshare.shutdown()
ndshare.trim()
s = ndshare.stats()
print(s.own_bytes, s.idle_bytes)
"""


@pytest.mark.unsanitized  # what is preloaded has to come after the sanitizer
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("nbytes", [4096, 16384, 65536])
def test_any_size_of_page_will_do(run_script, tmp_path, nbytes):
    """Where the system says that pages are larger, all sizes and offsets are multiples of that."""
    (tmp_path / "shim.c").write_text(_SHIM)
    shim = tmp_path / "shim.so"
    build = ["gcc", "-shared", "-fPIC", "-o", str(shim), str(tmp_path / "shim.c")]
    subprocess.run(build, check=True)
    done = run_script(_PAGES, LD_PRELOAD=str(shim), PAGE_BYTES=str(nbytes))
    own, idle = map(int, done.stdout.split())
    assert idle == 0
    assert own <= 200_000
