"""An importable module whose functions a workspace registers; it has a global `b` of its own, no `D`."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np

b = "the module's own"


def helper() -> float:
    """Return the sum of a name that this module does not have."""
    return float(D.sum())  # type: ignore[name-defined]


def total(factor: float, *, shift: float = 0.0) -> float:
    """Use the names, one of them in a helper."""
    return factor * helper() + float(np.sum(b)) + shift  # type: ignore[call-overload]


def names_here() -> tuple[bool, object]:
    """Tell what this module has under the names of a workspace."""
    return "D" in globals(), b


def spoil(x: float) -> None:
    """Assign the names, and fail."""
    global D, b
    D = b = x  # type: ignore[assignment]
    raise ValueError(x)


unnamed = lambda x: x + helper() + D[0]  # type: ignore[name-defined]  # noqa: E731


def make(D: Any) -> Callable[[float], float]:  # noqa: N803
    """Return a closure over one of the names."""

    def inner(x: float) -> float:
        return float(D.sum()) + x

    return inner


def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, with a variable of a name that a workspace may use."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return "wrapped", function(*args)

    return wrapper


@decorate
def decorated() -> float:
    """Use the name below a decorator."""
    return float(D[1])  # type: ignore[name-defined]


class Model:
    """Methods that use the names."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def apply(self, x: float) -> float:
        """Use the name."""
        return self.factor * float(D[1]) + x  # type: ignore[name-defined]

    def __call__(self, x: float) -> float:
        return -self.apply(x)


def lived() -> int:
    """Tell in which process."""
    return os.getpid()


def die() -> None:
    """End this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def nap(seconds: float, value: Any = None) -> Any:
    """Return the value after a while."""
    time.sleep(seconds)
    return value


def fail(value: Any) -> None:
    """Raise."""
    raise ValueError(value)


def add_to(index: int) -> None:
    """Write into the shared array."""
    D[index] += 1  # type: ignore[name-defined]
