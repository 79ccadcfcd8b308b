"""Errors of a pool whose worker ended, with the class that users of the standard library catch.

They live apart, and are imported when they are asked for: their base class comes from
`concurrent.futures.process`, which takes longer to import than the whole of ndshare.
"""

from __future__ import annotations

import signal
from concurrent.futures.process import BrokenProcessPool

from ndshare.errors.base import WorkerError

__all__ = ["ExitError", "InitializerError", "WorkerDiedError"]


def _likely_cause(signal_number: int | None, exit_code: int | None) -> str:
    if signal_number == signal.SIGKILL:
        return "likely the kernel's out-of-memory killer, or somebody's kill -9"
    if signal_number in {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}:
        return "a crash in compiled code; PYTHONFAULTHANDLER=1 in the environment shows where"
    if signal_number == signal.SIGTERM:
        return "it was asked to terminate"
    if signal_number is not None:
        return "somebody sent the signal"
    if exit_code is not None:
        return "the task, or a library it uses, called os._exit() or exit()"
    return "its parent process ended, and it with it"


def code_or_signal(status: int | None) -> tuple[int | None, int | None]:
    """Return exit code and signal, one of them None, of what `os.waitstatus_to_exitcode` gave, or of None."""
    if status is None:
        return None, None
    return (status, None) if status >= 0 else (None, -status)


class WorkerDiedError(WorkerError, BrokenProcessPool):
    """The process that ran a task ended before the task did.

    Page: docs/executor.md.

    Parameters
    ----------
    task : str
        What it was running, or what it was about to run.
    pid : int
        Of the worker; 0 if it never started.
    exit_code : int or None
        What it exited with; None if a signal ended it or the code is not known.
    signal_number : int or None
        The signal that ended it.
    peak_bytes : int
        Peak resident memory of the worker; 0 if not known.
    attempts : int
        How often the task was tried.

    Notes
    -----
    Only this task fails. The worker is replaced, tasks that had not started run elsewhere.
    """

    __module__ = "ndshare.errors"

    def __init__(
        self,
        task: str,
        pid: int,
        exit_code: int | None,
        signal_number: int | None,
        peak_bytes: int,
        attempts: int = 1,
    ) -> None:
        super().__init__(task, pid, exit_code, signal_number, peak_bytes, attempts)
        self.task = task
        self.pid = pid
        self.exit_code = exit_code
        self.signal_number = signal_number
        self.peak_bytes = peak_bytes
        self.attempts = attempts

    def __str__(self) -> str:
        if self.signal_number is not None:
            try:
                how = f"killed by {signal.Signals(self.signal_number).name}"
            except ValueError:
                how = f"killed by signal {self.signal_number}"
        elif self.exit_code is not None:
            how = f"exit code {self.exit_code}"
        else:
            how = "its exit status is not known"
        tries = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        memory = f", peak memory {self.peak_bytes / 2**20:.0f} MiB" if self.peak_bytes else ""
        return (
            f"the worker that ran {self.task} ended before it finished{tries}: process {self.pid}, {how}"
            f"{memory}; {_likely_cause(self.signal_number, self.exit_code)}. Other tasks are not affected."
        )


class ExitError(WorkerError, SystemExit, BrokenProcessPool):
    """Code that rebuilds an argument or the result of a task asked the interpreter to exit.

    Page: docs/executor.md.

    Parameters
    ----------
    task : str
        Its name; empty if it is not known.
    code : str, int or None
        What ``sys.exit`` was given.

    Notes
    -----
    A `SystemExit`, as in the code that raised it, and what the standard library gives for it.
    """

    __module__ = "ndshare.errors"

    def __init__(self, task: str, code: str | int | None) -> None:
        super().__init__(task, code)
        self.task = task
        self.code = code

    def __str__(self) -> str:
        whose = f" of {self.task}" if self.task else ""
        return (
            f"code that rebuilds an argument or the result{whose} called exit({self.code!r}), "
            "but neither process has ended; send something else"
        )


class InitializerError(WorkerError, BrokenProcessPool):
    """The initializer of a pool failed in a worker; the tasks that waited for it fail.

    Page: docs/executor.md.

    Parameters
    ----------
    initializer : str
        Its name.
    text : str
        The worker's traceback, or what became of its process.
    """

    __module__ = "ndshare.errors"

    def __init__(self, initializer: str, text: str) -> None:
        super().__init__(initializer, text)
        self.initializer = initializer
        self.text = text

    def __str__(self) -> str:
        return (
            f"the initializer {self.initializer} failed in a worker, so the tasks that waited for the worker "
            f"cannot run; the next submit tries again.\n\n{self.text}"
        )
