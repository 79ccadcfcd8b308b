"""A map on a cluster of any size, event by event, with costs that were measured.

::

    caller ──shares──► scheduler ──► nodes, each with a queue ──results──► caller
      one thing at a time: it sends,        one share at a time,           receives, merges,
      receives and merges                   on all of its cores            sends the next ones

The shares have the sizes that the library gives them: by `ndshare._cluster.share_size.ShareSize` itself,
which learns here too what an item takes.

Not simulated: kernels of different lengths, and networks between nodes and caller that are slower than the
caller's own.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import math
import random
from typing import Any

from ndshare._cluster import DEPTH, ShareSize

_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the parts of a share cost; `ndshare.bench.costs` measures them.

    Parameters
    ----------
    caller_s
        Processor time of the caller, to send a share and to take its result.
    scheduler_s, scheduler_bytes
        Processor time of the scheduler for a share, and bytes on its connections.
    latency_s
        From the caller to a node and back, where nothing waits.
    node_s
        What a node takes for a share besides its items.
    start_s
        What a node takes for its workers, once.
    write_s
        What a node takes for each GB that kernels write: new pages, comparison, message.
    receive_s, merge_s
        What the caller takes for each GB of results: to receive, however fast the network, and to merge.
    """

    caller_s: float = 0.0009
    scheduler_s: float = 0.0011
    scheduler_bytes: float = 3300.0
    latency_s: float = 0.011
    node_s: float = 0.0021
    start_s: float = 0.35
    write_s: float = 1.6
    receive_s: float = 0.6
    merge_s: float = 0.3


@dataclasses.dataclass(frozen=True)
class Work:
    """A map.

    Parameters
    ----------
    items
        How many.
    kernel_s
        What the kernel takes for one of them, on one core.
    bytes_per_item
        What it changes in the caller's arrays.
    input_bytes
        Arrays that all nodes need.
    rows
        Whether there are arrays with rows per worker: a node then has one share at a time under way.
    share_items
        Items of each share; 0: as many as the library finds right.
    """

    items: int
    kernel_s: float
    bytes_per_item: float = 8.0
    input_bytes: float = 0.0
    rows: bool = False
    share_items: int = 0


@dataclasses.dataclass(frozen=True)
class Machines:
    """A cluster.

    Parameters
    ----------
    nodes, cores
        How many nodes, and cores of each.
    network
        Bytes per second of the caller's and of the scheduler's network.
    lost_per_hour
        How often a node is lost; it does not come back.
    noticed_s
        How long it takes until that is noticed.
    """

    nodes: int
    cores: int
    network: float = 1.25e9
    lost_per_hour: float = 0.0
    noticed_s: float = 30.0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What came of it.

    Parameters
    ----------
    seconds
        Until the last result is merged; infinite if all nodes were lost.
    nodes, caller, scheduler
        Which part of that time cores of nodes are in kernels whose results count, and the others busy.
    shares, again
        Shares, and those of them that ran once more.
    lost
        Nodes that were lost.
    sent, received, scheduled
        Bytes from the caller, to it, and through the scheduler.
    """

    seconds: float
    nodes: float
    caller: float
    scheduler: float
    shares: int
    again: int
    lost: int
    sent: float
    received: float
    scheduled: float


@dataclasses.dataclass(eq=False, slots=True)
class _Share:
    items: int
    node: int = -1


class _Nodes:
    """The nodes: who has what, and who has least."""

    def __init__(self, count: int) -> None:
        self.queues: list[collections.deque[_Share]] = [collections.deque() for _ in range(count)]
        self.running: list[_Share | None] = [None] * count
        self.ready = [False] * count
        self.alive = [True] * count
        self._loads = [0] * count
        self._heap = [(0, node) for node in range(count)]

    def put(self, share: _Share) -> bool:
        """Give a share to the node that has least; False if there is none."""
        while self._heap:
            load, node = self._heap[0]
            if self.alive[node] and load == self._loads[node]:
                share.node = node
                self.queues[node].append(share)
                self._note(node, 1)
                return True
            heapq.heappop(self._heap)
        return False

    def _note(self, node: int, more: int) -> None:
        self._loads[node] += more
        heapq.heappush(self._heap, (self._loads[node], node))

    def ended(self, node: int) -> _Share:
        """Take the share that a node has run."""
        share, self.running[node] = self.running[node], None
        assert share is not None
        self._note(node, -1)
        return share

    def lose(self, node: int) -> list[_Share]:
        """End a node; returns the shares that it had."""
        self.alive[node] = False
        running = self.running[node]
        return [*([] if running is None else [running]), *self.queues[node]]


class _Simulation:
    """One run. Times are seconds since the map began."""

    def __init__(self, work: Work, machines: Machines, costs: Costs, warm: bool, seed: int) -> None:
        self._work, self._machines, self._costs, self._warm = work, machines, costs, warm
        self._sizes = ShareSize(machines.nodes, machines.cores)
        self._left = work.items
        self._missing = work.items
        self._nodes = _Nodes(machines.nodes)
        self._landed: collections.deque[_Share] = collections.deque()
        self._events: list[tuple[float, int, str, Any]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._caller_free = self._caller_busy = 0.0  # since when, for how long
        self._scheduler_free = self._scheduler_busy = 0.0
        self._caller_waits = False
        self._shares = self._again = self._lost = 0
        self._sent = self._received = 0.0
        chance = random.Random(seed)
        for node in range(machines.nodes if machines.lost_per_hour else 0):
            self._at(chance.expovariate(machines.lost_per_hour / 3600), "lost", node)

    def run(self) -> Forecast:
        """Run until everything is merged."""
        work, machines = self._work, self._machines
        self._under_way = 0  # shares, at most so many for each node
        self._fill()
        self._at(self._caller_free, "caller", None)
        while self._missing and self._events:
            self._now, _, what, about = heapq.heappop(self._events)
            getattr(self, f"_on_{what}")(about)
        ended = math.inf if self._missing else max(self._now, 1e-9)
        return Forecast(
            seconds=ended,
            nodes=work.items * work.kernel_s / (machines.nodes * machines.cores * ended),
            caller=self._caller_busy / ended,
            scheduler=self._scheduler_busy / ended,
            shares=self._shares,
            again=self._again,
            lost=self._lost,
            sent=self._sent,
            received=self._received,
            scheduled=(self._shares + self._again) * self._costs.scheduler_bytes,
        )

    def _at(self, time_s: float, what: str, about: Any) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), what, about))

    # ------------------------------------------------------------------ the caller

    def _work_of_caller(self, seconds: float) -> None:
        self._caller_free = max(self._caller_free, self._now) + seconds
        self._caller_busy += seconds

    def _fill(self) -> None:
        """Send the next shares, in one message."""
        work = self._work
        depth = 1 if work.rows else DEPTH if work.share_items else self._sizes.depth
        shares = []
        while self._left and self._under_way < depth * self._machines.nodes:
            count = min(work.share_items or self._sizes.next(self._left), self._left)
            self._left -= count
            self._under_way += 1
            shares.append(_Share(count))
        self._shares += len(shares)
        self._hand_over(shares)

    def _hand_over(self, shares: list[_Share]) -> None:
        self._work_of_caller(len(shares) * self._costs.caller_s / 2)
        self._sent += len(shares) * self._costs.scheduler_bytes / 4
        for share in shares:
            self._at(self._caller_free, "scheduler", share)

    def _on_caller(self, _about: None) -> None:
        """Take what has landed; see `Remote.wait`."""
        if not self._landed:
            self._caller_waits = True
            return
        landed, self._landed = list(self._landed), collections.deque()
        if not self._work.rows:
            self._under_way -= len(landed)
            self._fill()
        for share in landed:
            if not self._nodes.alive[share.node]:
                self._under_way += not self._work.rows
                self._at(self._now + self._machines.noticed_s, "again", share)
                continue
            nbytes = share.items * self._work.bytes_per_item
            transfer_s = max(nbytes / self._machines.network, nbytes / _GB * self._costs.receive_s)
            self._work_of_caller(self._costs.caller_s / 2 + transfer_s + nbytes / _GB * self._costs.merge_s)
            self._received += nbytes
            self._missing -= share.items
            self._sizes.took(share.items, share.items * self._work.kernel_s)
            if self._work.rows:
                self._under_way -= 1
                self._fill()
        if not self._work.rows:
            self._fill()
        self._at(self._caller_free, "caller", None)
        if not self._missing:
            self._now = self._caller_free

    def _on_again(self, share: _Share) -> None:
        self._again += 1
        self._hand_over([share])

    def _on_landed(self, share: _Share) -> None:
        self._landed.append(share)
        if self._caller_waits:
            self._caller_waits = False
            self._at(max(self._now, self._caller_free), "caller", None)

    # ------------------------------------------------------------------ scheduler and nodes

    def _on_scheduler(self, share: _Share) -> None:
        costs = self._costs
        seconds = max(costs.scheduler_s, costs.scheduler_bytes / self._machines.network)
        self._scheduler_free = max(self._scheduler_free, self._now) + seconds
        self._scheduler_busy += seconds
        self._at(self._scheduler_free + costs.latency_s / 2, "arrived", share)

    def _on_arrived(self, share: _Share) -> None:
        if self._nodes.put(share):
            self._begin(share.node)

    def _begin(self, node: int) -> None:
        """Let a node run its next share; first of all it gets the input."""
        nodes = self._nodes
        if nodes.running[node] is not None or not nodes.queues[node] or not nodes.alive[node]:
            return
        share = nodes.running[node] = nodes.queues[node].popleft()
        began = self._now
        if not nodes.ready[node]:
            nodes.ready[node] = True
            began += 0.0 if self._warm else self._costs.start_s
            if nbytes := self._work.input_bytes:
                rate_s = max(1 / self._machines.network, self._costs.receive_s / _GB)
                self._work_of_caller(nbytes * rate_s)
                self._sent += nbytes
                began = max(began, self._caller_free + self._costs.latency_s)
        rounds = -(-share.items // self._machines.cores)
        written = share.items * self._work.bytes_per_item / _GB
        took = self._costs.node_s + rounds * self._work.kernel_s + written * self._costs.write_s
        self._at(began + took, "ended", (node, share))

    def _on_ended(self, about: tuple[int, _Share]) -> None:
        node, _ = about
        if not self._nodes.alive[node]:
            return
        share = self._nodes.ended(node)
        self._at(self._now + self._costs.latency_s / 2, "landed", share)
        self._begin(node)

    def _on_lost(self, node: int) -> None:
        self._lost += 1
        for share in self._nodes.lose(node):
            self._at(self._now + self._machines.noticed_s, "again", share)


def simulate(
    work: Work, machines: Machines, costs: Costs | None = None, *, warm: bool = False, seed: int = 0
) -> Forecast:
    """Run a map on a cluster that there need not be.

    Parameters
    ----------
    work : Work
        The map.
    machines : Machines
        The cluster.
    costs : Costs, optional
        By default those of a machine with two processors, see ``docs/cluster.md``.
    warm : bool
        Whether nodes have their workers already.
    seed : int
        Of the losses.

    Returns
    -------
    Forecast
    """
    return _Simulation(work, machines, costs or Costs(), warm, seed).run()


def useful_nodes(work: Work, machines: Machines, costs: Costs | None = None, gain: float = 1.1) -> int:
    """Return beyond how many nodes twice as many make a map less than `gain` times as fast."""
    nodes, seconds = 1, math.inf
    while True:
        faster = simulate(work, dataclasses.replace(machines, nodes=nodes), costs).seconds
        if faster * gain > seconds:
            return nodes // 2
        nodes, seconds = 2 * nodes, faster
