"""`ContextConformance`: all parts of the suite."""

from __future__ import annotations

from ndshare.testing._alloc import Allocation
from ndshare.testing._collections import Collections
from ndshare.testing._combining import Combining
from ndshare.testing._errors import Errors
from ndshare.testing._kernels import Kernels
from ndshare.testing._surroundings import Surroundings


class ContextConformance(Allocation, Kernels, Collections, Errors, Combining, Surroundings):
    """The suite. Each method is a test; a fresh context is made for each."""
