"""Warnings that point at the line of the user's program that called ndshare."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1]) + "/"


def warn_caller(warning: Warning) -> None:
    """Warn at the first frame outside of this package.

    Parameters
    ----------
    warning : Warning
        An instance.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)
