"""The values of a workspace: which names and objects can be, and how they get into shared memory."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any

import numpy as np

from ndshare._transport import share
from ndshare.errors import CapacityError


def checked_values(values: object) -> dict[str, Any]:
    """Return the values of a workspace as a dict, or refuse them."""
    if not isinstance(values, Mapping):
        raise TypeError(f"values must be a mapping of names to arrays, got {values!r}")
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError(f"names of values must be strings, got {name!r}")
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"values has the name {name!r}, but no variable can have it; rename it")
        if name.startswith("__") and name.endswith("__"):
            raise ValueError(f"values has the name {name!r}, but names like this belong to Python; rename it")
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            raise TypeError(
                f"the value {name!r} is an array of Python objects (dtype {value.dtype}), which cannot be "
                "shared; convert it, or wrap it in a list to have it copied to each worker"
            )
    return dict(values)


def share_all(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with their arrays in shared memory; says which one cannot be."""
    try:
        return dict(share(values))
    except CapacityError:
        raise
    except Exception:
        for name, value in values.items():
            try:
                share([value])
            except Exception as error:
                error.add_note(f"while the value {name!r} of a Workspace was put in shared memory")
                raise
        raise
