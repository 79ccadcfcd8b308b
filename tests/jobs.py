"""Functions and classes that tests send to workers; imports nothing that is slow to import."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

seen: list[Any] = []
initialized: list[Any] = []


def add_one(x: Any) -> Any:
    """Return ``x + 1``."""
    return x + 1


def identity(x: Any) -> Any:
    """Return the argument."""
    return x


def capture(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how it was called."""
    return args, kwargs


def pid(_: object = None) -> int:
    """Return the number of the process that runs it."""
    return os.getpid()


def nap_pid(seconds: float) -> int:
    """Sleep, then return the number of the process."""
    time.sleep(seconds)
    return os.getpid()


def nap(seconds: float, value: Any = None) -> Any:
    """Sleep, then return the value."""
    time.sleep(seconds)
    return value


def touch_and_wait(started: Path, go_on: Path) -> str:
    """Make one file, and return when the other is there."""
    started.touch()
    wait_for(go_on.exists)
    return "went on"


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when a condition holds; `TimeoutError` if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true within {seconds} s")
        time.sleep(0.002)


def fail(kind: type[BaseException], *args: Any) -> NoReturn:
    """Raise an exception."""
    raise kind(*args)


def divide(a: int, b: int) -> tuple[int, int]:
    """Return quotient and rest."""
    return divmod(a, b)


def exit_now(code: int) -> NoReturn:
    """End the process without a word."""
    os._exit(code)


def kill_self(number: int = signal.SIGKILL) -> None:
    """End the process by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def remember(value: Any) -> list[Any]:
    """Append to a list of this module, and return it: it lives as long as the worker."""
    seen.append(value)
    return seen


def initialize(value: Any) -> None:
    """Initializer that leaves a mark."""
    initialized.append(value)


def what_was_initialized(_: object = None) -> list[Any]:
    """Return the marks."""
    return initialized


def failing_initializer(text: str = "no model") -> NoReturn:
    """Initializer that raises."""
    raise ValueError(text)


def environment(name: str) -> str | None:
    """Return an environment variable of the worker."""
    return os.environ.get(name)


def working_directory(_: object = None) -> str:
    """Return the worker's directory."""
    return os.getcwd()


def draw(_: object = None) -> tuple[int, float, float]:
    """Draw from both global generators; slow enough that one worker does not do it all."""
    time.sleep(0.02)
    return os.getpid(), float(np.random.random()), random.random()  # noqa: NPY002 - the point of the test


def import_and_call(module: str, name: str) -> Any:
    """Import a module in the worker, and call a function of it."""
    __import__(module)
    return getattr(sys.modules[module], name)()


def in_modules(name: str) -> bool:
    """Tell whether the worker has imported a module."""
    return name in sys.modules


def thread_names(_: object = None) -> list[str]:
    """Return the names of the worker's threads."""
    return [thread.name for thread in threading.enumerate()]


def depth(n: int) -> int:
    """Recurse without end."""
    return depth(n + 1) + 1


class FalsyError(Exception):
    """An exception that is false."""

    def __bool__(self) -> bool:
        return False


class EmptyError(Exception):
    """An exception of length zero."""

    def __len__(self) -> int:
        return 0


class Counter:
    """An object with a method, and one that may be referred to weakly."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, n: int) -> int:
        """Return the sum."""
        return self.value + n

    def __call__(self, n: int) -> int:
        """Return the product."""
        return self.value * n


class _Trap:
    """Does something nasty at one moment of its journey."""

    def __init__(self, deed: Callable[..., Any], *args: Any) -> None:
        self.deed = deed
        self.args = args


class WhenPickled(_Trap):
    """Does it when it is pickled."""

    def __reduce__(self) -> Any:
        return self.deed(*self.args)


class WhenUnpickled(_Trap):
    """Does it when it is unpickled, wherever that is."""

    def __reduce__(self) -> Any:
        return self.deed, self.args


def unpickled_late(deed: Callable[..., Any], *args: Any) -> WhenUnpickled:
    """Return, from the worker, what is nasty to the caller."""
    return WhenUnpickled(deed, *args)


def pickled_late(deed: Callable[..., Any], *args: Any) -> WhenPickled:
    """Return what is nasty when the worker pickles it."""
    return WhenPickled(deed, *args)


class TwoArgumentsError(Exception):
    """Pickle alone does not load it again: its constructor wants more than `args` has."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_two_arguments() -> NoReturn:
    """Raise an exception with a constructor of its own."""
    raise TwoArgumentsError(1, 2)
