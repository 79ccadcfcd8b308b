"""How many items go to a cluster next: in a share of a map, or in one task of an executor.

Large enough that what an engine takes to send one does not count; small enough that all groups end together.
"""

from __future__ import annotations

#: A share should take about so long: many times what an engine takes to send one.
_SHARE_S = 0.4
#: ... and at least so long, however few items are left.
_SHARE_LEAST_S = 0.02
#: The caller takes about so long for each share. All groups together must not want one more often.
_CALLER_S = 0.001
#: A share is at most this part of what is left, per group.
_PARTS_LEFT = 3
#: How much larger than its predecessor a share may be.
_GROWTH = 16

DEPTH = 8
"""So many shares of a group are under way at most: the next one is there in time."""


class ShareSize:
    """The sizes of the shares of one map; tasks of an executor are shares for one worker.

    Parameters
    ----------
    groups : int
        Shares that run at a time.
    per_group : int
        Workers of each.
    per_item_s : float, optional
        What an item takes one worker, from earlier maps; 0: not known.
    """

    def __init__(self, groups: int, per_group: int, per_item_s: float = 0.0) -> None:
        self._groups = groups
        self._per_group = per_group
        self._size = 0
        self.per_item_s = per_item_s

    @property
    def depth(self) -> int:
        """How many shares of a group may be under way: one, as long as they can only be of the least size."""
        return DEPTH if self.per_item_s else 1

    def next(self, left: int) -> int:
        """Return how many of the items that are left the next share has.

        All workers of a group run a share, and wait for the last of them: long items come one for each, or
        two, not one for each and one more.
        """
        workers = self._per_group
        if not self.per_item_s:
            count = workers
        else:
            per_item_s = self.per_item_s / workers
            fair = left / (_PARTS_LEFT * self._groups)
            usual_s = max(_SHARE_S, 2 * self._groups * _CALLER_S)
            least_s = max(_SHARE_LEAST_S, self._groups * _CALLER_S)
            count = int(max(min(usual_s / per_item_s, fair), min(least_s / per_item_s, left)))
            if self._size:
                count = min(count, self._size * _GROWTH)
            count = max(count // workers, 1) * workers
        self._size = max(1, min(count, left))
        return self._size

    def took(self, items: int, seconds: float) -> None:
        """Note how long workers took for the items of a share."""
        if items:
            per_item_s = seconds / items
            self.per_item_s += (per_item_s - self.per_item_s) * (0.5 if self.per_item_s else 1.0)
