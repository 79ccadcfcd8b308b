"""The simulation of maps on clusters: what must be so whatever the costs, and what the documentation shows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from ndshare.bench import costs, plan, report
from ndshare.bench.command import main
from ndshare.bench.simulation import Costs, Machines, Work, simulate, useful_nodes

pytestmark = pytest.mark.once

_FREE = Costs(*[0.0] * len(dataclasses.fields(Costs)))


def test_without_costs_all_cores_are_busy() -> None:
    """Time is that of the kernels alone, but for the last round of each node."""
    found = simulate(Work(64_000, 0.1), Machines(10, 64), _FREE)
    assert 10.0 <= found.seconds < 10.8
    assert 0.93 < found.nodes <= 1.0
    assert found.scheduler == 0
    assert found.caller < 1e-3  # the bytes on the network


def test_each_cost_lengthens_the_map_by_what_it_must() -> None:
    """Those of the caller and of the scheduler add up, those of nodes are divided by their number."""
    work, machines = Work(1000, 0.0, 1e6, 1e8, share_items=1), Machines(4, 1, network=math.inf)
    expected = {
        "caller_s": 1000, "scheduler_s": 1000, "node_s": 250, "start_s": 1, "write_s": 0.25,
        "receive_s": 1 + 4 * 0.1, "merge_s": 1,
    }  # fmt: skip
    for name, times in expected.items():
        found = simulate(work, machines, dataclasses.replace(_FREE, **{name: 1.0}))
        assert found.seconds == pytest.approx(times, rel=0.05), name
    assert simulate(work, dataclasses.replace(machines, network=1e8), _FREE).seconds == pytest.approx(
        14, rel=0.05
    )
    assert simulate(work, machines, dataclasses.replace(_FREE, start_s=9.0), warm=True).seconds < 1


def test_everything_that_is_sent_is_counted() -> None:
    """Each item's result once, the input once per node, each share through the scheduler."""
    found = simulate(Work(1000, 0.01, 5e3, 2e6, share_items=10), Machines(5, 2), Costs(scheduler_bytes=4000))
    assert found.received == 1000 * 5e3
    assert found.shares == 100
    assert found.scheduled == 100 * 4000
    assert found.sent == 5 * 2e6 + 100 * 1000


def test_rows_let_one_share_of_a_node_be_under_way() -> None:
    """A node waits for the next one then: the way there and back counts each time."""
    machines, slow = Machines(2, 1), dataclasses.replace(_FREE, latency_s=1.0)
    many = simulate(Work(100, 0.5, share_items=1), machines, slow).seconds
    rows = simulate(Work(100, 0.5, share_items=1, rows=True), machines, slow).seconds
    assert many == pytest.approx(26, abs=1)
    assert rows == pytest.approx(50 * 1.5, abs=1)


def test_what_a_lost_node_had_runs_again() -> None:
    """All items are done, some twice; without any node left the map does not end."""
    work = Work(100_000, 0.1)
    found = simulate(work, Machines(20, 4, lost_per_hour=20), seed=3)
    assert 0 < found.lost < 20
    assert found.again > 0
    assert found.received == 100_000 * work.bytes_per_item
    assert found.seconds > simulate(work, Machines(20, 4), seed=3).seconds
    assert simulate(work, Machines(2, 4, lost_per_hour=3600)).seconds == math.inf


def test_the_size_of_shares_is_that_of_the_library() -> None:
    """Long items: one for each core, none left over."""
    found = simulate(Work(6400, 5.0), Machines(3, 64))
    assert found.shares == 100


def test_more_nodes_are_of_no_use_when_the_caller_is_full() -> None:
    """Twice the bytes, half the nodes."""
    machines = Machines(1, 64)
    few, many = (useful_nodes(Work(1_000_000, 0.1, nbytes), machines) for nbytes in (1e5, 1e3))
    assert few < many
    found = simulate(Work(1_000_000, 0.1, 1e5), dataclasses.replace(machines, nodes=2 * few))
    assert found.caller > 0.8
    assert "the caller is busy" in plan.advice(few, found)


def test_costs_are_read_from_the_file_of_the_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints a row for each size, and writes all of it down."""
    measured, written = str(tmp_path / "cluster.json"), tmp_path / "plan.json"
    known = Costs(caller_s=0.002)
    report.save(measured, list(costs.results(known)), {}, {}, {}, {})
    assert costs.load(measured) == known
    words = ["--items", "1e5", "--kernel-s", "0.1", "--nodes", "2", "50", "--lost-per-hour", "0.01"]
    assert main(["plan", *words, "--costs", measured, "--json", str(written)]) == 0
    said = capsys.readouterr().out
    assert "nodes are of no use" in said
    found = json.loads(written.read_text())
    assert set(found["forecasts"]) == {"2", "50"}
    assert found["forecasts"]["50"]["seconds"] < found["forecasts"]["2"]["seconds"]
    assert found["costs"]["caller_s"] == 0.002
    report.save(measured, [], {}, {}, {}, {})
    with pytest.raises(ValueError, match="--cases costs"):
        costs.load(measured)
    with pytest.raises(SystemExit):
        main(["plan", "--items", "1.5", "--kernel-s", "1"])
    assert "whole number" in capsys.readouterr().err


def test_table_of_the_documentation_is_that_of_the_default_costs() -> None:
    """As the command prints it."""
    work, machines = Work(1_000_000, 0.1, 8e3), Machines(1, 64)
    sizes = (1, 10, 100, 1000)
    forecasts = {nodes: simulate(work, dataclasses.replace(machines, nodes=nodes)) for nodes in sizes}
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    assert plan.table(work, machines, forecasts) in page
