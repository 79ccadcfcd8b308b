"""``ndshare bench plan``: what a map would take on clusters of several sizes.

::

    costs      measured now, or from a file of ``ndshare bench cluster --json``
      │
    simulation of each size ──► a table, and beyond how many nodes more are of no use
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from ndshare.bench import costs, dask_cluster, report
from ndshare.bench.report import quantity
from ndshare.bench.simulation import Forecast, Machines, Work, simulate, useful_nodes

_COLUMNS = (
    "nodes", "time", "speed-up", "nodes busy", "caller busy", "scheduler busy", "sent", "received",
    "scheduled", "shares", "again", "lost",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command to those of ``ndshare bench``."""
    parser = commands.add_parser("plan", help="simulate a map on clusters of several sizes")
    parser.set_defaults(run=run)
    parser.add_argument("--items", type=_count, required=True, help="how many items")
    parser.add_argument("--kernel-s", type=_amount, required=True, help="seconds per item, on one core")
    parser.add_argument(
        "--bytes-per-item", type=_amount, default=8.0, help="what the kernel changes in arrays (default: 8)"
    )
    parser.add_argument(
        "--input-bytes", type=_amount, default=0.0, help="arrays that every node needs (default: 0)"
    )
    parser.add_argument("--rows", action="store_true", help="there are arrays with rows per worker")
    parser.add_argument(
        "--nodes",
        type=_count,
        nargs="+",
        default=[1, 10, 100, 1000],
        help="sizes of the cluster (default: 1 10 100 1000)",
    )
    parser.add_argument("--cores", type=_count, default=64, help="of each node (default: 64)")
    parser.add_argument(
        "--network",
        type=_amount,
        default=1.25e9,
        help="bytes per second of the caller's network (default: 1.25e9, 10 Gbit/s)",
    )
    parser.add_argument(
        "--lost-per-hour", type=_amount, default=0.0, help="how often a node is lost (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the losses (default: 0)")
    parser.add_argument(
        "--costs", metavar="FILE", help="of ndshare bench cluster --cases costs --json (default: measure now)"
    )
    report.add_json(parser)


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, but it must be 0 or more")
    return value


def _count(text: str) -> int:
    value = float(text)
    if not 1 <= value < math.inf or value != int(value):
        raise argparse.ArgumentTypeError(f"got {text}, but it must be a whole number, 1 or more")
    return int(value)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    if arguments.costs:
        found = costs.load(arguments.costs)
    else:
        with dask_cluster.opened(1) as client:
            found = costs.measure(client)
    work = Work(
        arguments.items, arguments.kernel_s, arguments.bytes_per_item, arguments.input_bytes, arguments.rows
    )
    machines = Machines(1, arguments.cores, arguments.network, arguments.lost_per_hour)
    forecasts = {
        nodes: simulate(work, dataclasses.replace(machines, nodes=nodes), found, seed=arguments.seed)
        for nodes in arguments.nodes
    }
    for result in costs.results(found):
        print(f"{result.title}: {quantity(result.median('ndshare'), result.unit)}")
    print("\n" + table(work, machines, forecasts))
    calm = dataclasses.replace(machines, lost_per_hour=0.0)  # whether a node is lost is a matter of luck
    useful = useful_nodes(work, calm, found)
    print("\n" + advice(useful, simulate(work, dataclasses.replace(calm, nodes=2 * useful), found)))
    if arguments.json:
        content = {
            "costs": dataclasses.asdict(found),
            "work": dataclasses.asdict(work),
            "cores": machines.cores,
            "network": machines.network,
            "lost per hour": machines.lost_per_hour,
            "useful nodes": useful,
            "forecasts": {nodes: dataclasses.asdict(forecast) for nodes, forecast in forecasts.items()},
        }
        report.write(arguments.json, content)
    return 0


def table(work: Work, machines: Machines, forecasts: dict[int, Forecast]) -> str:
    """Return the forecasts by the number of nodes, in Markdown; speed-up is against one core."""
    serial_s = work.items * work.kernel_s
    rows = [_COLUMNS, tuple("-" * len(name) for name in _COLUMNS)]
    for nodes, found in forecasts.items():
        if math.isinf(found.seconds):
            rows.append((str(nodes), "all nodes lost", *("" for _ in _COLUMNS[3:]), str(found.lost)))
            continue
        parts = (f"{part:.0%}" for part in (found.nodes, found.caller, found.scheduler))
        nbytes = (quantity(count, "B") for count in (found.sent, found.received, found.scheduled))
        counts = (str(count) for count in (found.shares, found.again, found.lost))
        speed_up = f"{serial_s / found.seconds:,.0f}"
        rows.append((f"{nodes:,}", f"{found.seconds:,.1f} s", speed_up, *parts, *nbytes, *counts))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    item = f"{quantity(work.kernel_s, 's')} that write {quantity(work.bytes_per_item, 'B')}"
    head = f"{work.items:,} items of {item} each, on nodes of {machines.cores} cores"
    return f"{head}\n\n" + "\n".join(f"| {line} |" for line in lines)


def advice(useful: int, twice: Forecast) -> str:
    """Return beyond how many nodes more are of no use, and why."""
    busy = {"the caller": twice.caller, "the scheduler": twice.scheduler}
    name = max(busy, key=lambda name: busy[name])
    if busy[name] > 0.5:
        reason = f"with twice as many {name} is busy {busy[name]:.0%} of the time"
    else:
        reason = "there are not enough items"
    return f"More than {useful:,} nodes are of no use: {reason}."
