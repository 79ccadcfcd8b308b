"""Door."""

from __future__ import annotations

from ndshare._locks.locking import Lock, leaving_machine, lock

__all__ = [
    "Lock",
    "leaving_machine",
    "lock",
]
