"""What a pool loses with a worker: its tasks are tried again, fail, or go back to the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndshare._pool.tasks import Task
from ndshare._processes import Todo, Worker, frames
from ndshare._transport import close_all, unpack
from ndshare.errors import InitializerError, WorkerDiedError, code_or_signal

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool

#: So many workers in a row may die before they have answered anything, then the tasks that wait fail.
_STILLBORN = 3


def on_initialized(
    pool: Pool, worker: Worker, status: int, body: bytes, fds: tuple[int, ...], done: Todo
) -> None:
    """The initializer has run in a worker (under the hub's lock)."""
    if status == frames.OK:
        close_all(fds)
        return
    worker.leaving = True
    waiting = list(worker.inflight.values()) + list(pool.queue)
    worker.inflight.clear()
    pool.queue.clear()
    pool.roster.dismiss(worker)
    done.append(lambda: _initializer_failed(pool, waiting, body, fds))


def _initializer_failed(pool: Pool, waiting: list[Task], body: bytes, fds: tuple[int, ...]) -> None:
    try:
        cause, text = unpack(body, fds)
    except BaseException as error:
        cause, text = error, str(error)
    name = pool.settings.setup or f"preload={list(pool.settings.preload)}"
    for task in waiting:
        failure = InitializerError(name, text)
        failure.__cause__ = cause
        pool.fail(task, failure)


def on_death(pool: Pool, worker: Worker, pid: int, code: int | None, peak: int, done: Todo) -> None:
    """A worker has ended (under the hub's lock)."""
    pool.roster.dismiss(worker)
    tasks = sorted(worker.inflight.items())
    worker.inflight.clear()
    victims: list[Task] = []
    spared: list[Task] = []
    for seq, task in tasks:
        # Taken back, so that a worker whose parent went first cannot begin it in its last moment.
        (spared if worker.take_back(seq) else victims).append(task)
    if pool.killed:
        victims, spared = victims + spared, []
    setup = ""  # what it was at, if that was not a task
    if not worker.proved and not worker.leaving and not victims:
        pool.roster.stillborn += 1
        if pool.settings.initializer is not None and worker.state_version is not None:
            setup = pool.settings.setup
        if pool.roster.stillborn >= _STILLBORN:
            spared += pool.queue
            pool.queue.clear()
            victims, spared = victims + spared, []
            pool.roster.stillborn = 0
    exit_code, number = code_or_signal(code)
    lost: list[tuple[Task, BaseException]] = []
    for task in victims:
        task.attempts += 1
        if task.attempts <= pool.settings.retries and not pool.killed:
            spared.insert(0, task)
        else:
            facts = (setup or task.describe(), pid, exit_code, number, peak, task.attempts)
            death = WorkerDiedError(*facts)
            lost.append((task, InitializerError(setup, str(death)) if setup else death))
    pool.queue.extendleft(reversed(spared))

    def tell() -> None:
        for task, error in lost:
            pool.fail(task, error)
        pool.pump()

    done.append(tell)
