"""Cases of queues: large frames and small messages, from one process to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ndshare.bench.goal import Goal, Result
from ndshare.bench.links import MESSAGE, Link
from ndshare.bench.timing import Contestant, alternate

_FRAMES, _EDGE = 20, 3000  # float32: 36 MB each
_MESSAGES = 20_000
_QUICK_FRAMES, _QUICK_EDGE, _QUICK_MESSAGES = 3, 300, 300


def frames(links: Mapping[str, Link], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the time per frame: one process fills it, the other takes a sample.

    Parameters
    ----------
    links
        The queues, by name.
    rounds
        How often each is timed.
    quick
        Small frames, and few.
    """
    count, edge = (_QUICK_FRAMES, _QUICK_EDGE) if quick else (_FRAMES, _EDGE)
    check = partial(_check_sum, count=count)
    contestants = {
        name: Contestant(partial(link.run_frames, count, edge), check, count) for name, link in links.items()
    }
    made = "ndshare, made shared"
    contestants[made] = Contestant(partial(links["ndshare"].run_frames, count, edge, True), check, count)
    yield Result(
        "frames",
        f"{edge} x {edge} float32 frames, filled by one process and sampled by another",
        "s",
        alternate(contestants, rounds),
        "multiprocessing",
        (Goal(6e-3, "value"), Goal(4.5e-3, "value", made)),
    )


def messages(links: Mapping[str, Link], rounds: int, quick: bool) -> Iterator[Result]:
    """Yield the time per message of 1 KB, without a bound and with one of 1,000 messages."""
    count = _QUICK_MESSAGES if quick else _MESSAGES
    check = partial(_check_bytes, count=count)
    for bounded in (False, True):
        run: dict[str, Callable[[], int]] = {
            name: partial(link.run_messages, count, bounded)
            for name, link in links.items()
            if name != "shared_memory"  # for them it is multiprocessing's queue
        }
        yield Result(
            "bounded" if bounded else "messages",
            "1 KB messages" + (", at most 1,000 in the queue" if bounded else ""),
            "s",
            alternate({name: Contestant(one, check, count) for name, one in run.items()}, rounds),
            "multiprocessing",
            (Goal(0.5),),
        )


def _check_sum(total: float, count: int) -> None:
    if total != sum(range(count)):
        raise AssertionError(f"wrong frames: their means sum up to {total}, not {sum(range(count))}")


def _check_bytes(nbytes: int, count: int) -> None:
    if nbytes != count * len(MESSAGE):
        raise AssertionError(f"wrong messages: {nbytes} bytes, not {count * len(MESSAGE)}")
