"""``ndshare demo camera``: frames from one process to two others, with back pressure; compare, draw."""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ndshare.demo import scene as scenes
from ndshare.demo.options import add_size_and_place, note, positive
from ndshare.demo.scene import STEP, Finder, Grey, Places, Scene
from ndshare.demo.table import size

_PICTURE = "ndshare-camera.png"
_DPI = 160
_FRAMES, _QUICK_FRAMES = 200, 24
_AHEAD = 4  # frames in a queue at most
_FIRST = 2 * _AHEAD + 3  # so many frames may have memory that is used for the first time
_SHOWN = 8  # every so many pixels of a frame are kept by the writer, along each axis


class Trail(NamedTuple):
    """What one process notes: when it had each frame in hand, and what it found.

    Attributes
    ----------
    made, done : ndarray
        Seconds of the clock all processes share, one per frame: the frame was complete, and dealt with.
    found : ndarray
        Shape (frames, 2) of the tracker: places; shape (0, 2) of the writer.
    """

    made: Any
    done: Any
    found: Places


def play(scene: Scene, places: Places, queues: Sequence[Any]) -> int:
    """Be the camera: hand each frame to every queue; return the most shared memory there was, in bytes."""
    import ndshare

    peak = 0
    try:
        for number, place in enumerate(places):
            frame = ndshare.empty((scene.edge, scene.edge), np.float32)
            scene.frame(place, frame)
            made = time.monotonic()
            for queue in queues:
                queue.put((number, made, frame))
            del frame
            peak = max(peak, ndshare.stats().own_bytes)
    finally:
        for queue in queues:
            queue.shutdown()
    return peak


def frames_of(queue: Any) -> Iterator[tuple[float, Grey]]:
    """Yield the frames of a queue and when they were made, in order, until the camera has ended.

    If whoever uses them fails, the camera is told: its next put ends it.
    """
    import ndshare

    try:
        for expected in itertools.count():
            try:
                number, made, frame = queue.get()
            except ndshare.ShutDown:
                return
            if number != expected:
                raise AssertionError(f"frame {number} came in place of {expected}")
            yield made, frame
            del frame
    finally:
        queue.shutdown(immediate=True)


def track(scene: Scene, queue: Any) -> Trail:
    """Find where each frame was taken."""
    finder = Finder(scene)
    trail = []
    for made, frame in frames_of(queue):
        trail.append((made, finder.find(frame), time.monotonic()))
        del frame
    made_at, found, done_at = zip(*trail, strict=True)
    return Trail(np.array(made_at), np.array(done_at), np.array(found, np.int64))


def write(path: str, shape: tuple[int, int, int], queue: Any) -> Trail:
    """Write a smaller film to a file."""
    film = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    trail = []
    for number, (made, frame) in enumerate(frames_of(queue)):
        film[number] = _grey_levels(frame)
        trail.append((made, time.monotonic()))
        del frame
    film.flush()
    made_at, done_at = zip(*trail, strict=True)
    return Trail(np.array(made_at), np.array(done_at), np.empty((0, 2), np.int64))


def _grey_levels(frame: Grey) -> Any:
    return np.rint(255 * frame[::_SHOWN, ::_SHOWN]).astype(np.uint8)


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    import ndshare

    scene = scenes.make(arguments.quick)
    count: int = arguments.frames or (_QUICK_FRAMES if arguments.quick else _FRAMES)
    places = scenes.path(scene, count)
    scene = Scene(ndshare.share(scene.pixels), scene.edge)
    frame_bytes = scene.edge**2 * 4
    print(
        f"{count} frames of {scene.edge} x {scene.edge} pixels, {size(frame_bytes)} each; a camera, a "
        f"tracker and a writer, at most {_AHEAD} frames in each queue"
    )
    thumb = len(range(0, scene.edge, _SHOWN))
    to_tracker, to_writer = ndshare.Queue(_AHEAD), ndshare.Queue(_AHEAD)
    with tempfile.TemporaryDirectory() as directory, ndshare.ProcessPoolExecutor(3) as executor:
        path = os.path.join(directory, "film.npy")
        tracker = executor.submit(track, scene, to_tracker)
        writer = executor.submit(write, path, (count, thumb, thumb), to_writer)
        camera = executor.submit(play, scene, places, (to_tracker, to_writer))
        peak, tracked, written = camera.result(), tracker.result(), writer.result()
        film = np.load(path)
    to_tracker.close()
    to_writer.close()
    elapsed = max(tracked.done[-1], written.done[-1]) - tracked.made[0]
    rate = (count - 1) / elapsed
    print(f"\nspeed           {rate:.0f} frames/s, {size(int(rate * frame_bytes))} per second")
    print("latency         from the finished frame to the end of the work on it, ms; apart from it the first")
    print(f"                {_FIRST} frames, whose memory is used for the first time\n")
    print("                median     90 %     99 %      max    first")
    for name, trail in (("tracker", tracked), ("writer", written)):
        marks = "".join(f"{mark:9.1f}" for mark in _latencies(trail))
        print(f"    {name:9}{marks}")
    print(f"\nmemory          at most {size(peak)} for frames: {peak / frame_bytes:.1f} of {count}")
    note(
        frames=count,
        frame_bytes=frame_bytes,
        frames_per_second=float(rate),
        latency_ms={
            name: dict(zip(("median", "90 %", "99 %", "max", "first"), _latencies(trail), strict=True))
            for name, trail in (("tracker", tracked), ("writer", written))
        },
        peak_bytes=int(peak),
    )
    if not (_are_right(tracked, places) and _is_right(film, scene, places)):
        print("numbers         WRONG: the tracker or the film is not what the camera saw")
        return 1
    print(f"numbers         {count} places found exactly, {film.size:,} pixels of the film equal")
    picture = os.path.join(arguments.out, _PICTURE)
    _save(picture, scene, tracked, written, f"{rate:.0f} frames/s; at most {size(peak)} for frames")
    print(f"picture         {picture}")
    return 0


def _latencies(trail: Trail) -> list[float]:
    """Median, two percentiles and maximum, then the median of the first frames, in milliseconds."""
    ms = 1e3 * (trail.done - trail.made)
    steady = ms[_FIRST:] if len(ms) > _FIRST else ms
    return [float(mark) for mark in (*np.percentile(steady, (50, 90, 99, 100)), np.median(ms[:_FIRST]))]


def _are_right(tracked: Trail, places: Places) -> bool:
    return bool(np.array_equal(tracked.found, places))


def _is_right(film: Any, scene: Scene, places: Places) -> bool:
    frame = np.empty((scene.edge, scene.edge), np.float32)
    for number, place in enumerate(places):
        scene.frame(place, frame)
        if not np.array_equal(film[number], _grey_levels(frame)):
            return False
    return len(film) == len(places)


def _save(path: str, scene: Scene, tracked: Trail, written: Trail, caption: str) -> None:
    """Draw the scene with the path that was found, and the latencies over time."""
    # Object interface: works without a display and leaves the user's backend alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    extent = (0, len(scene.pixels), len(scene.pixels), 0)
    left.imshow(scene.pixels[::STEP, ::STEP], cmap="gray", extent=extent)
    middle = tracked.found + scene.edge / 2
    left.plot(middle[:, 1], middle[:, 0], color="#ff7f0e", lw=1)
    left.set_title("the scene, and the way of the camera as found", fontsize=9, loc="left")
    left.set_axis_off()
    for name, trail, colour in (("tracker", tracked, "C0"), ("writer", written, "C1")):
        times, ms = trail.made - tracked.made[0], 1e3 * (trail.done - trail.made)
        right.plot(times[_FIRST:], ms[_FIRST:], ".", ms=4, color=colour, label=name)
        right.plot(
            times[:_FIRST], ms[:_FIRST], "o", ms=4, mfc="none", color=colour, label=f"{name}, first use"
        )
    right.set(xlabel="time the frame was finished (s)", ylabel="latency (ms)", ylim=(0, None))
    right.legend(fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.supxlabel(caption, fontsize=8.5, color="0.35")
    figure.savefig(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo camera",
        description="A camera plays photographs as frames of 36 MB; two processes take them from queues, one "
        "tracks, one writes. A camera that is too fast waits.",
    )
    parser.add_argument("--frames", type=positive, help=f"how many frames (default: {_FRAMES})")
    add_size_and_place(parser, "small frames, and few")
    return parser
