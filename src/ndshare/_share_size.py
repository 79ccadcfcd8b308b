"""How many items go to a cluster in one task: enough that the engine's price for it does not matter."""

from __future__ import annotations

#: A share should take about so long: many times what an engine takes to send one.
_SHARE_S = 0.4
#: ... and at least so long, however few items are left.
_SHARE_LEAST_S = 0.02
#: A share is at most this part of what is left, per group.
_PARTS_LEFT = 3
#: How much larger than its predecessor a share may be.
_GROWTH = 16

DEPTH = 8
"""So many tasks of a group may be under way: the next one is there in time."""


class ShareSize:
    """The size of the next share, from what items took so far.

    Parameters
    ----------
    groups : int
        Shares that run at a time.
    per_group : int
        Workers of each.
    per_item_s : float, optional
        What an item took last time; 0: not known.
    """

    def __init__(self, groups: int, per_group: int, per_item_s: float = 0.0) -> None:
        self.per_item_s = per_item_s
        self._groups = groups
        self._per_group = per_group
        self._last = 0

    def next(self, left: int) -> int:
        """Return the number of items, at least 1."""
        if not self.per_item_s:
            count = self._per_group
        else:
            per_item_s = self.per_item_s / self._per_group
            fair = left / (_PARTS_LEFT * self._groups)
            count = int(max(min(_SHARE_S / per_item_s, fair), min(_SHARE_LEAST_S / per_item_s, left)))
            if self._last:
                count = min(count, self._last * _GROWTH)
        self._last = max(1, count)
        return self._last

    def took(self, items: int, seconds: float) -> None:
        """Note how long some items took, together."""
        if items:
            latest = seconds / items
            self.per_item_s += (latest - self.per_item_s) * (0.5 if self.per_item_s else 1.0)
