"""``ndshare demo``: load, share, search twice, compare, test, draw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np

from ndshare._system import default_workers
from ndshare.demo import digits, plot, ridge
from ndshare.demo.grid import BLAS_THREADS, Grid, Search, pickled_bytes, search_parallel, search_serial
from ndshare.demo.options import add_size_and_place, add_workers, note
from ndshare.demo.table import size, table

_PICTURE = "ndshare-demo.png"


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    train, held_out = digits.load()
    grid = Grid.make(arguments.quick)
    workers: int = arguments.workers or default_workers()
    print(
        f"{len(train)} digits to learn from, {len(held_out)} held out; {grid.shape[1]} bandwidths x "
        f"{grid.shape[0]} regularisations, {grid.folds}-fold cross-validation"
    )

    import ndshare

    distances = ndshare.empty((len(train), len(train)))
    ridge.squared_distances(train.images, train.images, out=distances)
    folds = digits.fold_numbers(len(train), grid.folds)
    parallel = search_parallel(grid, distances, train.labels, folds, workers)
    serial = search_serial(grid, distances, train.labels, folds)

    print("\nWrong digits in cross-validation (%):\n")
    print(table(grid, parallel))
    answers = _final_test(grid, parallel, train, held_out)
    wrong = int(np.count_nonzero(answers.argmax(axis=1) != held_out.labels))
    row, column = parallel.best
    print(
        f"\nbest model      bandwidth {grid.bandwidths[column]:.3g}, regularisation {grid.ridges[row]:.3g}: "
        f"{100 * parallel.errors[row, column]:.2f} % wrong in cross-validation"
    )
    rate = 100 * wrong / len(held_out)
    print(f"test            {wrong} of {len(held_out)} held-out digits wrong: {rate:.2f} %")
    times = (
        f"serial {serial.seconds:.1f} s, {workers} worker{'s' * (workers != 1)} {parallel.seconds:.1f} s: "
        f"{serial.seconds / parallel.seconds:.2f} times as fast"
    )
    print(f"time            {times} (start of the workers included, {BLAS_THREADS} BLAS thread each)")
    note(
        serial_seconds=serial.seconds,
        parallel_seconds=parallel.seconds,
        workers=workers,
        bandwidth=float(grid.bandwidths[column]),
        regularisation=float(grid.ridges[row]),
        error=float(parallel.errors[row, column]),
        wrong_held_out=wrong,
        equal=parallel.equals(serial),
    )
    would = pickled_bytes(grid, distances, train.labels, folds)
    sizes = f"{size(distances.nbytes)} shared once; a pool that pickles would send {size(would)}"
    print(f"memory          {sizes}")
    if not parallel.equals(serial):
        print("numbers         DIFFER between the serial and the parallel run")
        return 1
    print(f"numbers         {parallel.losses.size} losses, each equal to the serial one in every bit")
    path = os.path.join(arguments.out, _PICTURE)
    plot.save(path, grid, parallel, held_out, answers, f"{times}; {sizes}")
    print(f"picture         {path}")
    return 0


def _final_test(grid: Grid, search: Search, train: digits.Digits, held_out: digits.Digits) -> ridge.Floats:
    """Fit the best model to all training digits; return its answers to the others."""
    row, column = search.best
    width = float(grid.bandwidths[column])
    gram = ridge.kernel(ridge.squared_distances(train.images, train.images), width)
    coefficients = ridge.fit(gram, ridge.targets(train.labels, digits.CLASSES), float(grid.ridges[row]))
    seen = ridge.kernel(ridge.squared_distances(held_out.images, train.images), width)
    return seen @ coefficients


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo",
        description="Choose a classifier for 1,797 handwritten digits: kernel ridge regression on a grid of "
        "bandwidths and regularisations, evaluated by worker processes that share one matrix.",
        epilog="Others: ndshare demo camera, cluster, images, sgd and workspace.",
    )
    add_workers(parser)
    add_size_and_place(parser, "a smaller grid, a few seconds")
    return parser
