"""Classes that pickle in their own way; workers import them from here."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np

import ndshare


class Image:
    """Pickles its pixels as a list."""

    def __init__(self, pixels: np.ndarray, name: str = "") -> None:
        self.pixels = pixels
        self.name = name

    def __reduce__(self) -> Any:
        return Image, (np.asarray(self.pixels.tolist(), self.pixels.dtype), self.name)


class Locked:
    """Drops its lock and stores bytes."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.lock = threading.Lock()
        self.me = self

    def __getstate__(self) -> dict[str, Any]:
        return {"bytes": self.data.tobytes(), "dtype": self.data.dtype.str}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data = np.frombuffer(state["bytes"], state["dtype"]).copy()
        self.lock = threading.Lock()
        self.me = self


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Cannot be changed, and has slots."""

    __slots__ = ("data", "unit")
    data: np.ndarray
    unit: str

    def __reduce__(self) -> Any:
        return Frozen, (np.frombuffer(self.data.tobytes(), self.data.dtype), self.unit)


class Private:
    """Keeps its array under a mangled name, behind a property."""

    def __init__(self, data: np.ndarray) -> None:
        self.__data = data

    @property
    def data(self) -> np.ndarray:
        """The array."""
        return self.__data

    @data.setter
    def data(self, value: np.ndarray) -> None:
        self.__data = value

    def __reduce__(self) -> Any:
        return Private, (np.frombuffer(self.__data.tobytes(), self.__data.dtype),)


class Thumbnail(Image):
    """A subclass that nobody has registered."""

    def __reduce__(self) -> Any:
        return Thumbnail, (np.asarray(self.pixels.tolist(), self.pixels.dtype), self.name)


def add_one(obj: Any, attribute: str) -> tuple[Any, bool]:
    """Write into the array, return the object and whether the array was shared."""
    array = getattr(obj, attribute)
    array += 1
    return obj, ndshare.is_shared(array)
