"""What every map context must do: a suite for pytest, for contexts of ndshare and of others.

Subclass `ContextConformance`, say how a context is made, and let pytest collect the class::

    from ndshare.testing import ContextConformance

    class TestMyContext(ContextConformance):
        def make_context(self):
            return MyContext(num_workers=2)
"""

from __future__ import annotations

from ndshare.testing._conformance import ContextConformance

__all__ = ["ContextConformance"]
