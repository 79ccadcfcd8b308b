"""What becomes of the answers of a pool's workers: results are rebuilt, futures resolved.

Nobody calls it with the hub's lock: that is taken only while the books are changed.
"""

from __future__ import annotations

import collections
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ndshare._pool.tasks import Task
from ndshare._processes import Answer, Worker, frames, handle_waiting
from ndshare._transport import by_value_modules, unpack, with_traceback

if TYPE_CHECKING:
    from ndshare._pool.pool import Pool


def resolve(pool: Pool, worker: Worker, answers: collections.deque[Answer]) -> None:
    """Rebuild results and resolve their futures, without the lock."""
    try:
        handle_waiting()  # those that came before, if another thread is at them
        while answers:
            answer = answers.popleft()
            if answer[0].has_callbacks():
                if not pool.hub.in_thread:
                    alone = collections.deque([answer])
                    pool.hub.call_back(functools.partial(pool.resolve, worker, alone))
                    continue
                # The user's code may wait for the others: they are not kept from it.
                pool.hub.do_next(functools.partial(pool.resolve, worker, answers))
                answers = collections.deque()
            _resolve(pool, worker, *answer)
    except BaseException:  # Ctrl-C, in the thread that waits: the I/O thread does the rest
        pool.hub.put_off(functools.partial(pool.resolve, worker, answers))
        raise
    if pool.closed:
        pool.when_empty()


def _resolve(pool: Pool, worker: Worker, task: Task, status: int, body: bytes, fds: tuple[int, ...]) -> None:
    try:
        pool.delivery.bytes_sent += len(body)
        value = unpack(body, fds)
    except BaseException as error:  # a result that cannot be rebuilt, or exits, is this task's error
        pool.fail(task, error)
        return
    if status == frames.OK:
        _end(pool, task, task.succeed, value)
    elif status == frames.ERROR or not _try_by_value(pool, worker, task, value[0]):
        pool.fail(task, *value)


def _end(pool: Pool, task: Task, tell: Callable[[Any], None], outcome: Any) -> None:
    """End a task; callbacks are run by the I/O thread alone."""
    if not task.seal():
        if not pool.hub.in_thread:
            pool.hub.call_back(functools.partial(_end, pool, task, tell, outcome))
            return
        task.on_done = pool.hub.ring  # before callbacks of the user's, which may block
    try:
        if _finish(pool, task):
            tell(outcome)
    finally:
        if pool.closed:
            pool.when_empty()


def _try_by_value(pool: Pool, worker: Worker, task: Task, error: BaseException) -> bool:
    """Send a module by value that the worker could not import; False if that cannot help."""
    name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    worker.known_main.clear()
    worker.functions.discard(task.token)
    if not name or name not in sys.modules or name in task.modules_tried:
        return False
    task.modules_tried |= {name}
    by_value_modules.add(name)
    try:
        task.read_again()
    except Exception:  # arguments that cannot be rebuilt here: the first error says enough
        return False
    with pool.hub.lock:
        pool.queue.appendleft(task)
    pool.pump()
    return True


def _finish(pool: Pool, task: Task) -> bool:
    """Take a task off the books; False if its user has cancelled it, or it was off them already."""
    with pool.hub.lock:
        if task.pool is None:
            return False
        pool.pending -= 1
        task.let_go()
        if task.dispatched:
            return True
        task.dispatched = True
        return task.start()


def fail(pool: Pool, task: Task, error: BaseException, text: str = "") -> None:
    """End a task by an error."""
    handle_waiting()
    with_traceback(error, text)
    _end(pool, task, task.fail, error)


def refuse(pool: Pool, task: Task, error: BaseException) -> None:
    """Fail a task for which there is no worker, then see about the next one."""
    pool.fail(task, error)
    pool.pump()
