"""What the parts of the suite have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ndshare._map import MapContext

Array = np.ndarray[Any, Any]


class Suite:
    """Tests of one context; a fresh one is made for each."""

    def make_context(self) -> MapContext:
        """Return the context to be tested."""
        raise NotImplementedError


def raised(error_type: type[Exception], call: Callable[..., object], *args: Any, **kwargs: Any) -> Exception:
    """Return the error of that type that a call raises; an `AssertionError` if it does not."""
    try:
        call(*args, **kwargs)
    except error_type as error:
        return error
    raise AssertionError(f"no {error_type.__name__} was raised")
