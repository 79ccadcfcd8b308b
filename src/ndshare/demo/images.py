"""``ndshare demo images``: cut photographs, map over the tiles twice, compare, put together, draw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np

from ndshare._system import default_workers
from ndshare.demo import tiles
from ndshare.demo.cleaning import Cleaned, clean
from ndshare.demo.denoise import MARGIN
from ndshare.demo.options import add_size_and_place, add_workers, note
from ndshare.demo.table import size
from ndshare.demo.tiles import Pixels

_PICTURE = "ndshare-images.png"
_DPI = 160
_DETAIL = 96  # pixels along an edge of what is shown enlarged


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    names, pictures = tiles.load(arguments.quick)
    workers: int = arguments.workers or default_workers()

    import ndshare

    noisy = tiles.add_noise(pictures)
    stack = ndshare.share(tiles.cut(noisy, MARGIN))
    original = ndshare.share(tiles.cut(pictures))
    edge = f"{tiles.SIZE} x {tiles.SIZE}"
    print(f"{len(stack)} tiles of {edge} pixels, noise of {100 * tiles.NOISE:.0f} % added; non-local means")
    parallel = clean(ndshare.ProcessContext(workers), stack, original, tiles.NOISE, "parallel")
    serial = clean(ndshare.SerialContext(), stack, original, tiles.NOISE, "serial  ")

    print("\n" + table(names, parallel) + "\n")
    print(f"{parallel.report!r}\n")
    gains = parallel.marks[:, 1] - parallel.marks[:, 0]
    print(f"tiles           between {gains.min():+.1f} and {gains.max():+.1f} dB")
    before, after = serial.report.elapsed, parallel.report.elapsed
    times = (
        f"serial {before:.1f} s, {workers} worker{'s' * (workers != 1)} {after:.1f} s: "
        f"{before / after:.2f} times as fast"
    )
    print(f"time            {times} (start of the workers included)")
    note(
        serial_seconds=before,
        parallel_seconds=after,
        workers=workers,
        tiles=len(stack),
        gain_db=float(gains.mean()),
        equal=parallel.equals(serial),
    )
    made = parallel.tiles.nbytes + parallel.marks.nbytes
    sizes = f"{size(stack.nbytes + original.nbytes)} shared once, {size(made)} written in place"
    print(f"memory          {sizes}")
    if not parallel.equals(serial):
        print("numbers         DIFFER between the serial and the parallel run")
        return 1
    numbers = parallel.tiles.size + parallel.marks.size
    print(f"numbers         {numbers:,}, each equal to the serial one in every bit")
    path = os.path.join(arguments.out, _PICTURE)
    _save(path, names, pictures, noisy, tiles.join(parallel.tiles, pictures.shape), f"{times}; {sizes}")
    print(f"picture         {path}")
    return 0


def table(names: Sequence[str], cleaned: Cleaned) -> str:
    """Return the means over the tiles of each photograph, one row per photograph."""
    lines = [
        "              PSNR (dB)                   sharpness, original = 1",
        "photograph    noisy  denoised     gain       noisy  denoised",
    ]
    for name, marks in zip(names, np.split(cleaned.marks, len(names)), strict=True):
        noisy, denoised, *sharp = marks.mean(axis=0)
        lines.append(
            f"{name:12}{noisy:7.2f}{denoised:10.2f}{denoised - noisy:+9.2f}"
            f"{sharp[1] / sharp[0]:12.2f}{sharp[2] / sharp[0]:10.2f}"
        )
    return "\n".join(lines)


def _save(
    path: str, names: Sequence[str], original: Pixels, noisy: Pixels, denoised: Pixels, caption: str
) -> None:
    """Draw each photograph before and after, and the middle of it enlarged."""
    # Object interface: works without a display and leaves the user's backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = original.shape[1:3]
    ratio = width / height
    figure = Figure(figsize=(12.0, 12.0 * 2 / (2 * ratio + 3) + 0.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), 5, width_ratios=(ratio, ratio, 1, 1, 1), squeeze=False)
    top, left = (height - _DETAIL) // 2, (width - _DETAIL) // 2
    middle = np.s_[top : top + _DETAIL, left : left + _DETAIL]
    for number, name in enumerate(names):
        shown = (
            (f"{name} with noise", noisy[number]),
            ("denoised", denoised[number]),
            ("with noise", noisy[number][middle]),
            ("denoised", denoised[number][middle]),
            ("original", original[number][middle]),
        )
        for axes, (title, pixels) in zip(panels[number], shown, strict=True):
            axes.imshow(np.clip(pixels, 0.0, 1.0), interpolation="nearest")
            axes.set_title(title, fontsize=9, loc="left", pad=3)
            axes.set_axis_off()
    figure.supxlabel(caption, fontsize=8.5, color="0.35")
    figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo images",
        description="Remove noise from tiles of two photographs: a map over the stack of tiles, in worker "
        "processes that write their results to shared arrays.",
    )
    add_workers(parser)
    add_size_and_place(parser, "only the middle of each photograph")
    return parser
