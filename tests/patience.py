"""How long to wait for what should be quick: longer on a machine that others are using."""

from __future__ import annotations

import os


def patient(seconds: float) -> float:
    """Return the seconds to allow for something that takes at most `seconds` on a machine of one's own."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
