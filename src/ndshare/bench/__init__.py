"""Timing against other libraries, in one run.

::

    work.py      what the workers compute
    peers.py     the libraries, each behind the same three verbs
    mappers.py   the libraries that map, each behind one verb
    timing.py    alternating rounds
    goal.py      what ndshare promises, and whether it was kept
    arrays.py    cases: arrays there and back
    tasks.py     cases: many small tasks
    startup.py   cases: import, first result (fresh interpreters)
    cluster.py   cases: maps on a local Dask cluster
    dask_cluster.py  that cluster, and what passes through its scheduler
    costs.py     what the parts of a share on a cluster cost
    simulation.py  a map on a cluster of any size, with these costs
    plan.py      ``ndshare bench plan``: the simulation for several sizes
    memory.py    case: one large shared array, many workers
    maps.py      cases: maps of tiny kernels
    balance.py   case: a map over items of very different cost
    items.py     cases: what a map costs per item, within one process
    shared_dict.py  cases: SharedDict
    dicts.py     the dictionaries it is compared with
    team.py      processes that update one of them at once
    growth.py    ``ndshare bench growth``: one of a hundred, one of a million
    curve.py     what that gives: table, JSON, picture
    machine.py   where the figures were taken
    report.py    the figures as text and JSON
    plot.py      the figures as a picture
    command.py   ``ndshare bench executor``, ``ndshare bench map``, ``ndshare bench dict``

Imported by workers for `work`: nothing heavy here.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run ``ndshare bench`` with the words of the command line; return the exit status."""
    from ndshare.bench.command import main as run

    return run(argv)


__all__ = ["main"]
