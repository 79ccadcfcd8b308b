"""Contents on a machine: what is asked for, what is put together from what is there."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ndshare._memory import _heap
from ndshare._node.link import Link
from ndshare._node.store import Store
from ndshare._node.twins import Twin
from ndshare._transport import freight
from ndshare._transport.freight import Chunks, Content, Manifest

pytestmark = pytest.mark.once

_CHUNK = 4096


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a page."""
    monkeypatch.setattr(freight, "CHUNK_BYTES", _CHUNK)


_HOLDER = """
import sys
from ndshare._node.link import Link
Link(lambda: (), "\\0" + sys.argv[1])._hold()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[str]:
    """Name of a machine of its own, whose holder is another process: here it would be a thread that stays."""
    name = f"ndshare-test-{secrets.token_hex(8)}"
    command = [sys.executable, "-c", _HOLDER, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield f"\0{name}"
        holder.communicate()


@pytest.fixture
def make_store(machine: str) -> Iterator[Callable[[], Store]]:
    """Stores of one machine."""
    made: list[Store] = []

    def make() -> Store:
        store = Store()
        store._link = Link(store._offers, machine)
        made.append(store)
        return store

    yield make
    for store in made:
        store._held.clear()
        store._link._drop()


def _content(size: int) -> tuple[bytes, dict[bytes, Content], np.ndarray]:
    """Return the hash of random bytes, all that can be sent of them, and themselves."""
    values = np.random.default_rng().integers(0, 256, size, np.uint8)
    manifest = Manifest()
    return manifest.add(values), manifest.contents, values


def _list(digest: bytes, contents: dict[bytes, Content]) -> dict[bytes, Content]:
    return {digest: contents[digest]}


@pytest.mark.parametrize("size", [1, _CHUNK - 1, _CHUNK])
def test_small_content_is_asked_for_and_kept_as_a_whole(make_store: Callable[[], Store], size: int) -> None:
    """One hash, one piece."""
    digest, contents, values = _content(size)
    store = make_store()
    assert list(contents) == [digest]
    assert store.lacks([digest], {}) == [digest]
    assert store.lacks([digest], contents) == []
    assert np.array_equal(store.get(digest), values)


@pytest.mark.parametrize("size", [_CHUNK + 1, 3 * _CHUNK, 5 * _CHUNK + 77])
def test_large_content_comes_in_chunks_and_lies_in_one_piece(
    make_store: Callable[[], Store], size: int
) -> None:
    """Whatever its size is."""
    digest, contents, values = _content(size)
    store = make_store()
    chunks = contents[digest]
    assert isinstance(chunks, Chunks)
    assert len(chunks.parts) == -(-size // _CHUNK)
    assert sorted(store.lacks([digest], _list(digest, contents))) == sorted(chunks.parts)
    assert store.lacks([digest], contents) == []
    assert np.array_equal(store.get(digest), values)


def test_chunks_that_are_here_are_not_asked_for(make_store: Callable[[], Store]) -> None:
    """Of a content that was changed in one place, and of one that has a chunk of another at another place."""
    digest, contents, values = _content(4 * _CHUNK)
    store = make_store()
    store.lacks([digest], contents)
    changed = np.concatenate([values[_CHUNK:], values[:_CHUNK], values[:9]])
    changed[_CHUNK + 1] ^= 1
    manifest = Manifest()
    other = manifest.add(changed)
    lacking = store.lacks([other], _list(other, manifest.contents))
    assert set(lacking) == {
        _heap.digest(changed[_CHUNK : 2 * _CHUNK].copy()),
        _heap.digest(changed[-9:].copy()),
    }
    task = _list(other, manifest.contents) | {part: manifest.contents[part] for part in lacking}
    assert store.lacks([other], task) == []
    assert np.array_equal(store.get(other), changed)


def test_chunks_of_what_was_dropped_are_asked_for_again(make_store: Callable[[], Store]) -> None:
    """They are not here any more; those of others are."""
    store = make_store()
    digest, contents, _ = _content(4 * _CHUNK)
    other, more, _ = _content(2 * _CHUNK)
    store.lacks([digest, other], contents | more)
    store.drop(digest)
    assert set(store.lacks([digest, other], _list(digest, contents))) == contents.keys() - {digest}


def test_process_that_has_nothing_asks_for_everything_also_for_what_has_just_come(
    make_store: Callable[[], Store],
) -> None:
    """Chunks were meant for a neighbour, which has the others; it may not get the next message either."""
    digest, contents, _ = _content(4 * _CHUNK)
    chunks = contents[digest]
    assert isinstance(chunks, Chunks)
    some = _list(digest, contents) | {chunks.parts[2]: contents[chunks.parts[2]]}
    assert sorted(make_store().lacks([digest], some)) == sorted(chunks.parts)


def test_chunks_that_are_equal_are_sent_once(make_store: Callable[[], Store]) -> None:
    """As all hashes are."""
    manifest = Manifest()
    digest = manifest.add(np.ones(10 * _CHUNK, np.uint8))
    assert len(manifest.contents) == 2
    store = make_store()
    assert len(set(store.lacks([digest], _list(digest, manifest.contents)))) == 1
    assert store.lacks([digest], manifest.contents) == []
    assert store.get(digest).all()
    longer = Manifest()
    assert longer.add(np.ones(11 * _CHUNK, np.uint8)) != digest


def _keep(store: Store, size: int = 3 * _CHUNK) -> bytes:
    digest, contents, _ = _content(size)
    assert store.lacks([digest], contents) == []
    return digest


def test_what_a_machine_keeps_is_bounded_for_all_its_processes(make_store: Callable[[], Store]) -> None:
    """Each lets go of its own, the oldest first, but not of what its task needs."""
    one, other = make_store(), make_store()
    one.limit = other.limit = 10 * _CHUNK
    digests = [_keep(one) for _ in range(3)]
    assert one.make_room({digests[-1]})
    assert list(one._held) == digests
    theirs = _keep(other)
    other._link.total()  # the holder answers: it has heard of it
    assert one.lacks([theirs], {}) == []  # kept once, whoever has it
    assert one._link.total() == 12 * _CHUNK
    assert one.make_room({theirs})
    assert list(one._held) == [digests[1], digests[2], theirs]
    mine = _keep(other)
    assert not other.make_room({mine, theirs})  # the rest is not its own
    assert set(other._held) == {mine, theirs}
    assert other._link.total() == 12 * _CHUNK
    assert one.make_room(set()) or one.nbytes == 0
    one.release(set())
    assert other.make_room({mine})
    assert other._link.total() == 6 * _CHUNK


def _mapped() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssShmem:"))


def test_contents_do_not_count_as_memory_of_the_process(
    make_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what has come, nor what was put together from what is here, nor a twin of it."""
    monkeypatch.setattr(freight, "CHUNK_BYTES", 4 << 20)
    store = make_store()
    before = _mapped()
    digest, contents, values = _content(32 << 20)
    store.lacks([digest], contents)
    values[-1] ^= 1
    manifest = Manifest()
    changed = manifest.add(values)
    lacking = store.lacks([changed], _list(changed, manifest.contents))
    assert len(lacking) == 1
    brought = _list(changed, manifest.contents) | {lacking[0]: manifest.contents[lacking[0]]}
    assert store.lacks([changed], brought) == []
    twin = Twin(0, values.size, store.get(changed))
    twin.resident = False
    try:
        twin.begin([])
        assert twin.changes() == []
        assert _mapped() - before < 4 << 20
        assert np.array_equal(twin.work, values)
        assert _mapped() - before >= 32 << 20
    finally:
        twin.close()
