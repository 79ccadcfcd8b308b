"""``python -m ndshare`` is the ``ndshare`` command."""

from __future__ import annotations

import sys

from ndshare.cli import main

# The guard keeps workers of other libraries, which import the caller's main module, from starting again.
if __name__ == "__main__":
    sys.exit(main())
