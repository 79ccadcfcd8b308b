"""Segments between processes: lending, holding, coming back, and what dies in between."""

from __future__ import annotations

import fcntl
import os
import pickle

import numpy as np
import pytest

from ndshare import _arrays
from ndshare._memory import idle_bytes, segments
from ndshare.errors import CapacityError, SegmentError, SegmentGoneError
from tests.peers import Peer, staged, take, ticket, uid_of

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("fresh_heap")]

MB = 1 << 20


@pytest.fixture
def peer():
    """Start another process."""
    with Peer() as other:
        yield other


def test_segment_lent_by_value_is_recycled_after_the_receiver_drops_it(peer):
    """A segment comes back exactly when the receiver's last array is gone."""
    a = staged(MB, 1)
    uid = uid_of(a)
    peer.give("x", a)
    del a
    b = staged(MB, 2)
    assert uid_of(b) != uid
    assert peer.run("result = int(x.sum())") == MB
    peer.run("y = x[5:]; del x")
    c = staged(MB, 3)
    assert uid_of(c) not in (uid, uid_of(b))
    assert peer.run("result = int(y.sum())") == MB - 5
    peer.run("del y")
    d = staged(MB, 4)
    assert uid_of(d) == uid


def test_segment_in_flight_is_not_recycled():
    """A descriptor that nobody has received yet keeps the memory."""
    a = staged(MB, 7)
    uid = uid_of(a)
    where, fd = ticket(a)
    del a
    b = staged(MB, 8)
    assert uid_of(b) != uid
    back = take(where, fd)
    assert uid_of(back) == uid
    assert back.sum() == 7 * MB


def test_segment_of_a_killed_receiver_is_free_at_once(peer):
    """Kill -9 releases what the victim held."""
    a = staged(MB)
    uid = uid_of(a)
    peer.give("x", a)
    del a
    peer.kill()
    assert uid_of(staged(MB)) == uid


def test_segment_of_a_killed_owner_stays_readable(peer):
    """A receiver keeps what it has when the maker dies."""
    peer.run("x = _arrays.full(300_000, 3.0)")
    x = peer.fetch("x")
    peer.kill()
    assert x.sum() == 900_000


def test_shared_array_sent_and_sent_back_is_the_same_memory(peer):
    """A round trip gives the array's own memory, at the same address."""
    a = _arrays.zeros((100, 70))
    peer.give("x", a[10:50:3, ::-1])
    back = peer.fetch("x")
    assert np.shares_memory(back, a)
    assert back.strides == a[10:50:3, ::-1].strides
    peer.run("x[...] = 5")
    assert (a[10:50:3] == 5).all()
    assert a.sum() == 5 * 14 * 70


def test_shared_array_received_twice_is_mapped_once(peer):
    """Two messages about one segment give the receiver the same memory."""
    a = _arrays.zeros(MB)
    peer.give("x", a)
    peer.give("y", a[100:])
    assert peer.run("result = np.shares_memory(x, y), segments.stats().held_segments") == (True, 1)


def test_mapping_is_kept_when_the_hold_is_closed(peer):
    """After the last array the hold is closed and the mapping waits for the next message."""
    a = _arrays.ones(MB)
    peer.give("x", a)
    peer.run("del x")
    assert peer.run("s = segments.stats(); result = s.held_segments, s.cached_mappings") == (0, 1)
    peer.give("x", a)
    assert peer.run("s = segments.stats(); result = s.held_segments, s.cached_mappings") == (1, 0)
    peer.run("del x; segments.trim()")
    assert peer.run("result = segments.stats().cached_mappings") == 0


def test_forget_owner_unmaps_what_is_kept_of_it(peer):
    """Mappings kept of a dead process are given up on request."""
    a = _arrays.ones(MB)
    peer.give("x", a)
    peer.run("del x")
    assert peer.run("result = segments.forget_owner(prefix)", prefix=segments.owner_prefix()) == 1
    assert peer.run("result = segments.stats().cached_mappings") == 0


def test_slot_freed_by_the_owner_waits_for_the_receiver(peer):
    """A small shared array is not overwritten while another process still reads it."""
    a = _arrays.full(100, 7.0)
    address = a.ctypes.data
    peer.give("x", a)
    del a
    later = [_arrays.zeros(100) for _ in range(200)]
    assert address not in {b.ctypes.data for b in later}
    assert peer.run("result = float(x.sum())") == 700
    peer.run("del x")
    more = [_arrays.zeros(100) for _ in range(5000)]
    assert address in {b.ctypes.data for b in more}


def test_slot_that_comes_home_after_its_owner_dropped_it_lives_again(peer):
    """An array that is still on its way home is found again, with its content."""
    a = _arrays.full(100, 7.0)
    address = a.ctypes.data
    peer.give("x", a)
    del a
    back = peer.fetch("x")
    assert back.ctypes.data == address
    peer.run("del x")
    later = [_arrays.zeros(100) for _ in range(3000)]
    assert address not in {b.ctypes.data for b in later}
    assert back.sum() == 700


def test_copy_mapping_is_private_and_leaves_the_segment_alone(peer):
    """By-value data broadcast to several processes is copy-on-write in each of them."""
    a = staged(MB, 1)
    peer.give("x", a, kind=segments.COPY)
    peer.run("x[:] = 9")
    assert a.sum() == MB
    assert peer.run("result = segments.block_of(x)") is None
    assert peer.run("result = int(x.sum())") == 9 * MB
    peer.run("del x")
    peer.give("x", a, kind=segments.COPY)
    assert peer.run("result = int(x.sum())") == MB


def test_sealed_array_is_read_only_for_everybody(peer):
    """The kernel refuses writing to a read-only array, in its maker and in receivers."""
    a = _arrays.share_array(np.arange(1000.0), "r")
    where, fd = ticket(a)
    with pytest.raises(OSError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    peer.run("x = take(where, fds[0])", send=(fd,), where=where)
    assert peer.run("result = x.flags.writeable, float(x.sum()), ndshare.is_shared(x)") == (
        False,
        499500.0,
        True,
    )
    with pytest.raises(RuntimeError, match="cannot set WRITEABLE"):
        peer.run("x.flags.writeable = True")
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        a.flags.writeable = True


def test_segment_cannot_be_shrunk_by_a_receiver(peer):
    """No process can make another one crash by truncating what they share."""
    a = _arrays.ones(MB)
    where, fd = ticket(a)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, where[1] * 2)
    os.close(fd)


def test_attach_refuses_a_descriptor_that_is_not_the_segment():
    """A message cannot make a process map a file that could be truncated, or less than it says."""
    fd = os.memfd_create("evil", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(SegmentError):
        segments.attach(12345 << 32 | 1, 4096, segments.VALUE, fd)
    a = staged(4096)
    where, fd = ticket(a)
    with pytest.raises(SegmentError):
        segments.attach(12345 << 32 | 2, where[1] * 100, segments.VALUE, fd)
    with pytest.raises(ValueError, match="kind"):
        segments.attach(1, 4096, 9, os.dup(0))


def test_attach_with_the_uid_of_another_segment_keeps_them_apart(peer):
    """Two processes that draw the same random prefix do not read each other's memory."""
    a = staged(MB, 1)
    b = staged(MB, 2)
    peer.give("x", a)
    where, fd = ticket(b)
    forged = (uid_of(a), *where[1:])
    peer.run("y = take(where, fds[0])", send=(fd,), where=forged)
    assert peer.run("result = int(x[0]), int(y[0])") == (1, 2)
    where, fd = ticket(b)
    peer.run("del x, y; z = take(where, fds[0])", send=(fd,), where=forged)
    assert peer.run("result = int(z[0])") == 2


def test_result_lent_by_the_handler_and_sent_back_arrives_home(peer):
    """A worker's result that returns to the worker is its own memory again."""
    peer.run("segments.install_handler(); x = np.ones(200_000)")
    x = peer.fetch("x")
    address = peer.run("result = x.ctypes.data; del x")
    assert x.flags.owndata
    assert x.base is None
    peer.give("y", x)
    assert peer.run("result = y.ctypes.data") == address
    del x
    assert peer.run("result = float(y.sum())") == 200_000


def test_should_copy_out_is_true_from_the_fifth_live_segment_of_an_owner(peer):
    """Keeping ever more by-value segments would force the sender to fresh pages each time."""
    kept = [staged(MB, i) for i in range(6)]
    said = []
    for i, a in enumerate(kept):
        where, fd = ticket(a)
        said.append(
            peer.run(
                f"b = segments.attach(*where[:3], fds[0]); x{i} = b.array(np.uint8, (where[1],));"
                "result = segments.should_copy_out(b); b.release()",
                send=(fd,),
                where=where,
            )
        )
    assert said == [False, False, False, False, True, True]
    own = segments.stage(10)
    assert segments.should_copy_out(own) is False
    own.release()


def test_receiver_short_of_descriptors_is_told_to_copy_out(peer):
    """With few descriptors left the receiver does not keep by-value segments."""
    peer.run("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
    for i in range(33):  # half of the descriptors hold something
        peer.give(f"x{i}", _arrays.empty(2 * MB, np.uint8))
    where, fd = ticket(staged(MB))
    source = "b = segments.attach(*where[:3], fds[0]); result = segments.should_copy_out(b); b.release()"
    assert peer.run(source, send=(fd,), where=where) is True


def test_receiver_without_a_single_free_descriptor_still_gets_its_array(peer):
    """What was received is mapped all the same, and comes back all the same."""
    a = staged(MB, 6)
    uid = uid_of(a)
    where, fd = ticket(a)
    del a
    source = (
        "import resource; former = resource.getrlimit(7); resource.setrlimit(7, (fds[0] + 1, former[1]))\n"
    )
    source += "try: x = take(where, fds[0])\nfinally: resource.setrlimit(7, former)\nresult = int(x.sum())"
    assert peer.run(source, send=(fd,), where=where) == 6 * MB
    assert uid_of(staged(MB)) != uid
    peer.run("del x")
    assert uid in {uid_of(b) for b in [staged(MB) for _ in range(3)]}


def test_block_released_refuses_everything_but_its_facts():
    """A released block still says what it was."""
    block = segments.stage(5000)
    facts = block.uid, block.kind, block.size, block.offset, block.nbytes
    view = memoryview(block)
    with pytest.raises(BufferError):
        block.release()
    view.release()
    block.release()
    block.release()
    assert block.released
    assert facts == (block.uid, block.kind, block.size, block.offset, block.nbytes)
    for use in (block.lend, lambda: block.users, lambda: memoryview(block), lambda: block.array("u1", (1,))):
        with pytest.raises(ValueError, match="released"):
            use()


def test_block_users_counts_arrays_not_handles_or_views():
    """Whether a block may be lent depends on arrays only."""
    block = segments.stage(8000)
    assert block.users == 0
    a = block.array("f8", (1000,))
    view = a[::2]
    again, _ = segments.block_of(view)
    assert block.users == again.users == 1
    b = block.array("f8", (10,), (-8,), 80)
    assert block.users == 2
    del a
    assert block.users == 2
    del view
    assert block.users == 1
    del b
    assert block.users == 0


def test_mark_lent_keeps_a_slot_from_being_reused_while_another_descriptor_holds():
    """One descriptor of a slab protects every block that was marked."""
    a, b = _arrays.ones(8), _arrays.ones(8)
    first, second = segments.block_of(a)[0], segments.block_of(b)[0]
    assert first.uid == second.uid
    address = b.ctypes.data
    fd = first.lend()
    second.mark_lent()
    first.release()
    second.release()
    del b
    assert address not in {x.ctypes.data for x in [_arrays.empty(8) for _ in range(3000)]}
    os.close(fd)


@pytest.mark.parametrize(
    "error",
    [
        CapacityError(1 << 30, 1 << 20, "memory of this machine"),
        SegmentError(24, "make a shared segment"),
        SegmentGoneError(116, "find a shared array"),
    ],
)
def test_error_pickles_and_says_what_to_do(error):
    """Errors survive the way to another process with their text."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert isinstance(error, (MemoryError, OSError))


def test_stats_repr_is_readable():
    """The figures of the heap read like a sentence or two."""
    a = _arrays.empty(MB, np.uint8)
    s = segments.stats()
    assert s.shared_bytes >= a.nbytes
    assert "1.05 MB" in repr(s)
    assert s.limit in repr(s)


def test_trim_gives_back_pages_that_peers_still_map(peer):
    """Idle memory is freed even though another process keeps its mapping."""
    a = _arrays.ones(4 * MB, np.uint8)
    peer.give("x", a)
    peer.run("del x")
    del a
    before = segments.stats()
    assert segments.trim() >= 4 * MB
    after = segments.stats()
    assert after.own_bytes <= before.own_bytes - 4 * MB
    assert after.idle_bytes == 0
    assert peer.run("result = segments.stats().cached_mappings") == 1


def test_idle_limit_counts_freed_slots_of_slabs_in_use():
    """Small arrays that were dropped are idle memory too, even beside live ones."""
    kept = [_arrays.ones(900_000, np.uint8) for _ in range(12)]
    del kept[1::2]
    assert segments.stats().idle_bytes >= 5_000_000
    former = segments.set_idle_limit(2 * MB)
    try:
        del kept[1::2]
        assert segments.stats().idle_bytes <= 8_000_000
        own = segments.stats().own_bytes
        kept.append(_arrays.ones(900_000, np.uint8))
        kept.pop()
        assert segments.stats().own_bytes <= own
    finally:
        segments.set_idle_limit(former)
    assert segments.trim() > 0
    assert segments.stats().idle_bytes == 0
    assert all((a == 1).all() for a in kept)


def test_idle_limit_destroys_the_coldest():
    """Memory kept warm is capped."""
    former = segments.set_idle_limit(3 * MB)
    try:
        kept = [staged(MB, i) for i in range(6)]
        del kept
        assert segments.stats().idle_bytes <= 3 * MB
    finally:
        segments.set_idle_limit(former)


def test_idle_bytes_are_those_of_the_figures():
    """Without what the kernel is asked for there: whoever makes an array may ask."""
    kept = segments.allocate(8 * MB)
    assert idle_bytes() == segments.stats().idle_bytes
    before = idle_bytes()
    del kept
    assert idle_bytes() == segments.stats().idle_bytes > before
