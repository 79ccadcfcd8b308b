"""Unpack messages of which bytes were changed: an error or an object, never a crash, and no descriptor is left.

Dtypes that travel as pickles of NumPy's are left out: of changed ones NumPy itself makes what crashes later.

Run as a program: ``fuzz_messages.py SEED ROUNDS``. A crash shows in the exit status; the seed makes it again.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import warnings
from typing import Any

import numpy as np

import ndshare
from ndshare._memory import segments
from ndshare._transport import transport

_ADDRESS_SPACE = 8 << 30  # a changed length must not take all memory of the machine


def _objects() -> list[Any]:
    return [
        [1, "two", (3.0, None)],
        np.arange(10.0),
        [np.arange(1000.0), np.arange(2000)[::-1], np.ones((9, 9), order="F")[::2]],
        {"shared": ndshare.zeros((4, 5)), "names": ["a", "b"]},
        np.zeros(300_000),
        [np.zeros((300, 300)), ndshare.ones(7).reshape(7, 1), "x" * 60_000],
        [np.array(["a", "bb"]), np.array([1, 2], "M8[s]"), np.zeros(0)],
    ]


def _parcels() -> list[transport.Parcel]:
    with segments.recycled_memory():
        lent = np.ones(300_000)
        draft = transport.pack(lent, lend_values=True)
        del lent
        alone = draft.settle()
    return [alone, *(transport.pack(obj).settle() for obj in _objects())]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return a message with some bytes changed, cut off, repeated or made up."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        at = dice.randrange(min(len(changed), dice.choice((16, 200, 1 << 20))) or 1) if changed else 0
        kind = dice.randrange(8)
        if kind < 3 and changed:
            changed[at] = dice.randrange(256)
        elif kind == 3 and changed:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 4:
            changed[at : at + dice.choice((1, 4, 8))] = dice.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" * 4))
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            changed[at:at] = changed[: dice.randrange(40)]
        else:
            changed[:0] = bytes((dice.randrange(5),))
    return bytes(changed)


def main(seed: int, rounds: int) -> None:
    """Try so many messages."""
    if "NDSHARE_SANITIZER" not in os.environ:  # it needs terabytes, and has a limit of its own
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    warnings.simplefilter("ignore")
    dice = random.Random(seed)
    parcels = _parcels()
    refused = 0
    before = len(os.listdir("/proc/self/fd"))
    for number in range(rounds):
        sent = dice.choice(parcels)
        head = sent.data if dice.random() < 0.6 or not sent.data else sent.data[:200]
        data = mutated(head, dice)
        if data[1:2] == b"c":
            continue
        fds = sent.descriptors()
        if dice.random() < 0.1:
            fds.append(os.open("/dev/null", os.O_RDONLY))
        if dice.random() < 0.1 and fds:
            os.close(fds.pop(dice.randrange(len(fds))))
        try:
            found = transport.unpack(data, fds)
            str(found)[:100]
            del found
        except ndshare.TransportError:
            refused += 1
        except (Exception, SystemExit, KeyboardInterrupt):
            pass
        if number % 500 == 0:
            segments.trim()
            left = len(os.listdir("/proc/self/fd"))
            assert left <= before + 8, f"round {number}: {left} descriptors, {before} at first"
    assert refused > rounds // 20, refused
    print(f"{rounds} messages, {refused} refused")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
