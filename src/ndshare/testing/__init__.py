"""What every map context must do: a suite for pytest, for contexts of ndshare and of others.

Subclass `ContextConformance`, say how a context is made, and let pytest collect the class::

    from ndshare.testing import ContextConformance

    class TestMyContext(ContextConformance):
        def make_context(self):
            return MyContext(num_workers=2)
"""

from __future__ import annotations

from ndshare.testing._arrays import Allocation, Combining
from ndshare.testing._errors import Errors, Surroundings
from ndshare.testing._kernels import Collections, Kernels

__all__ = ["ContextConformance"]


class ContextConformance(Allocation, Kernels, Collections, Errors, Combining, Surroundings):
    """The suite. Each method is a test; a fresh context is made for each."""
