"""Everything at once, from several threads; run by test_deadlocks.py, or by hand: SEED SECONDS.

Bursts of tiny tasks, random cancels, recycled workers, callbacks that submit and callbacks that wait,
maps that are dropped half-way, executors that are shut down, killed or just forgotten by other threads, the
garbage collector at every moment. A hang dumps all stacks, of all processes, and fails.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

os.environ["PYTHONFAULTHANDLER"] = "1"  # read by the zygotes: see `others`

import numpy as np

import ndshare
from tests import kernel, misdeeds

warnings.simplefilter("ignore", ndshare.RepeatedCopyWarning)

_HANG_S = float(os.environ.get("HUNT_HANG_S", "45"))
_CLOSED = (RuntimeError, concurrent.futures.CancelledError, concurrent.futures.BrokenExecutor)


class Box:
    """An executor that threads share, and that somebody replaces now and then."""

    def __init__(self, rng: random.Random) -> None:
        self.lock = threading.Lock()
        self.rng = rng
        self.executor = self.make()

    def make(self) -> ndshare.ProcessPoolExecutor:
        """One of some kind."""
        rng = self.rng
        kind = rng.randrange(5)
        return ndshare.ProcessPoolExecutor(
            rng.randrange(1, 4),
            max_tasks_per_child=rng.choice((1, 2, 7, 50)) if kind == 1 else None,
            initializer=misdeeds.same if kind == 2 else None,
            retries=2 if kind == 3 else 0,
            snapshot="submit" if kind == 4 else "start",
        )

    def replace(self) -> None:
        """End the executor in one of the ways there are, while others use it."""
        rng = self.rng
        with self.lock:
            old, self.executor = self.executor, self.make()
        way = rng.randrange(6)
        if way == 0:
            old.shutdown(wait=True)
        elif way == 1:
            old.shutdown(wait=False)
        elif way == 2:
            old.shutdown(wait=True, cancel_futures=True)
        elif way == 3:
            old.kill_workers()
        elif way == 4:
            old.terminate_workers()
        # else: forgotten


class Player(threading.Thread):
    """One thread that uses the boxes."""

    def __init__(self, seed: int, boxes: list[Box], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.rng = random.Random(seed)
        self.boxes = boxes
        self.stop = stop
        self.error = ""
        self.done = 0
        self.mine: list[concurrent.futures.Future] = []

    def run(self) -> None:
        """Play until told to stop."""
        try:
            while not self.stop.is_set():
                with contextlib.suppress(*_CLOSED):
                    self.once(self.rng.choice(self.boxes).executor)
                self.done += 1
            for future in self.mine:
                with contextlib.suppress(*_CLOSED):
                    future.result(30)
        except BaseException:
            self.error = traceback.format_exc()

    def keep(self, future: concurrent.futures.Future) -> concurrent.futures.Future:
        """Remember a future: it must be done in the end."""
        self.mine.append(future)
        if len(self.mine) > 3000:
            self.mine = [f for f in self.mine if not f.done()]
        return future

    def once(self, executor: ndshare.ProcessPoolExecutor) -> None:
        """One thing that a program does."""
        rng = self.rng
        kind = rng.randrange(12)
        # A worker that ends after each task costs some 20 ms per task: a queue of hundreds is no hang.
        many = 500 if executor._pool.settings.limit is None else 20
        if kind == 0:
            for i in range(rng.randrange(many)):
                self.keep(executor.submit(misdeeds.same, i))
        elif kind == 1:
            n = rng.randrange(many)
            assert list(executor.map(misdeeds.same, range(n), chunksize=rng.randrange(1, 9))) == list(
                range(n)
            )
        elif kind == 2:
            futures = [
                self.keep(executor.submit(misdeeds.same, i)) for i in range(rng.randrange(min(many, 80)))
            ]
            for future in futures:
                if rng.random() < 0.5:
                    future.cancel()
            for number, future in enumerate(futures):
                if not future.cancelled():
                    assert future.result(60) == number
        elif kind == 3:
            futures = [
                self.keep(executor.submit(misdeeds.same, i)) for i in range(rng.randrange(1, min(many, 60)))
            ]
            for future in concurrent.futures.as_completed(futures, timeout=60):
                future.exception()
        elif kind == 4:  # callbacks that submit, which call back, which submit
            self.chain(executor, rng.randrange(1, 8))
        elif kind == 5:  # a callback that waits for another future

            def wait_for_another(_: object) -> None:
                with contextlib.suppress(*_CLOSED):
                    assert executor.submit(misdeeds.same, 7).result(60) == 7

            future = self.keep(executor.submit(misdeeds.same, 1))
            future.add_done_callback(wait_for_another)
            future.result(60)
        elif kind == 6:
            array = np.full(rng.choice((3, 30_000, 200_000)), 2.0)
            future = self.keep(executor.submit(misdeeds.total, array))
            assert future.result(60) == 2.0 * array.size
        elif kind == 7:
            result = self.keep(executor.submit(misdeeds.filled, 100_000, 3.0)).result(60)
            assert (result == 3.0).all()
        elif kind == 8:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                self.keep(executor.submit(misdeeds.nap, 0.02)).result(0.02 * rng.random())
        elif kind == 9:
            results = executor.map(misdeeds.same, range(many), buffersize=rng.choice((None, 1, 10)))
            for _ in range(rng.randrange(many)):
                next(results)
            del results  # dropped half-way
        elif kind == 10:
            gc.collect(rng.randrange(3))
            if rng.random() < 0.2:
                ndshare.trim()
        else:
            with contextlib.suppress(ndshare.WorkerDiedError):
                self.keep(executor.submit(misdeeds.end_by, int(signal.SIGKILL))).result(60)

    def chain(self, executor: ndshare.ProcessPoolExecutor, length: int) -> None:
        """A future whose callback submits the next one."""
        over = threading.Event()

        def follow(future: concurrent.futures.Future, left: int = length) -> None:
            if future.cancelled() or future.exception() is not None or left == 0:
                over.set()
                return
            try:
                following = executor.submit(misdeeds.same, left)
            except _CLOSED:
                over.set()
                return
            following.add_done_callback(lambda f: follow(f, left - 1))

        self.keep(executor.submit(misdeeds.same, 0)).add_done_callback(follow)
        assert over.wait(60), "a chain of callbacks has broken"


def books() -> None:
    """Say what threads do and what the pools believe, before all stacks are dumped once more at the end.

    Most hangs are a task that nobody has; who stands at the same line both times is the one that hangs.
    """
    from ndshare._pool.pool import Pool
    from ndshare._processes import frames
    from ndshare._processes.crew import Crew

    faulthandler.dump_traceback()
    for thing in gc.get_objects():
        if isinstance(thing, Crew) and not thing.closed:
            hub = thing.hub
            print(
                f"crew: leader {hub._leader_thread} parked {hub._parked} ticking {hub._ticking} resting {hub._resting}",
                f"waiters {hub._waiters} todo {len(hub._todo)} workers {len(thing.workers)} idle {len(thing.idle)}",
                f"zygotes {[(ear.zygote.process.pid, ear.zygote.process.poll()) for ear in thing.zygotes.values()]}",
                file=sys.stderr,
            )
        elif isinstance(thing, Pool) and thing.pending:
            print(
                f"pool: pending {thing.pending} queue {len(thing.queue)} held {thing.held} closed {thing.closed}",
                f"killed {thing.killed} free {len(thing.roster.free)} seconds {thing.roster.seconds}",
                f"at most {thing.settings.max_workers} limit {thing.settings.limit}",
                file=sys.stderr,
            )
            for worker in thing.workers:
                pid = int.from_bytes(
                    worker.board[worker.row + frames.PID_AT : worker.row + frames.PID_AT + 8], "little"
                )
                cells = [worker.board[frames.cell(worker.row, seq)] for seq in worker.inflight]
                print(
                    f"  worker {worker.id} pid {pid} {kernel.state(pid)}: sending {worker.sending} leaving {worker.leaving}",
                    f"gone {worker.gone} sent {worker.sent} heard {thing.hub.hears(worker)} proved {worker.proved}",
                    f"inflight {len(cells)} cells {cells}",
                    file=sys.stderr,
                )


def others() -> None:
    """Have all other processes of this program dump their stacks; it is the last that they do."""
    for pid in reversed(kernel.descendants(os.getpid())):  # those without children of their own first
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:60].decode()
            where = Path(f"/proc/{pid}/wchan").read_text()
            print(f"process {pid} {kernel.state(pid)} {where} {command}", file=sys.stderr, flush=True)
            os.kill(pid, signal.SIGABRT)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.2)  # one after the other


def stalled() -> None:
    """Say all that there is to say."""
    books()
    others()


def main(seed: int, seconds: float) -> None:
    """Play; every thread must come to its end, every future must be done."""
    faulthandler.dump_traceback_later(seconds + _HANG_S, exit=True)
    rng = random.Random(seed)
    sys.setswitchinterval(rng.choice((0.005, 0.0005, 0.00001)))
    if rng.random() < 0.5:
        gc.set_threshold(rng.choice((10, 50)), 2, 2)  # finalizers at every moment
    watch = threading.Timer(seconds + _HANG_S - 8, stalled)
    watch.daemon = True
    watch.start()
    stop = threading.Event()
    boxes = [Box(random.Random(seed + i)) for i in range(rng.randrange(1, 3))]
    players = [Player(seed * 100 + i, boxes, stop) for i in range(rng.randrange(1, 5))]
    for player in players:
        player.start()
    end = time.monotonic() + seconds
    me = Player(seed * 100 + 99, boxes, stop)  # the main thread plays, too
    while time.monotonic() < end and not any(player.error for player in players):
        if rng.random() < 0.1:
            rng.choice(boxes).replace()
        if rng.random() < 0.01:
            ndshare.shutdown()
            for box in boxes:
                box.replace()
        with contextlib.suppress(*_CLOSED):
            me.once(rng.choice(boxes).executor)
    stop.set()
    for player in players:
        player.join()
    for future in me.mine:
        with contextlib.suppress(*_CLOSED):
            future.result(30)
    errors = [player.error for player in players if player.error]
    assert not errors, "\n".join(errors)
    for box in boxes:
        box.executor.shutdown()
    ndshare.shutdown()
    watch.cancel()
    faulthandler.cancel_dump_traceback_later()
    print("ok", sum(player.done for player in players))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
