"""``ndshare demo workspace``: the widths serially and in a workspace, compared, as a table and a picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ndshare._system import default_workers
from ndshare.demo import digits, widths
from ndshare.demo.grid import BLAS_THREADS
from ndshare.demo.options import add_size_and_place, add_workers, note
from ndshare.demo.ridge import Floats
from ndshare.demo.table import size

_PICTURE = "ndshare-workspace.png"
_DPI = 160


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    train, held_out = digits.load()
    sigmas = widths.widths(arguments.quick)
    workers: int = arguments.workers or default_workers()
    D, b = widths.system(train)  # noqa: N806  -- the names of the example
    print(f"{len(sigmas)} systems of {len(b)} equations, one per width of a Gaussian kernel")

    parallel = widths.parallel(D, b, sigmas, workers)
    serial = widths.serial(D, b, sigmas)
    errors = [widths.wrong(one.left_out, train.labels) for one in parallel.fits]
    equal = parallel.equals(serial)

    print("\n  width    wrong if left out    serial    worker  numbers")
    for row in zip(sigmas, errors, serial.fits, parallel.fits, equal, strict=True):
        sigma, error, ours, theirs, same = row
        times = f"{ours.end - ours.start:7.2f} s {theirs.end - theirs.start:7.2f} s"
        print(f"{sigma:7.2f} {error:11d} {100 * error / len(train):6.2f} % {times}  {_verdict(same)}")
    best = errors.index(min(errors))
    answers = widths.answers(parallel.fits[best], float(sigmas[best]), train, held_out)
    missed = widths.wrong(answers, held_out.labels)
    print(f"\nbest width      {sigmas[best]:.2f}: {100 * errors[best] / len(train):.2f} % wrong if left out")
    rate = 100 * missed / len(held_out)
    print(f"test            {missed} of {len(held_out)} held-out digits wrong: {rate:.2f} %")
    speed = (
        f"serial {serial.seconds:.1f} s, {workers} worker{'s' * (workers != 1)} {parallel.seconds:.1f} s: "
        f"{serial.seconds / parallel.seconds:.2f} times as fast"
    )
    print(f"time            {speed} (start of the workers included, {BLAS_THREADS} BLAS thread each)")
    note(
        serial_seconds=serial.seconds,
        parallel_seconds=parallel.seconds,
        workers=workers,
        best_width=float(sigmas[best]),
        wrong_held_out=missed,
        equal=all(equal),
    )
    once = D.nbytes + b.nbytes
    memory = f"{size(once)} shared once; a pool that pickles would send {size(once * len(sigmas))}"
    print(f"memory          {memory}")
    if not all(equal):
        print("numbers         DIFFER between the serial and the parallel run")
        return 1
    print(f"numbers         {len(sigmas)} x {2 * b.size} numbers, equal in every bit")
    path = os.path.join(arguments.out, _PICTURE)
    _save(path, sigmas, [100 * error / len(train) for error in errors], parallel, f"{speed}; {memory}")
    print(f"picture         {path}")
    return 0


def _verdict(same: bool) -> str:
    return "equal" if same else "DIFFER"


def _save(path: str, sigmas: Floats, per_cent: list[float], run: widths.Run, caption: str) -> None:
    """Draw the error of each width, and which worker had which width when."""
    # Object interface: works without a display and leaves the user's backend alone.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.3))
    colors = colormaps["viridis"]
    shades = [colors(0.92 * number / max(1, len(sigmas) - 1)) for number in range(len(sigmas))]
    left.plot(sigmas, per_cent, color="0.6", lw=1.2, zorder=1)
    left.scatter(sigmas, per_cent, c=shades, s=36, zorder=2)
    left.set_xscale("log", base=2)
    left.set_ylim(bottom=0)
    left.set(xlabel="width of the Gaussian kernel", ylabel="wrong digits if left out (%)")
    left.set_title(f"Best width: {min(per_cent):.2f} % wrong", fontsize=10.5, loc="left")
    pids = sorted({one.pid for one in run.fits})
    for shade, one in zip(shades, run.fits, strict=True):
        row = pids.index(one.pid) + 1
        right.barh(row, one.end - one.start, left=one.start - run.start, height=0.7, color=shade, ec="white")
    right.set_yticks(range(1, len(pids) + 1))
    right.set(xlabel="seconds", ylabel="worker", xlim=(0, run.seconds))
    right.set_title("Who solved which system", fontsize=10.5, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8.5, color="0.35")
    figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo workspace",
        description="Solve one linear system per width of a Gaussian kernel for 1,438 handwritten digits, in "
        "worker processes that know the two shared arrays by name.",
    )
    add_workers(parser)
    add_size_and_place(parser, "fewer widths, a few seconds")
    return parser
