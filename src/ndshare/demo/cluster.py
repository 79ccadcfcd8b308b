"""``ndshare demo cluster``: the map of ``ndshare demo images`` on a local Dask cluster of two machines.

The machines are processes of this one, each with workers of its own: what travels between them and here is
what would travel on a network.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

import ndshare
from ndshare.demo import tiles
from ndshare.demo.cleaning import clean
from ndshare.demo.denoise import MARGIN
from ndshare.demo.images import table
from ndshare.demo.options import add_json, note, positive
from ndshare.demo.table import size


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    import distributed

    names, pictures = tiles.load(arguments.quick)
    noisy = tiles.cut(tiles.add_noise(pictures), MARGIN)
    original = ndshare.share(tiles.cut(pictures), mode="r")
    print(f"{len(noisy)} tiles, {arguments.machines} machines; starting Dask", flush=True)
    local: Callable[..., Any] = distributed.LocalCluster
    connect: Callable[..., Any] = distributed.Client
    with (
        local(
            n_workers=arguments.machines,
            threads_per_worker=arguments.workers,
            dashboard_address=":0",
            silence_logs=logging.ERROR,
        ) as machines,
        connect(machines) as client,
    ):
        context = ndshare.ClusterContext(client)
        remote = clean(context, noisy, original, tiles.NOISE, "cluster")
    serial = clean(ndshare.SerialContext(), noisy, original, tiles.NOISE, "serial ")

    print("\n" + table(names, remote) + "\n")
    print(f"{remote.report!r}\n")
    before, after = serial.report.elapsed, remote.report.elapsed
    print(f"time            serial {before:.1f} s, cluster {after:.1f} s: {before / after:.2f} times as fast")
    note(
        serial_seconds=before,
        cluster_seconds=after,
        machines=arguments.machines,
        sent_back_bytes=remote.tiles.nbytes + remote.marks.nbytes,
        equal=remote.equals(serial),
    )
    print(f"sent back       what kernels wrote, {size(remote.tiles.nbytes + remote.marks.nbytes)}")
    if not remote.equals(serial):
        print("numbers         DIFFER between the serial run and the cluster")
        return 1
    numbers = remote.tiles.size + remote.marks.size
    print(f"numbers         {numbers:,}, each equal to the serial one in every bit")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo cluster",
        description="Remove noise from tiles of two photographs on a local Dask cluster.",
    )
    parser.add_argument("--machines", type=positive, default=2, help="processes of the cluster (default: 2)")
    parser.add_argument("--workers", type=positive, default=1, help="workers of each (default: 1)")
    parser.add_argument("--quick", action="store_true", help="only the middle of each photograph")
    add_json(parser)
    return parser
