"""A lock between threads and processes that the kernel frees when its holder dies.

::

    process A                    shared memory                     process B
    lock = ndshare.lock()  ──▶  a robust mutex  ◀──  the same lock, sent by reference

`locking` is what users see, `_lock` the mutex and its handle in C.

Guarantees
----------
* One holder at a time among all threads of all processes that have the lock; a dead holder has it no more.
* Who waits needs neither a processor nor the GIL, hears Ctrl-C, and does not care who sets the clock.

Not guaranteed
--------------
* Fairness. That what a lock protects is whole after its holder died: `lock(report_death=True)` tells.
* Anything on other machines: `leaving_machine` refuses locks in what goes there, `locks_refused` in copies.
"""

from __future__ import annotations

from ndshare._locks.locking import Lock, leaving_machine, lock, locks_refused

__all__ = [
    "Lock",
    "leaving_machine",
    "lock",
    "locks_refused",
]
