"""Limits: what cannot fit is refused with figures before anything is taken; scarce things are shared out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import CapacityError
from tests.peers import Peer, staged

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("fresh_heap")]

MB = 1 << 20
GROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_limit():
    """Return a function that sets the limit which NDSHARE_MEMORY_LIMIT sets at import."""
    yield _heap.set_memory_limit
    _heap.set_memory_limit(None)


def test_allocation_larger_than_the_machine_raises_capacity_error():
    """MemoryError with asked, free and the limit, and nothing taken."""
    before = segments.stats().own_bytes
    with pytest.raises(MemoryError, match="limit that binds is the") as caught:
        _arrays.empty(1 << 44, np.uint8)
    assert isinstance(caught.value, CapacityError)
    assert caught.value.asked == 1 << 44
    assert 0 < caught.value.available < 1 << 44
    with pytest.raises(CapacityError, match="address space"):
        _arrays.empty(1 << 50, np.uint8)
    with pytest.raises(CapacityError):
        segments.stage(1 << 44)
    assert segments.stats().own_bytes == before


def test_memory_limit_binds(memory_limit):
    """NDSHARE_MEMORY_LIMIT simulates a small machine."""
    memory_limit(64 * MB)
    kept = [staged(20 * MB) for _ in range(3)]
    with pytest.raises(CapacityError, match="NDSHARE_MEMORY_LIMIT") as caught:
        segments.stage(20 * MB)
    assert caught.value.available < 5 * MB
    kept.pop()
    segments.stage(20 * MB).release()  # recycled, and thus free
    segments.stage(22 * MB).release()  # idle memory is given up for it
    with pytest.raises(CapacityError):
        _arrays.zeros(100 * MB, np.uint8)
    del kept


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0), ("100", 100), ("1k", 1024), ("1K", 1024), ("300M", 300 * MB), ("1.5G", 1536 * MB),
        ("2t", 2 << 40), (" 1.5 GB ", 1536 * MB), ("64MiB", 64 * MB), (".5m", MB // 2), ("1.", 1),
        ("0.0001K", 0), ("9" * 40, int("9" * 40)),
    ],
)  # fmt: skip
def test_sizes_have_units_and_decimals(text, nbytes):
    """Powers of 1024, exactly."""
    assert segments.parse_size(text, "a size") == nbytes


@pytest.mark.parametrize(
    "text", ["lots", "1.5X", "-1", "1,5G", "1e9", "G", "0x10", "1 2", "12MM", "nan", "٣M"]
)
def test_what_is_no_size_is_refused_with_a_sentence(text):
    """What was got, and what is allowed."""
    with pytest.raises(ValueError, match=r"a size is .* allowed is a number of bytes.*such as 300M or 1\.5G"):
        segments.parse_size(text, "a size")


def test_memory_limit_is_read_from_the_environment_at_import(run_script):
    """NDSHARE_MEMORY_LIMIT with a unit and decimals binds; what is no size stops the import with a sentence."""
    script = """
import ndshare
try: ndshare.empty(60 << 20, "u1")
except MemoryError as error: print(error.limit, error.available)
print(ndshare.empty(40 << 20, "u1").nbytes)
"""
    for text in ("0.05G", "51.2M", "53687091"):
        done = run_script(script, NDSHARE_MEMORY_LIMIT=text)
        assert done.stdout.splitlines() == ["NDSHARE_MEMORY_LIMIT 53687091", str(40 * MB)]
    done = run_script("import ndshare", check=False, NDSHARE_MEMORY_LIMIT="1.5X")
    assert done.returncode == 1
    assert "NDSHARE_MEMORY_LIMIT is '1.5X'; allowed is a number of bytes" in done.stderr.splitlines()[-1]


def test_memory_limit_of_workers_is_their_environments(run_script):
    """A limit given by `env=` holds in the workers, not in the caller."""
    done = run_script("""
import numpy as np, ndshare
def refused(n):
    try: ndshare.empty(n, "u1")
    except MemoryError as error: return error.limit
with ndshare.ProcessPoolExecutor(1, env={"NDSHARE_MEMORY_LIMIT": "20M"}) as executor:
    print(executor.submit(refused, 30 << 20).result(), executor.submit(refused, 10 << 20).result())
print(refused(30 << 20))
""")
    assert done.stdout == "NDSHARE_MEMORY_LIMIT None\nNone\n"


_BEYOND = """
import resource, sys
import numpy as np, ndshare
from ndshare._memory import _heap, segments
scarce = sys.argv[1] == "scarce"
if scarce: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
keep = [ndshare.empty(3 << 20, "u1") for _ in range(9 if scarce else 1)]
def refused(make, *arguments, **keywords):
    try: make(*arguments, **keywords)
    except MemoryError: return
    raise AssertionError((make, arguments))
model = np.empty(0, "u1")
sizes = [2**n + d for n in (44, 45, 46, 47, 48, 55, 61, 62) for d in (-1, 0, 1)]
for n in sizes:
    for make in (ndshare.empty, ndshare.zeros, ndshare.ones):
        refused(make, n, "u1")
    refused(ndshare.full, n, 7, "u1")
    refused(ndshare.empty_like, model, shape=n)
    refused(ndshare.zeros_like, model, shape=(1, n))
    refused(segments.stage, n)
    refused(segments.allocate, n)
    with ndshare.shared_memory():
        refused(np.ones, n, "u1")
    former = _heap.set_handler(segments.value_handler())
    refused(np.ones, n, "u1")
    _heap.set_handler(former)
refused(ndshare.empty, (2**40, 2**40))
refused(ndshare.empty, 2**63, "u1")
refused(ndshare.empty, 2**70)
assert all((ndshare.zeros(3 << 20, "u1") == 0).all() for _ in range(3))
print("refused")
"""


@pytest.mark.parametrize("descriptors", ["scarce", "plenty"])
def test_sizes_beyond_the_address_space_are_memory_errors(run_script, descriptors):
    """However it is asked for, with few descriptors left as well, where large arrays share a segment."""
    assert run_script(_BEYOND, descriptors).stdout == "refused\n"


def test_sizes_beyond_the_address_space_are_memory_errors_in_a_worker(run_script):
    """What a task asks NumPy or ndshare for there."""
    done = run_script("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
import numpy as np, ndshare
def refused(n):
    keep = [ndshare.empty(3 << 20, "u1") for _ in range(15)] + [np.ones(3 << 20, "u1") for _ in range(3)]
    found = []
    for make in (np.ones, ndshare.empty, ndshare.zeros):
        try: make(n, "u1")
        except MemoryError: found.append(make.__name__)
    return found
with ndshare.ProcessPoolExecutor(1) as executor:
    for n in (2**46 + 1, 2**47 + 1, 2**60):
        print(*executor.submit(refused, n).result())
""")
    assert done.stdout == "ones empty zeros\n" * 3


@pytest.mark.unsanitized  # it cannot do without new mappings itself
def test_no_mapping_left_is_a_memory_error(run_script):
    """What the kernel calls ENOMEM is a MemoryError, whichever system call says so."""
    done = run_script("""
import ctypes, mmap
import numpy as np, ndshare
from ndshare._memory import segments
kept = [ndshare.ones(2 << 20, "u1")]
most = int(open("/proc/sys/vm/max_map_count").read())
libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
room = mmap.mmap(-1, page * 2 * most)
base = ctypes.addressof(ctypes.c_char.from_buffer(room))
errors = [None] * 4
makes = [lambda: kept.append(ndshare.empty(2 << 20, "u1"))] * 2 + [  # for the first there may be room
    lambda: segments.stage(5 << 20), lambda: segments.seal(bytes(5)), lambda: ndshare.empty(100_000, "u1")]
at = 0
while libc.mprotect(base + at, page, 0) == 0:
    at += 2 * page
for i, make in enumerate(makes):
    try: make()
    except BaseException as error: errors[i - 1] = error
libc.mprotect(base, at, mmap.PROT_READ)
for error in errors: print(isinstance(error, ndshare.CapacityError), getattr(error, "limit", error))
""")
    lines = done.stdout.splitlines()
    assert lines == ["True address space of this process, or the number of its mappings"] * 4, done.stdout


def test_handler_falls_back_to_ordinary_memory_where_segments_do_not_fit(memory_limit):
    """Code that makes arrays under shared_memory() or in a worker is never refused by ndshare."""
    memory_limit(8 * MB)
    with segments.shared_memory():
        a, b = np.ones(MB), np.zeros((4, MB))
    assert not ndshare.is_shared(b)
    assert a.sum() == MB
    b.resize(10)
    del a, b
    with segments.shared_memory():
        c = np.ones(MB // 4)
    assert ndshare.is_shared(c)


def test_file_size_limit_is_named(run_script):
    """RLIMIT_FSIZE stops memory files as well; it ends in an error, not in a signal."""
    done = run_script("""
import resource, numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import CapacityError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 22, 1 << 22))
a = _arrays.ones(1000); b = _arrays.ones(1 << 20, np.uint8)
for make in (lambda: _arrays.empty(1 << 23, np.uint8), lambda: segments.stage(1 << 23)):
    try: make()
    except CapacityError as error: print(error)
with segments.shared_memory():
    c = np.ones(1 << 21)
print(ndshare.is_shared(c), a.sum(), [_arrays.ones(700_000, np.uint8).sum() for _ in range(30)][-1])
""")
    assert done.stdout.count("ulimit -f") == 2
    assert "False 1000.0 700000" in done.stdout


@pytest.mark.unsanitized  # a sanitizer needs terabytes of address space
def test_address_space_limit_is_named(run_script):
    """RLIMIT_AS binds before mmap fails."""
    done = run_script("""
import resource, numpy as np
import ndshare
from ndshare import _arrays
from ndshare.errors import CapacityError
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try: _arrays.empty(1 << 27, np.uint8)
except CapacityError as error: print(error)
print(_arrays.ones(1 << 22, np.uint8).sum())
""")
    assert "ulimit -v" in done.stdout
    assert "4194304" in done.stdout


# Imports come first: an ordinary user may not be able to read root's Python.
_AS_NOBODY = """
import os, random, resource, socket, sys
import numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import segments
from ndshare._system import _wire
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
rng = random.Random(4)
"""


def test_shared_arrays_ten_thousand_of_mixed_sizes_under_256_descriptors(run_script):
    """Many live shared arrays need few descriptors, for an ordinary user."""
    done = run_script(
        _AS_NOBODY
        + """
kept = []
for i in range(10_000):
    n = min(int(10 ** rng.uniform(0, 6.02)), 1 << 20)
    a = _arrays.empty(n, np.uint8); a[0] = a[-1] = i % 251
    kept.append(a)
assert all(a[0] == a[-1] == i % 251 for i, a in enumerate(kept))
assert all(map(ndshare.is_shared, kept))
print(len(os.listdir("/proc/self/fd")), segments.stats().own_segments)
big = [_arrays.empty((1 << 20) + 4096 * i, np.uint8) for i in range(300)]
for i, a in enumerate(big): a[0] = a[-1] = i % 251
assert all(a[0] == a[-1] == i % 251 for i, a in enumerate(big))
print(len(os.listdir("/proc/self/fd")), segments.stats().own_segments)
del kept, big, a
segments.trim()
print(segments.stats().own_segments)
""",
    )
    numbers = [int(word) for word in done.stdout.split()]
    assert numbers[0] < 128
    assert numbers[2] < 200
    assert numbers[4] == 0


def test_received_arrays_ten_thousand_under_256_descriptors(run_script):
    """A receiver that follows should_copy_out keeps any number of results."""
    done = run_script(
        _AS_NOBODY
        + """
mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    mine.close()
    segments.install_handler()
    for i in range(10_000):
        n = rng.choice([300_000, 500_000, 1_000_000]) if i % 50 == 0 else 300_000 + i
        n = n if i < 600 else 262_144
        x = np.full(n, i % 251, np.uint8)
        block, offset = segments.block_of(x)
        del x
        fd = block.lend()
        head = np.array([block.uid, block.size, block.kind, block.offset + offset, n])
        block.release()
        _wire.send_message(theirs.fileno(), [head.tobytes()], [fd], 0)
        os.close(fd)
        theirs.recv(1)
    os._exit(0)
theirs.close()
kept, buffer, copied = [], bytearray(100), 0
for i in range(10_000):
    _, (fd,) = _wire.recv_message(mine.fileno(), buffer, 0)
    uid, size, kind, offset, n = np.frombuffer(buffer, np.int64, 5).tolist()
    block = segments.attach(uid, size, kind, fd)
    x = block.array("u1", (n,), None, offset)
    if segments.should_copy_out(block):
        x = x[:64].copy(); copied += 1   # the head is enough to check, and ten thousand fit anywhere
    block.release()
    kept.append(x)
    mine.send(b"x")
assert all((x[:64] == i % 251).all() for i, x in enumerate(kept))
_, status = os.waitpid(pid, 0)
print(status, copied, len(os.listdir("/proc/self/fd")))
"""
    )
    status, copied, open_files = map(int, done.stdout.split())
    assert status == 0
    assert copied >= 9_990
    assert open_files < 64


def test_out_of_descriptors_is_an_error_that_says_so(run_script):
    """Nothing but descriptors missing: SegmentError with the remedy, and everything usable afterwards."""
    done = run_script("""
import os, resource, numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import SegmentError
a = _arrays.ones(10)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
block, _ = segments.block_of(a)
files = []
try:
    while True: files.append(os.open("/dev/null", os.O_RDONLY))
except OSError: pass
for refused in (block.lend, lambda: segments.stage(1 << 20), lambda: _arrays.empty(1 << 22)):
    try: refused()
    except SegmentError as error: print(error)
with segments.shared_memory():
    print(ndshare.is_shared(np.ones(1 << 20)))
for fd in files: os.close(fd)
os.close(block.lend())
print(_arrays.ones(1 << 20).sum())
""")
    assert done.stdout.count("ulimit -n") == 3
    assert "1048576.0" in done.stdout


def test_ledger_counts_what_the_others_reserve(monkeypatch):
    """Processes of one pool see each other's memory under a common limit."""
    monkeypatch.setenv("NDSHARE_MEMORY_LIMIT", "100M")
    fd = segments.ledger_create(4)
    try:
        with Peer() as peer:
            take_part = "segments.ledger_attach(fds[0], 1); x = _arrays.empty(60 << 20, np.uint8)"
            peer.run(take_part, send=(os.dup(fd),))
            script = f"""
import os
import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import CapacityError
segments.ledger_attach({fd}, 2)
try: _arrays.empty(60 << 20, 'u1')
except CapacityError as error: print(error.available < 41 << 20)
print(_arrays.empty(30 << 20, 'u1').nbytes)
segments.ledger_clear(1)   # as the pool does when that process has died
print(_arrays.empty(60 << 20, 'u1').nbytes)
"""
            done = subprocess.run(
                [sys.executable, "-c", script], pass_fds=[fd], capture_output=True, text=True, check=True
            )
            assert done.stdout.split() == ["True", str(30 * MB), str(60 * MB)]
        with pytest.raises(ValueError, match="slot is 4"):
            segments.ledger_attach(fd, 4)
    finally:
        os.close(fd)


def test_ledger_of_processes_that_ask_at_once_admits_only_what_fits(monkeypatch):
    """Two that race may both be refused; never are both admitted."""
    monkeypatch.setenv("NDSHARE_MEMORY_LIMIT", "100M")
    fd = segments.ledger_create(8)
    start, go = os.pipe()
    script = f"""
import os, time
import ndshare
from ndshare import _arrays
from ndshare._memory import segments
segments.ledger_attach({fd}, int(os.sys.argv[1]))
print("ready", flush=True)
os.read({start}, 1)
try: x = _arrays.ones(40 << 20, 'u1'); print("got", flush=True)
except MemoryError: print("refused", flush=True)
os.sys.stdin.readline()
"""
    try:
        crowd = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(i)],
                pass_fds=[fd, start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(6)
        ]
        assert [p.stdout.readline() for p in crowd] == ["ready\n"] * 6
        os.close(go)
        said = [p.stdout.readline().strip() for p in crowd]
        for p in crowd:
            p.communicate("\n")
        assert said.count("got") <= 2
    finally:
        for number in (fd, start):
            os.close(number)


@pytest.fixture
def small_group():
    """Make a memory cgroup (v1) with 200 MB."""
    if os.getuid() != 0 or not GROUP.is_dir() or not os.access(GROUP, os.W_OK):
        pytest.skip("needs root and the v1 memory controller at /sys/fs/cgroup/memory")
    group = GROUP / f"ndshare-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 * MB))
    except OSError as error:
        pytest.skip(f"memory cgroups cannot be made here: {error}")
    yield group
    for _ in range(100):
        with contextlib.suppress(OSError):
            group.rmdir()
            break
        time.sleep(0.05)


def test_allocation_in_a_memory_cgroup_raises_instead_of_being_killed(small_group, run_script):
    """In a container that is too small there is a MemoryError, and no SIGKILL or SIGBUS."""
    done = run_script(
        """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
import numpy as np
import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
from ndshare.errors import CapacityError
print(segments.stats().idle_limit <= 25 << 20)
kept = []
try:
    while True: kept.append(_arrays.ones(20 << 20, np.uint8))
except CapacityError as error: print(error)
print(len(kept))
kept.pop()
kept.append(_arrays.ones(20 << 20, np.uint8))
segments.install_handler()
del kept
x = np.ones(100 << 20, np.uint8)
print(x.sum())
""",
        str(small_group),
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "True"
    assert "control group" in lines[1]
    assert 3 <= int(lines[2]) <= 9
    assert lines[3] == str(100 * MB)
