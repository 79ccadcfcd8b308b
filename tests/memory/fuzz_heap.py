"""The heap against a model that knows every byte, with arguments nobody should give: the right bytes or an error.

Run as a program: ``python -m tests.memory.fuzz_heap SEED ROUNDS``. A crash shows in the exit status; the seed makes
it again.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy as np

from ndshare import _arrays
from ndshare._memory import COPY, VALUE, _heap, segments
from ndshare.errors import NdshareError

_SIZES = (0, 1, 63, 64, 65, 4095, 4097, 65_537, 262_144, 1 << 20, (1 << 20) + 1, 3_000_000)
_NUMBERS = (0, 1, -1, 7, 8, 64, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 46, 1 << 47, 1 << 62, (1 << 63) - 1, -(1 << 63),
            1 << 63, 1 << 64, 1 << 70)  # fmt: skip
_REFUSALS = (NdshareError, ValueError, TypeError, OverflowError, BufferError, MemoryError, OSError)


class Model:
    """What there is, and what ought to be in it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self.blocks: list[Any] = []
        self.fds: list[tuple[Any, int, np.ndarray]] = []
        self.step = 0

    def keep(self, a: np.ndarray) -> None:
        """Fill an array with bytes that are its own."""
        self.step += 1
        expected = (np.arange(a.size, dtype=np.uint32) * 2654435761 + self.step).astype(np.uint8)
        a[...] = expected.reshape(a.shape)
        self.arrays.append((a, a.copy()))

    def array(self) -> tuple[np.ndarray, np.ndarray]:
        """Any that lives."""
        return self.dice.choice(self.arrays)

    def make(self) -> None:
        """Make an array in one of the ways there are."""
        n, way = self.dice.choice(_SIZES), self.dice.randrange(5)
        if way == 0:
            self.keep(_arrays.empty(n, np.uint8))
        elif way == 1:
            a = _arrays.zeros(n, np.uint8)
            assert not a.any()
            self.keep(a)
        elif way == 2:
            with segments.shared_memory():
                a = np.zeros(n, np.uint8)
            assert not a.any()
            self.keep(a)
        elif way == 3:
            former = _heap.set_handler(segments.value_handler())
            a = np.zeros(n, np.uint8)
            _heap.set_handler(former)
            assert not a.any()
            self.keep(a)
        else:
            block = segments.stage(n)
            self.keep(block.array("u1", (n,)))
            self.blocks.append(block)

    def drop(self) -> None:
        """Let go of an array after a look at it."""
        a, expected = self.arrays.pop(self.dice.randrange(len(self.arrays)))
        assert (a == expected).all()

    def resize(self) -> None:
        """Grow or shrink in place, where nobody else has a view."""
        at = self.dice.randrange(len(self.arrays))
        a, expected = self.arrays.pop(at)
        lent = any(given is expected for _, _, given in self.fds)  # who takes it in shall find what it was
        found = segments.block_of(a)
        if lent or not a.flags.owndata or (found is not None and found[0].users > 1):
            self.arrays.append((a, expected))
            return
        former = _heap.set_handler(segments.value_handler()) if self.dice.random() < 0.5 else None
        size = self.dice.choice(_SIZES)
        a.resize(size, refcheck=False)
        if former is not None:
            _heap.set_handler(former)
        both = min(size, expected.size)
        assert (a[:both] == expected[:both]).all()
        assert not a[both:].any()
        self.keep(a)

    def lend(self) -> None:
        """Give an array out, as a message would."""
        a, expected = self.array()
        found = segments.block_of(a)
        if found is None:
            return
        block, offset = found
        if block.lendable:
            where = block.uid, block.size, block.kind, block.offset + offset
            self.fds.append((where, block.lend(), expected))
        self.blocks.append(block)

    def take(self) -> None:
        """Take in what was given out, or only what a hostile message says of it."""
        if not self.fds:
            return
        where, fd, expected = self.fds.pop(self.dice.randrange(len(self.fds)))
        uid, size, kind, offset = where
        if self.dice.random() < 0.4:
            facts = [uid, size, kind, fd]
            facts[self.dice.randrange(3)] = self.dice.choice(_NUMBERS)
            try:
                self.blocks.append(segments.attach(*facts))
            except _REFUSALS:
                pass
            return
        block = segments.attach(uid, size, COPY if kind == VALUE and self.dice.random() < 0.3 else kind, fd)
        try:
            a = block.array("u1", expected.shape, None, offset)
        finally:
            block.release()
        assert (a == expected).all()
        if block.kind == COPY:
            a[...] = 1

    def misuse(self) -> None:
        """Ask a block for what it has not got."""
        if not self.blocks:
            return
        block = self.blocks[self.dice.randrange(len(self.blocks))]
        number = self.dice.choice
        dims = self.dice.randrange(4)
        try:
            act = self.dice.randrange(7)
            if act < 3:
                shape = [abs(number(_NUMBERS[:8])) for _ in range(dims)]
                if act:
                    shape[:1] = [number(_NUMBERS)]
                strides = None if self.dice.random() < 0.5 else [number(_NUMBERS) for _ in shape]
                dtype = number(["u1", "f8", "S7", "V0", "O", ("f8", 3), "M8[s]", np.uint16])
                a = block.array(dtype, shape, strides, number(_NUMBERS))
                if a.itemsize:  # else it may have as many elements as there are numbers
                    a.tobytes()
                assert block.nbytes >= 0
            elif act == 3:
                segments.should_copy_out(block)
            elif act == 4:
                block.mark_lent()
            elif act == 5:
                with memoryview(block) as view:
                    assert len(view) == block.nbytes
            else:
                assert block.users < 1000
                repr(block)
        except _REFUSALS:
            pass

    def let_go(self) -> None:
        """Release blocks, close descriptors, and do so twice."""
        if self.blocks and self.dice.random() < 0.7:
            block = self.blocks.pop(self.dice.randrange(len(self.blocks)))
            block.release()
            if self.dice.random() < 0.3:
                block.release()
                self.blocks.append(block)
        elif self.fds:
            os.close(self.fds.pop()[1])

    def settings(self) -> None:
        """Change limits and thresholds, trim, and ask for figures."""
        act = self.dice.randrange(6)
        if act == 0:
            segments.set_idle_limit(self.dice.choice((0, 1 << 20, 1 << 30)))
        elif act == 1:
            _heap.set_threshold(self.dice.choice((0, 70_000, 256 << 10)))
        elif act == 2:
            segments.trim()
        elif act == 3:
            _heap.forget_owner(self.dice.choice((0, 1, segments.owner_prefix(), 1 << 31, (1 << 64) - 1)))
        elif act == 4:
            s = segments.stats()
            assert s.own_bytes >= 0
            assert s.idle_bytes >= 0
        else:
            for ask in (segments.stage, segments.set_idle_limit, _heap.set_threshold, _heap.forget_owner):
                number = self.dice.choice(_NUMBERS)
                if ask is segments.stage and abs(number) <= 1 << 32:
                    continue
                try:
                    ask(number)
                except _REFUSALS:
                    pass
            segments.set_idle_limit(1 << 28)

    def look(self) -> None:
        """Copy, compare, digest, detach."""
        (a, expected), (b, _) = self.array(), self.array()
        c = np.empty_like(a)
        if _heap.copy(c, a, self.dice.choice((-1, 1, 3, 99))):
            assert (c == expected).all()
        _heap.copy(c[::-1], a, 2)
        assert _heap.digest(a) == _heap.digest(expected) or a.size == 0
        # Of one that was detached before, and grew or shrank since, the file is no picture.
        if self.dice.random() < 0.3 and _heap.altered(b) is None and _heap.detach(b):
            assert _heap.altered(b) is False
            if b.size:
                b[0] ^= 255
                assert _heap.altered(b) is True
                b[0] ^= 255

    def fork(self) -> None:
        """A child that writes to everything by value, and drops everything, changes nothing here."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for a, expected in self.arrays:
                    assert (a == expected).all()
                    if segments.block_of(a) is None:  # neither shared nor in a block that is being filled
                        a[...] = 9
                self.blocks.clear()
                self.arrays.clear()
                a = _arrays.ones(70_000, "u1")
                segments.trim()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

    def run(self, rounds: int) -> None:
        """Anything, in any order."""
        acts = [self.make] * 5 + [self.drop] * 3 + [self.resize, self.lend, self.lend, self.take, self.take]
        acts += [self.misuse] * 4 + [self.let_go] * 3 + [self.look, self.settings]
        for number in range(rounds):
            if not self.arrays:
                self.make()
            self.dice.choice(acts)()
            while len(self.arrays) > 40:
                self.drop()
            if len(self.blocks) > 40:
                self.blocks.pop(0)
            if number % 200 == 199:
                self.fork()
                assert all((a == expected).all() for a, expected in self.arrays)
        self.arrays.clear()
        self.blocks.clear()
        while self.fds:
            os.close(self.fds.pop()[1])
        segments.trim()
        s = segments.stats()
        assert (s.own_bytes, s.own_segments, s.held_segments, s.idle_bytes) == (0, 0, 0, 0), s


if __name__ == "__main__":
    Model(int(sys.argv[1])).run(int(sys.argv[2]))
    print("right")
