"""What ndshare promises for a case, and whether a run kept it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ndshare.bench.timing import median

SUBJECT = "ndshare"


@dataclass(frozen=True)
class Goal:
    """An upper limit.

    Parameters
    ----------
    limit
        The number that must not be exceeded.
    kind
        ``"ratio"`` to the reference, ``"extra"`` over the reference, or the ``"value"`` itself.
        The last two are in the unit of the case.
    subject
        Which contestant it is about.
    """

    limit: float
    kind: Literal["ratio", "extra", "value"] = "ratio"
    subject: str = SUBJECT


@dataclass(frozen=True)
class Result:
    """The figures of one case.

    Parameters
    ----------
    name, title
        A word and a sentence.
    unit
        Of the values, such as ``"s"`` or ``"B"``.
    values
        One list per contestant, one number per round.
    reference
        The contestant that ratios are taken to, or None.
    goals
        What is promised.
    notes
        Why a contestant is missing, and other remarks.
    """

    name: str
    title: str
    unit: str
    values: dict[str, list[float]]
    reference: str | None
    goals: tuple[Goal, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def median(self, contestant: str) -> float:
        """Return the median of a contestant."""
        return median(self.values[contestant])

    def ratio(self, contestant: str) -> float | None:
        """Return the median of a contestant by that of the reference, or None without a reference."""
        if self.reference is None or self.reference not in self.values:
            return None
        return self.median(contestant) / self.median(self.reference)

    def reached(self, goal: Goal) -> float | None:
        """Return the number to compare with the limit, or None if it was not measured."""
        if goal.subject not in self.values:
            return None
        if goal.kind == "value":
            return self.median(goal.subject)
        if self.reference is None or self.reference not in self.values:
            return None
        if goal.kind == "extra":
            return self.median(goal.subject) - self.median(self.reference)
        return self.ratio(goal.subject)
