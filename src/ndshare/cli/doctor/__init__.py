"""``ndshare doctor``: what this machine gives ndshare, each with a verdict and a remedy.

::

    finding.py   what one check says
    calls.py     system calls, each tried in a child of its own
    limits.py    memory, /dev/shm, descriptors, mappings, limits of the process
    processors.py  affinity, quota, BLAS and its threads
    python.py    interpreter, packages, environment variables
    others.py    dicts that are left over, other processes of this user
    selftest.py  a program: a task, a map, a queue, a dict, a kill
    command.py   all of it

Nothing of ndshare is imported before it is needed: the doctor also works where ``import ndshare`` does not.

Guarantees
----------
* No check can hang or kill the doctor: what could is done in a child with a time limit.
* Nothing on the machine is changed, and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run ``ndshare doctor``; return the exit status."""
    from ndshare.cli.doctor.command import main as run

    return run(argv)


__all__ = ["main"]
