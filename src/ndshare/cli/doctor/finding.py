"""What one check says."""

from __future__ import annotations

import dataclasses
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]

VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "fail")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    name
        What was looked at.
    verdict
        ``"ok"``; ``"warn"``: something will be slower, smaller or missing; ``"fail"``: ndshare cannot work.
    found
        What is there, with figures.
    remedy
        What to do; empty if nothing is to be done.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def worst(findings: list[Finding]) -> Verdict:
    """Return the worst verdict among some findings."""
    return max((finding.verdict for finding in findings), key=VERDICTS.index, default="ok")


def readable(nbytes: float) -> str:
    """Return bytes in a unit that one can read (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" or nbytes >= 100 else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def text_of(path: str) -> str:
    """Return what a file of the system says, without white space at its ends; empty if it cannot be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def number_of(path: str) -> int | None:
    """Return the number that a file of the system holds, or None."""
    text = text_of(path)
    return int(text) if text.lstrip("-").isdigit() else None
