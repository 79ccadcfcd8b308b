"""``ndshare demo sgd``: one process, then several that are killed on the way; compare, draw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ndshare._system import default_workers
from ndshare.demo import digits, network, sgd_plot
from ndshare.demo.options import add_size_and_place, add_workers, note
from ndshare.demo.sgd import Course, run

_PICTURE = "ndshare-sgd.png"
_GOOD = 0.9  # accuracy on the held-out digits, to compare the times until it is reached
_SECONDS = 6.0
_QUICK_SECONDS = 2.0
_RATE = 0.003  # small: the course is to be seen
_QUICK_RATE = 0.02
_KILLS = 3  # per run, about: who takes a victim's place needs a moment to start


def main(argv: Sequence[str]) -> int:
    """Run the demo with the words of the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    os.makedirs(arguments.out, exist_ok=True)
    seconds: float = _QUICK_SECONDS if arguments.quick else _SECONDS
    learners: int = arguments.workers or max(2, default_workers())
    train, held_out = digits.load()
    print(
        f"{len(train)} digits to learn from, {len(held_out)} held out; a network of {network.HIDDEN} hidden "
        f"units, {seconds:g} s each"
    )
    rate = _QUICK_RATE if arguments.quick else _RATE
    alone = run(train, held_out, 1, seconds, None, rate)
    _report("1 process", alone)
    together = run(train, held_out, learners, seconds, seconds / (_KILLS + 1), rate)
    _report(f"{learners} processes", together)
    one, several = alone.time_to(_GOOD), together.time_to(_GOOD)
    if one is not None and several is not None:
        print(f"{_GOOD:.0%} right      after {one:.2f} s by one process, {several:.2f} s by {learners}")
    print(f"speed           {together.steps / max(1, alone.steps):.2f} times the steps of one process")
    note(
        learners=learners,
        seconds=seconds,
        steps={"1": alone.steps, str(learners): together.steps},
        accuracy={"1": alone.accuracies[-1], str(learners): together.accuracies[-1]},
        seconds_to_90_percent={"1": one, str(learners): several},
        kills=len(together.kills),
        exact=alone.exact and together.exact,
    )
    path = os.path.join(arguments.out, _PICTURE)
    sgd_plot.save(path, alone, together)
    print(f"picture         {path}")
    if not (alone.exact and together.exact):
        print("steps           LOST or counted twice")
        return 1
    print(f"steps           {alone.steps + together.steps} counted, each of them in the weights")
    return 0


def _report(who: str, course: Course) -> None:
    killed = f", {len(course.kills)} killed and replaced on the way" if course.kills else ""
    print(f"{who:15} {course.accuracies[-1]:.1%} of the held-out digits right, {course.steps} steps{killed}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ndshare demo sgd",
        description="Several processes train one classifier by gradient steps on weights in a SharedDict. "
        "Some are killed on the way.",
    )
    add_workers(parser, "processes (default: usable CPUs, at least 2)")
    add_size_and_place(parser, "a few seconds")
    return parser
