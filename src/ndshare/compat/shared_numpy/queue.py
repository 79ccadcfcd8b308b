"""`Queue`: arrays of this package go through it by reference, all else by value."""

from __future__ import annotations

import ndshare

__all__ = ["Queue"]

Queue = ndshare.Queue
