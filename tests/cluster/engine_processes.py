"""An engine of processes that share nothing with the tests: started anew, one task at a time in each.

As a script it is one of these processes.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Processes(concurrent.futures.ThreadPoolExecutor):
    """An executor; calls that have not begun can be cancelled.

    Parameters
    ----------
    count : int
        Of the processes.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if path)
        self._processes = [
            subprocess.Popen(
                [sys.executable, os.path.abspath(__file__)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths},
            )
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> concurrent.futures.Future[Any]:
        """Call a function in one of the processes."""
        return super().submit(self._call, fn, args)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        process = self._idle.get()
        try:
            pickle.dump((fn, args), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        finally:
            self._idle.put(process)

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True)
        for process in self._processes:
            process.communicate()


def main() -> None:
    """Call what comes; whatever is printed goes elsewhere."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            fn, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(fn(*args), answers)
        answers.flush()


if __name__ == "__main__":
    main()
