"""Memory between processes that are killed at random: contents stay right, and everything comes back."""

from __future__ import annotations

import os

import numpy as np
import pytest

from ndshare import _arrays
from ndshare._memory import segments
from tests.peers import Peer, staged, uid_of

pytestmark = pytest.mark.usefixtures("fresh_heap")

SIZES = (50, 3000, 70_000, 400_000, 1_500_000)


@pytest.mark.chaos
def test_segments_under_random_kills_keep_contents_and_come_back(chaos_rng, chaos_rounds):
    """Peers lend, hold, forward and die; no array anywhere ever shows another one's bytes."""
    rng = chaos_rng
    peers: list[Peer] = [Peer() for _ in range(3)]
    there: list[dict[str, int]] = [{} for _ in peers]  # what each peer has: name -> the byte it is full of
    here: list[tuple[np.ndarray, int]] = []
    number, a = 0, None
    try:
        for _ in range(120 * chaos_rounds):
            number += 1
            which = rng.randrange(len(peers))
            peer, has = peers[which], there[which]
            action = rng.choice(["give", "give", "fetch", "make", "forget", "drop", "check", "trim", "kill"])
            value = number % 251
            if action == "give":
                n = rng.choice(SIZES)
                a = staged(n, value) if rng.random() < 0.5 else _arrays.full(n, value, np.uint8)
                peer.give(f"x{number}", a)
                has[f"x{number}"] = value
                if rng.random() < 0.3:
                    here.append((a, value))
            elif action == "make":
                source = "segments.install_handler(); " if rng.random() < 0.2 else ""
                source += f"x{number} = _arrays.full({rng.choice(SIZES)}, {value}, np.uint8)"
                peer.run(source)
                has[f"x{number}"] = value
            elif action == "fetch" and has:
                name = rng.choice(sorted(has))
                here.append((peer.fetch(name), has[name]))
            elif action == "forget" and has:
                name = rng.choice(sorted(has))
                del has[name]
                peer.run(f"del {name}")
            elif action == "drop" and here:
                here.pop(rng.randrange(len(here)))
            elif action == "trim":
                segments.trim()
                peer.run("segments.trim()")
            elif action == "kill" and rng.random() < 0.5:
                prefix = peer.run("result = segments.owner_prefix()")
                peer.kill()
                peer.__exit__()
                segments.forget_owner(prefix)
                peers[which], there[which] = peer, has = Peer(), {}
            assert all((a == expected).all() for a, expected in here)
            if has:
                names = sorted(has)
                said = peer.run(f"result = [(int(x.min()), int(x.max())) for x in ({', '.join(names)},)]")
                assert said == [(has[name],) * 2 for name in names]
    finally:
        for peer in peers:
            peer.__exit__()
    here.clear()
    a = None
    segments.trim()
    s = segments.stats()
    assert (s.own_segments, s.own_bytes, s.held_segments, s.cached_mappings) == (0, 0, 0, 0)
    assert not [fd for fd in os.listdir("/proc/self/fd") if _is_ours(fd)]


def _is_ours(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:ndshare ")
    except OSError:
        return False


def test_owner_dying_while_its_memory_is_in_flight_loses_nothing():
    """A message in a socket holds the memory without any process."""
    with Peer() as peer:
        peer.run("x = _arrays.full(1 << 20, 5, np.uint8)")
        a = peer.fetch("x")
        peer.kill()
    assert (a == 5).all()
    with Peer() as other:
        uid = uid_of(a)
        other.give("y", a)
        del a
        assert other.run("result = int(y.min())") == 5
        back = other.fetch("y")
        assert uid_of(back) == uid
