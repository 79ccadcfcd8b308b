"""Whether an array that a function of the user's returned is nobody's but its receiver's."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

__all__ = ["OWN", "holders", "is_finished"]


def holders(made: Any) -> int:
    """Return how many references there are, those of the calls on the way here included."""
    return sys.getrefcount(made)


def _holders_of_own() -> int:
    made = np.empty(0)
    return holders(made)


#: What `holders` says of an array that only a variable of its caller has: versions of Python differ.
OWN = _holders_of_own()


def is_finished(made: Any, dtype: np.dtype[Any]) -> bool:
    """Tell whether an object is a plain writable array of this dtype, with memory of its own."""
    return type(made) is np.ndarray and made.dtype == dtype and made.base is None and made.flags.writeable
