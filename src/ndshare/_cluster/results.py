"""What nodes report of shares, as the map on the caller's side sees it."""

from __future__ import annotations

import time

import numpy as np

from ndshare._map import Death, ItemError, Job, Outcome
from ndshare._node import TaskResult
from ndshare._system import _wire
from ndshare._transport import open_reply, with_traceback


class Results:
    """Results of the shares of one map.

    Parameters
    ----------
    job : Job
        The map.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._places: dict[tuple[str, int], int] = {}  # number of each worker process, for the report

    def enter(self, start: int, end: int, first_worker: int, result: TaskResult) -> list[Outcome]:
        """Enter a share's result on the board of the map.

        Parameters
        ----------
        start, end : int
            The items.
        first_worker : int
            Number of the first of its workers.
        result : TaskResult
            With an outcome.

        Returns
        -------
        list
            What the map is to hear: reports, errors and deaths, with its own indices, numbers and times.
        """
        board, job = self._job.board, self._job
        assert result.outcome is not None
        reports, errors, deaths = open_reply(result.outcome)
        mask = np.frombuffer(result.mask, np.uint8)
        board.mask[start:end] = mask
        finished = int(np.count_nonzero(mask))
        _wire.add_u64(board.memory, board.slot(0), finished)
        if finished < mask.size and not board.is_stopped() and job.on_error == "raise":
            board.stop()
        now = time.monotonic()
        outcomes: list[Outcome] = []
        ends = [end for report in reports for *_, end in report.timeline]
        shift = now - max(ends) if ends else 0.0  # clocks of machines differ
        for report in reports:
            report.worker_id = self._places.setdefault((result.machine, report.pid), len(self._places))
            report.node = result.node
            report.errors = [(start + index, error, text) for index, error, text in report.errors]
            report.timeline = [(a, b, c + shift, d + shift) for a, b, c, d in report.timeline]
            report.failures = [(index, at + shift) for index, at in report.failures]
            outcomes.append(report)
        for index, error, text in errors:
            outcomes.append(ItemError(start + index, with_traceback(error, text)))
            if job.on_error == "raise":
                board.stop()
        for death in deaths:
            worker_id = None if death.worker_id is None else death.worker_id + first_worker
            outcomes.append(Death(worker_id, death.pid, death.index, now))
        if job.on_error == "raise" and any(report.errors for report in reports):
            board.stop()
        return outcomes
