"""The heap: allocation, adoption, reallocation, and a random walk against a model that knows every byte."""

from __future__ import annotations

import mmap
import os
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ndshare import _arrays
from ndshare._memory import _heap, segments
from tests.peers import staged, take, ticket, uid_of

pytestmark = [pytest.mark.once, pytest.mark.sanitized, pytest.mark.usefixtures("fresh_heap")]

KB, MB = 1 << 10, 1 << 20


@pytest.fixture
def value_handler():
    """NumPy's allocator as it is in a worker."""
    former = _heap.set_handler(_heap.make_handler(segments.VALUE))
    yield
    _heap.set_handler(former)


def kind_of(array):
    """VALUE, SHARED ... or None for ordinary memory."""
    found = segments.block_of(array)
    return None if found is None else found[0].kind


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4096, 4097, 36865, MB - 1, MB + 1, 160_000_000, 7 * MB + 3])
def test_stage_rounds_up_by_less_than_an_eighth(nbytes):
    """Size classes waste little and keep similar sizes together."""
    block = segments.stage(nbytes)
    assert block.nbytes == nbytes
    assert nbytes <= block.size <= max(nbytes * 1.126 + 4096, 4096)
    assert block.size % 4096 == 0
    assert len(memoryview(block)) == nbytes
    block.release()


def test_stage_reuses_the_memory_freed_last():
    """Last in, first out: its pages are in the cache."""
    blocks = [segments.stage(MB) for _ in range(3)]
    uids = [block.uid for block in blocks]
    for block in blocks:
        block.release()
    assert [segments.stage(MB).uid for _ in range(1)] == uids[-1:]


def test_stage_refuses_what_is_no_size():
    """Sizes are non-negative integers."""
    with pytest.raises(ValueError, match="negative"):
        segments.stage(-1)
    with pytest.raises(TypeError):
        segments.stage("1")
    with pytest.raises(OverflowError):
        segments.stage(1 << 70)


def test_handler_takes_large_blocks_only(value_handler):
    """Small arrays come from NumPy's own allocator."""
    assert kind_of(np.ones(100)) is None
    assert kind_of(np.ones(MB)) == segments.VALUE
    assert kind_of(np.zeros(MB)) == segments.VALUE
    assert kind_of(np.ones(MB) + 1) == segments.VALUE


def test_handler_clears_recycled_memory_for_zeros(value_handler):
    """np.zeros is zero, on memory that was used before too."""
    uid = uid_of(np.full(MB, 255, np.uint8))
    a = np.zeros(MB, np.uint8)
    assert uid_of(a) == uid
    assert not a.any()
    a.fill(7)
    with segments.shared_memory():
        b = np.full(100, 7, np.uint8)
        del b
        assert not np.zeros(100, np.uint8).any()


def test_handler_reallocates_across_the_threshold_both_ways(value_handler):
    """Where memory belongs is decided by its address, never by its size."""
    a = np.arange(100)
    for n, kind in (
        (200_000, segments.VALUE),
        (10, None),
        (100_000, segments.VALUE),
        (400_000, segments.VALUE),
        (50, None),
    ):
        head = a[:10].copy()
        a.resize(n)
        assert kind_of(a) == kind
        assert (a[:10] == head).all()
    x = np.ones(20000)
    x.resize(10)
    del x


def test_handler_gives_a_much_smaller_block_its_large_memory_back(value_handler):
    """A shrunk array does not keep the pages of what it was."""
    a = np.ones(8 * MB, np.uint8)
    a.resize(MB)
    assert segments.block_of(a)[0].size < 2 * MB


def test_lend_is_undone_by_the_holder_only(value_handler):
    """Memory lent is not reused; memory no longer lent is."""
    a = np.ones(MB)
    uid = uid_of(a)
    block, _ = segments.block_of(a)
    fd = block.lend()
    block.release()
    del a
    others = {uid_of(np.ones(MB)) for _ in range(5)}
    assert uid not in others
    os.close(fd)
    segments.trim()
    assert segments.stats().own_segments == 0


def test_trim_under_live_arrays_keeps_their_content():
    """Only what nobody uses is given back."""
    kept = [_arrays.full(n, i, np.uint8) for i, n in enumerate((10, 5000, 70_000, 900_000, 3 * MB))]
    dropped = [_arrays.full(n, 9, np.uint8) for n in (10, 5000, 70_000, 900_000, 3 * MB)]
    del dropped
    assert segments.trim() > 3 * MB
    assert all((a == i).all() for i, a in enumerate(kept))
    assert not _arrays.zeros(900_000, np.uint8).any()
    assert not _arrays.zeros(70_000, np.uint8).any()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_block_array_of_any_layout_sees_the_right_bytes(data):
    """Negative, zero and overlapping strides give the same elements as NumPy's own view."""
    base = np.arange(240).astype(data.draw(st.sampled_from(["u1", ">i2", "f8", "S3"])))
    shape = data.draw(st.sampled_from([(240,), (4, 60), (2, 3, 40), (2, 3, 4, 10), (1, 240, 1), (0, 240)]))
    base = base[: int(np.prod(shape))].reshape(shape)
    view = base.transpose(data.draw(st.permutations(range(base.ndim))))
    view = view[data.draw(hnp.basic_indices(view.shape, allow_ellipsis=False))]
    if not isinstance(view, np.ndarray):
        view = np.asarray(view)
        base = view
    if data.draw(st.booleans()):
        view = np.broadcast_to(view, (2, *view.shape))
    block = segments.allocate(base.nbytes, zero=True)
    memoryview(block).cast("B")[:] = base.tobytes()
    start = base.__array_interface__["data"][0]
    low = view.__array_interface__["data"][0]
    low += sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True) if s < 0 and n > 0)
    a = block.array(view.dtype, view.shape, view.strides, max(low - start, 0) if view.size else 0)
    block.release()
    assert a.dtype == view.dtype
    assert a.shape == view.shape
    if view.size:
        assert a.strides == view.strides
        found, offset = segments.block_of(a)
        assert offset == low - start
        assert found.users == 1
    assert (np.asarray(a) == view).all()
    assert a.flags.writeable
    del a


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("f8", (100,), None, 400), ValueError),
        (("f8", (101,)), ValueError),
        (("f8", (2,), (1000,)), ValueError),
        (("f8", (2,), (-8,), 792), ValueError),
        (("f8", (2, 2), (8,)), ValueError),
        (("f8", (-1,)), ValueError),
        (("f8", (1 << 62, 1 << 62)), ValueError),
        (("f8", (3,), (1 << 62,)), ValueError),
        (("f8", (3,), (-(1 << 62),)), ValueError),
        (("f8", (1,), None, -1), ValueError),
        (("f8", (1,) * 65), ValueError),
        (("O", (1,)), TypeError),
        ((("f8", (2,)), (1,)), TypeError),
        (("f8", 5), TypeError),
        (("f8", ("a",)), TypeError),
    ],
)
def test_block_array_outside_of_the_block_is_refused(arguments, error):
    """No message can make an array reach beyond its block."""
    block = segments.allocate(800)
    with pytest.raises(error):
        block.array(*arguments)
    assert block.users == 0


def test_block_array_survives_its_handle_and_segment_survives_the_array():
    """The array keeps the memory by itself; the handle does too."""
    block = segments.stage(MB)
    a = block.array("u1", (MB,))
    uid = block.uid
    block.release()
    a[:] = 3
    assert uid_of(staged(MB)) != uid
    again, _ = segments.block_of(a)
    del a
    assert bytes(memoryview(again)[:3]) == b"\3\3\3"


def test_block_of_finds_the_lowest_byte():
    """Reversed and transposed views are found with their extent."""
    a = _arrays.zeros((10, 20))
    base = segments.block_of(a)[1]
    assert segments.block_of(a[::-1])[1] == base
    assert segments.block_of(a[5::-1, 3:])[1] == base + 24
    assert segments.block_of(a[2:, ::-2])[1] == base + 2 * 160 + 8
    assert segments.block_of(np.ones(3)) is None
    assert segments.block_of("no array") is None


class Held:
    """A receiver, as the kernel sees one: a descriptor that holds, and what it ought to read."""

    def __init__(self, where, fd, expected):
        self.where, self.fd, self.expected = where, fd, expected


def pattern(n, seed):
    """Bytes that belong to one array only."""
    return (np.arange(n, dtype=np.uint32) * 2654435761 + seed).view(np.uint8)[:n].copy()


SIZES = st.one_of(st.integers(0, 300), st.sampled_from([4096, 5000, 70_000, 300_000, 1_000_000, 2_000_000]))


class HeapMachine(RuleBasedStateMachine):
    """Allocate, lend, take back, drop, fork and trim in any order: no byte is ever anybody else's."""

    live = Bundle("live")
    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.arrays = {}
        self.holds = {}
        self.children = []
        self.next = 0

    def keep(self, a):
        self.next += 1
        expected = pattern(a.size, self.next)
        a[...] = expected
        self.arrays[self.next] = (a, expected)
        return self.next

    @rule(target=live, n=SIZES)
    def make_shared(self, n):
        return self.keep(_arrays.empty(n, np.uint8))

    @rule(target=live, n=SIZES)
    def make_zeros(self, n):
        a = _arrays.zeros(n, np.uint8)
        assert not a.any()
        return self.keep(a)

    @rule(target=live, n=SIZES)
    def make_in_context(self, n):
        with segments.shared_memory():
            a = np.empty(n, np.uint8)
        return self.keep(a)

    @rule(target=live, n=SIZES)
    def make_by_value(self, n):
        former = _heap.set_handler(_heap.make_handler(segments.VALUE))
        a = np.empty(n, np.uint8)
        _heap.set_handler(former)
        return self.keep(a)

    @rule(target=live, n=SIZES)
    def make_staged(self, n):
        return self.keep(staged(n))

    @rule(key=live, n=SIZES)
    def resize(self, key, n):
        if key in self.arrays:
            a, expected = self.arrays.pop(key)
            view = np.zeros(n, np.uint8)
            view[: min(n, len(expected))] = expected[:n]
            if any(hold.where[-1] == key for hold in self.holds.values()):
                self.arrays[key] = (a, expected)
                return
            a.resize(n, refcheck=False)
            self.arrays[key] = (a, view)

    @rule(target=held, key=live)
    def lend(self, key):
        self.next += 1
        if key in self.arrays:
            a, expected = self.arrays[key]
            found = segments.block_of(a)
            if found is not None and found[0].lendable and a.size:
                found[0].release()
                where, fd = ticket(a)
                self.holds[self.next] = Held((*where, key), fd, expected)
        return self.next

    @rule(hold=consumes(held))
    def give_back(self, hold):
        if hold in self.holds:
            os.close(self.holds.pop(hold).fd)

    @rule(target=live, hold=consumes(held))
    def come_home(self, hold):
        self.next += 1
        if hold in self.holds:
            what = self.holds.pop(hold)
            a = take(what.where[:-1], what.fd)
            self.arrays[self.next] = (a, what.expected)
        return self.next

    @rule(key=consumes(live))
    def drop(self, key):
        self.arrays.pop(key, None)

    @rule()
    def trim(self):
        segments.trim()

    @rule()
    def fork(self):
        if len(self.children) > 3:
            self.reap()
        wait, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(go)
                for _, other in self.children:
                    os.close(other)
                os.read(wait, 1)
                right = self.content_is_right()
                own = [_arrays.full(n, 238, np.uint8) for n in (10, 5000, 300_000, 2_000_000) * 4]
                segments.trim()
                code = 0 if right and self.content_is_right() and all(a.max() == 238 for a in own) else 2
            finally:
                os._exit(code)
        os.close(wait)
        self.children.append((pid, go))

    @rule()
    def reap(self):
        while self.children:
            pid, go = self.children.pop()
            os.close(go)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def content_is_right(self):
        return all((a == expected).all() for a, expected in self.arrays.values())

    @invariant()
    def every_byte_is_as_its_owner_left_it(self):
        assert self.content_is_right()
        for hold in self.holds.values():
            _, size, _, _, shape, _, offset, _ = hold.where
            with mmap.mmap(hold.fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
                assert view[offset : offset + shape[0]] == hold.expected.tobytes()

    def teardown(self):
        self.reap()
        for hold in self.holds.values():
            os.close(hold.fd)
        self.arrays.clear()
        segments.trim()
        s = segments.stats()
        assert (s.own_segments, s.own_bytes, s.held_segments, s.idle_bytes) == (0, 0, 0, 0)


HeapMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHeapAgainstModel = HeapMachine.TestCase


def test_heap_under_threads_mixes_nothing_up():
    """Threads that allocate, lend, take and drop at once see their own bytes only."""
    failures = []

    def work(seed):
        rng = np.random.default_rng(seed)
        former = _heap.set_handler(_heap.make_handler(segments.VALUE))
        kept = []
        try:
            for step in range(150):
                n = int(rng.choice([30, 3000, 100_000, 300_000, 1_200_000]))
                a = _arrays.empty(n, np.uint8) if step % 2 else np.empty(n, np.uint8)
                a[...] = value = (seed * 31 + step) % 251
                kept.append((a, value))
                found = segments.block_of(a)
                if found is not None:
                    where, fd = ticket(a)
                    if step % 3:
                        kept.append((take(where, fd), value))
                    else:
                        os.close(fd)
                if len(kept) > 10:
                    b, expected = kept.pop(int(rng.integers(len(kept))))
                    if not (b == expected).all():
                        failures.append((seed, step))
                if step % 40 == 39:
                    segments.trim()
                    segments.stats()
        except BaseException as error:
            failures.append(error)
        finally:
            _heap.set_handler(former)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


_RESIZE = """
import sys, threading, time
import numpy as np, ndshare
from ndshare._memory import _heap, segments
segments.set_idle_limit(0)
_heap.set_handler(segments.value_handler())
arrays = [ndshare.ones(1 << 20), np.ones(1 << 20), ndshare.ones(1000), np.ones(1000)]
stop = False
def read():
    while not stop:
        for a in arrays:
            assert a.item(0) == 1 and a[5] == 1  # no view: it would keep the address of the old memory
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads: thread.start()
until, n = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < until:
    for a in arrays:
        a.resize(a.size * (1 + n % 3) if n % 3 else max(a.size // 6, 500), refcheck=False)
    n += 1
stop = True
for thread in threads: thread.join()
print("read")
"""


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a GIL no array of NumPy's can be read while it is resized",
)
def test_array_can_be_read_while_another_thread_resizes_it(run_script):
    """NumPy gives up the old memory before it knows the new: nobody else may run in between."""
    assert run_script(_RESIZE, "2").stdout == "read\n"


class Naughty:
    """A shape, a dtype or an offset that releases the block while it is read."""

    def __init__(self, act):
        self.act = act

    def __index__(self):
        self.act()
        return 0

    def __iter__(self):
        yield 1
        self.act()
        yield 1

    @property
    def dtype(self):
        self.act()
        return np.dtype("u1")


@pytest.mark.parametrize("make", [segments.stage, segments.allocate, lambda n: segments.seal(bytes(n))])
@pytest.mark.parametrize("where", ["dtype", "shape", "strides", "offset"])
def test_block_released_by_what_describes_the_array_stays_until_the_array_is_made(make, where):
    """Code that runs in the middle of `Block.array` can release the block, and the array is whole all the same."""
    for size in (100, 3 * MB):
        block = make(size)
        naughty = Naughty(block.release)
        arguments = {"dtype": "u1", "shape": [1, 1], "strides": [1, 1], "offset": 0}
        arguments.update({
            "dtype": {"dtype": naughty},
            "shape": {"shape": naughty},
            "strides": {"strides": naughty},
            "offset": {"offset": naughty},
        }[where])  # fmt: skip
        if where == "offset":  # read before the block is looked at
            with pytest.raises(ValueError, match="released"):
                block.array(**arguments)
            continue
        a = block.array(**arguments)
        assert block.released
        others = [make(size) for _ in range(3)]
        assert all(
            segments.block_of(a)[0].uid != o.uid or o.offset != segments.block_of(a)[1] for o in others
        )
        a.tobytes()


_RELEASED = """
import os, resource, sys, threading, time
import numpy as np, ndshare
from ndshare import _arrays
from ndshare._memory import segments
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
until = time.monotonic() + float(sys.argv[1])
block, errors = segments.stage(100), []
def use(act):
    while time.monotonic() < until:
        try: act(block)
        except (ValueError, BufferError, OSError): pass
        except BaseException as error: errors.append(error)
def lend(block):
    os.close(block.lend())
def view(block):
    with memoryview(block) as m: bytes(m[:3])
acts = [lend, lend, view, lambda b: b.array("u1", [3])[0], lambda b: b.users, lambda b: b.mark_lent(), repr,
        lambda b: b.release(), lambda b: segments.should_copy_out(b)]
threads = [threading.Thread(target=use, args=(act,)) for act in acts]
for thread in threads: thread.start()
idle = [_arrays.empty(2 << 20, "u1") for _ in range(10)]
del idle
files = []
sys.setswitchinterval(1e-5)
while time.monotonic() < until:
    try: block = segments.stage(100) if len(files) % 3 else segments.allocate(100)
    except OSError: pass   # there is none for a segment either
    time.sleep(0)
    try: files.append(os.open("/dev/null", 0))   # now and then there is no descriptor left
    except OSError:
        for fd in files: os.close(fd)
        files = []
    block.release
for thread in threads: thread.join()
print(errors)
"""


def test_block_may_be_released_while_other_threads_use_it(run_script):
    """Each use finds the memory or a ValueError, with all descriptors taken, too."""
    assert run_script(_RELEASED, "2").stdout == "[]\n"


def test_pages_that_could_not_be_had_are_not_counted(run_script):
    """Threads whose slots get no pages leave the figures, and the slots of others, right."""
    done = run_script("""
import random, threading
import ndshare
from ndshare import _arrays
from ndshare._memory import _heap, segments
refusals = []
def work(seed):
    rng, kept = random.Random(seed), []
    for step in range(400):
        if seed == 0: _heap.set_memory_limit(rng.choice([1 << 20, 3 << 20, 40 << 20]))
        try: a = _arrays.full(rng.choice([3000, 5000, 20_000, 100_000]), seed, "u1")
        except MemoryError: refusals.append(step)
        else: kept.append(a)
        if len(kept) > 20: assert (kept.pop(rng.randrange(20)) == seed).all()
        if step % 50 == 49: segments.trim()
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
segments.trim()
s = segments.stats()
print(len(refusals) > 10, s.own_bytes, s.idle_bytes, s.own_segments)
""")
    assert done.stdout == "True 0 0 0\n"
