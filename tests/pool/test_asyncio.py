"""The executor in an event loop: awaits, cancellation, a thousand at a time."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterator

import numpy as np
import pytest

import ndshare
from tests.array_tasks import echo
from tests.integrations.joblib_tasks import note_run, slow_square, square


@pytest.fixture
def executor() -> Iterator[ndshare.ProcessPoolExecutor]:
    """Return an executor with two workers."""
    with ndshare.ProcessPoolExecutor(2) as executor:
        yield executor


def test_run_in_executor_brings_arrays(executor: ndshare.ProcessPoolExecutor) -> None:
    """`loop.run_in_executor` with shared and ordinary arrays, in an event loop that goes on meanwhile."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        shared = ndshare.ones(300_000)
        back = await loop.run_in_executor(executor, echo, shared)
        assert np.shares_memory(back, shared)
        ordinary = await loop.run_in_executor(executor, functools.partial(echo, np.ones(300_000)))
        assert ordinary.flags.writeable
        assert await loop.run_in_executor(executor, slow_square, 3, 0.3) == 9
        ticking.cancel()
        return ticks

    assert asyncio.run(main()) >= 5


def test_thousand_awaits_at_a_time(executor: ndshare.ProcessPoolExecutor) -> None:
    """Every await gets its own result, in the order of `gather`, and two loops may follow each other."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(executor, square, i) for i in range(1000)))
        assert found == [i * i for i in range(1000)]
        arrays = await asyncio.gather(
            *(loop.run_in_executor(executor, np.full, 2000, float(i)) for i in range(1000))
        )
        assert all((array == i).all() for i, array in enumerate(arrays))

    for _ in range(2):
        asyncio.run(main())


def test_as_completed_and_wait(executor: ndshare.ProcessPoolExecutor) -> None:
    """`asyncio.as_completed` and `asyncio.wait` on wrapped futures."""

    async def main() -> None:
        wrapped = [asyncio.wrap_future(executor.submit(square, i)) for i in range(20)]
        assert sorted([await future for future in asyncio.as_completed(wrapped)]) == [
            i * i for i in range(20)
        ]
        slow = asyncio.wrap_future(executor.submit(slow_square, 2, 0.5))
        fast = asyncio.wrap_future(executor.submit(square, 3))
        done, pending = await asyncio.wait({slow, fast}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {fast}
        assert await pending.pop() == 4

    asyncio.run(main())


def test_cancelled_await_cancels_what_has_not_started(executor: ndshare.ProcessPoolExecutor) -> None:
    """Queued calls are dropped, running ones end by themselves, and the executor goes on."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, note_run, runs, i) for i in range(40)]
        await asyncio.sleep(0.2)
        for call in calls[2:]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert found[:2] == [None, None]
        assert sum(isinstance(result, asyncio.CancelledError) for result in found) == 38
        assert await loop.run_in_executor(executor, square, 5) == 25

    runs = ndshare.zeros(40)
    asyncio.run(main())
    assert runs.sum() < 40


def test_timeout_of_an_await(executor: ndshare.ProcessPoolExecutor) -> None:
    """`asyncio.timeout` gives up the wait; the call itself goes on, as documented by asyncio."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await loop.run_in_executor(executor, slow_square, 3, 0.5)
        assert await loop.run_in_executor(executor, square, 5) == 25

    asyncio.run(main())


def test_errors_and_dead_workers_reach_the_await(executor: ndshare.ProcessPoolExecutor) -> None:
    """An exception is raised where the call is awaited."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)
        with pytest.raises(ndshare.WorkerDiedError):
            await loop.run_in_executor(executor, os._exit, 3)
        assert await loop.run_in_executor(executor, square, 5) == 25

    asyncio.run(main())


def test_task_group_cancels_the_others(executor: ndshare.ProcessPoolExecutor) -> None:
    """One failing call ends the group."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def call(*args: object) -> object:
            return await loop.run_in_executor(executor, *args)  # type: ignore[arg-type]

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(call(divmod, 1, 0))
                for _ in range(10):
                    group.create_task(call(slow_square, 2, 0.2))
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)

    asyncio.run(main())
