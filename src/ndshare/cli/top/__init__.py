"""``ndshare top``: what this user's ndshare processes do, as their shared memory and ``/proc`` show it.

::

    processes that are watched                     ndshare top
    boards, ledgers, queues ── /proc/PID/fd ─────▶ look.py    one look: everything there is, as numbers
    dicts ── /dev/shm ───────────────────────────▶ tables.py  two looks: rates, as tables or JSON
                                                   show.py    text, or rich if it is installed
                                                   command.py

Guarantees
----------
* Who is watched does nothing for it: no thread, no file, no system call, no message. All that is read is in
  shared memory already.
* Nothing is locked, kept or changed by looking.

Not guaranteed
--------------
* That the numbers of one look belong to one moment.
* Processes of other users, maps in threads, and tasks that wait in an executor are not seen.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run ``ndshare top``; return the exit status."""
    from ndshare.cli.top.command import main as run

    return run(argv)


__all__ = ["main"]
