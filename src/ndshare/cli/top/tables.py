"""Two looks as tables: what changed between them, per second."""

from __future__ import annotations

import dataclasses
from typing import Any

from ndshare.cli.doctor.finding import readable
from ndshare.cli.top.look import Look, RunningMap

_WAITS_MOST = 3  # of a dict, that are named


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    title
        What it lists.
    columns
        Headings; those that begin with ``>`` are of numbers.
    rows
        Texts.
    spare
        Columns that are left out where there is no room, in this order.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    spare: tuple[str, ...] = ()

    def without(self, column: str) -> Table:
        """Return the table without a column."""
        at = self.columns.index(column)
        rows = [(*row[:at], *row[at + 1 :]) for row in self.rows]
        return Table(self.title, (*self.columns[:at], *self.columns[at + 1 :]), rows, self.spare)


def facts(before: Look, now: Look) -> dict[str, Any]:
    """Return everything as plain values, for JSON."""
    return {
        "seconds": now.when - before.when,
        "processes": [_process(before, now, pid) for pid in _ordered(now)],
        "maps": [_map(before, now, running) for running in now.maps],
        "queues": [_queue(before, now, key) for key in now.queues],
        "streams": [_stream(before, now, key) for key in now.streams],
        "dicts": _dicts(before, now),
    }


def _per_second(before: Look, now: Look, old: float | None, new: float) -> float | None:
    span = now.when - before.when
    return None if old is None or span <= 0 else max(0.0, new - old) / span


def _ordered(now: Look) -> list[int]:
    """Return the processes, each behind the one that it works for."""

    def place(pid: int) -> tuple[int, int, int]:
        owner = now.owners.get(pid, now.processes[pid].parent if pid in now.forkers else pid)
        return owner, 0 if pid == owner else 1 if pid in now.forkers else 2, pid

    return sorted(now.processes, key=place)


def _role(now: Look, pid: int) -> str:
    if pid in now.rows:
        return "worker"
    if pid in now.forkers or now.processes[pid].program == "ndshare zygote":
        return "zygote"
    return "program"


def _process(before: Look, now: Look, pid: int) -> dict[str, Any]:
    process, row, heap = now.processes[pid], now.rows.get(pid), now.heaps.get(pid)
    old = before.rows.get(pid)
    return {
        "pid": pid,
        "role": _role(now, pid),
        "works_for": now.owners.get(pid),
        "program": process.program,
        "cpu": _per_second(before, now, before.seconds.get(pid), now.seconds.get(pid, 0.0)),
        "runs": row.name if row is not None and row.began is not None else None,
        "for_seconds": None if row is None or row.began is None else max(0.0, now.when - row.began),
        "tasks": None if row is None else row.tasks,
        "tasks_per_second": None
        if row is None
        else _per_second(before, now, None if old is None else old.tasks, row.tasks),
        "segments": process.held,
        "memory": None if heap is None else heap._asdict(),
    }


def _map(before: Look, now: Look, running: RunningMap) -> dict[str, Any]:
    note = running.note
    taken = max(now.when - note.began, 1e-9)
    old = next((m.finished for m in before.maps if m.owner == running.owner and m.note == note), None)
    rate = _per_second(before, now, old, running.finished) or running.finished / taken
    return {
        "pid": running.owner,
        "kernel": note.name,
        "items": note.items,
        "finished": running.finished,
        "workers": note.workers,
        "running_seconds": taken,
        "items_per_second": rate,
        "seconds_left": (note.items - running.finished) / rate if rate > 0 else None,
        "longest_item": None if running.slowest is None else running.slowest[0],
        "longest_item_seconds": None if running.slowest is None else running.slowest[1],
    }


def _queue(before: Look, now: Look, key: tuple[int, int]) -> dict[str, Any]:
    state, pids = now.queues[key]
    old = before.queues[key][0] if key in before.queues else None
    return {
        "id": key[1],
        "pids": pids,
        "length": max(0, state.put - state.got),
        "maxsize": state.maxsize,
        "maxbytes": state.maxbytes,
        "put": state.put,
        "got": state.got,
        "put_per_second": _per_second(before, now, None if old is None else old.put, state.put),
        "got_per_second": _per_second(before, now, None if old is None else old.got, state.got),
        "shut_down": state.shut,
    }


def _stream(before: Look, now: Look, key: tuple[int, int]) -> dict[str, Any]:
    number, closed, pids = now.streams[key]
    old = before.streams[key][0] if key in before.streams else None
    return {
        "id": key[1],
        "pids": pids,
        "newest": number,
        "put_per_second": _per_second(before, now, old, number),
        "closed": closed,
    }


def _dicts(before: Look, now: Look) -> list[dict[str, Any]]:
    versions = {state.info.name: sum(key.version for key in state.keys) for state in before.dicts}
    return [
        {
            "name": state.info.name,
            "keys": state.info.keys,
            "nbytes": state.info.nbytes,
            "pids": list(state.info.users),
            "persistent": state.info.persistent,
            "age": state.info.age,
            "updates_per_second": _per_second(
                before, now, versions.get(state.info.name), sum(key.version for key in state.keys)
            ),
            "locks": [
                {"key": repr(key.key), "holder": key.holder or None, "waiting": key.waiting}
                for key in state.keys
                if key.holder or (key.waiting and state.info.users)
            ],
            "waiting_for_values": sum(key.watching for key in state.keys),
        }
        for state in now.dicts
    ]


# ---------------------------------------------------------------------- texts


def tables(said: dict[str, Any]) -> list[Table]:
    """Return what `facts` has found as tables; none for what there is not."""
    made = (_processes_table(said), _maps_table(said), _queues_table(said), _dicts_table(said))
    return [_without_empty(table) for table in made if table.rows]


def _without_empty(table: Table) -> Table:
    for at, column in reversed(list(enumerate(table.columns))):
        if at > 1 and not any(row[at] for row in table.rows):
            table = table.without(column)
    return table


def _processes_table(said: dict[str, Any]) -> Table:
    columns = ("pid", "what", "runs", ">since", ">tasks/s", ">CPU", ">in use", ">idle", ">lent", ">held")
    rows: list[tuple[str, ...]] = []
    for process in said["processes"]:
        if process["role"] == "zygote":
            continue  # it waits, and has nothing
        worker = process["role"] == "worker"
        memory = process["memory"]
        in_use = process["segments"] if memory is None else memory["own"] - memory["idle"] - memory["lent"]
        what = process["program"] if process["role"] == "program" else process["role"]
        rows.append(
            (
                f"{'  ' * (process['role'] != 'program')}{process['pid']}",
                what,
                (process["runs"] or ("-" if worker else "")).rpartition("<locals>.")[2],
                seconds(process["for_seconds"]),
                number(process["tasks_per_second"]),
                "" if process["cpu"] is None else f"{100 * process['cpu']:.0f} %",
                "" if memory is None and not in_use else readable(max(0, in_use)),
                *("" if memory is None else readable(memory[name]) for name in ("idle", "lent", "held")),
            )
        )
    return Table("Processes", columns, rows, (">idle", ">lent", ">tasks/s", ">held"))


def _maps_table(said: dict[str, Any]) -> Table:
    columns = ("pid", "kernel", "done", ">items", ">items/s", ">left", ">workers", ">longest item")
    rows: list[tuple[str, ...]] = []
    for running in said["maps"]:
        share = running["finished"] / max(1, running["items"])
        longest = running["longest_item_seconds"]
        rows.append(
            (
                str(running["pid"]),
                running["kernel"].rpartition("<locals>.")[2],
                f"{'█' * round(10 * share):░<10} {100 * share:3.0f} %",
                f"{running['items']:,}",
                number(running["items_per_second"]),
                seconds(running["seconds_left"]),
                str(running["workers"]),
                "" if longest is None else f"{running['longest_item']}: {seconds(longest)}",
            )
        )
    return Table("Maps", columns, rows, (">longest item", ">workers", ">items/s"))


def _queues_table(said: dict[str, Any]) -> Table:
    columns = ("queue", "processes", ">waiting", ">at most", ">in/s", ">out/s", "")
    rows: list[tuple[str, ...]] = [
        (
            str(queue["id"]),
            pids(queue["pids"]),
            str(queue["length"]),
            str(queue["maxsize"] or (readable(queue["maxbytes"]) if queue["maxbytes"] else "-")),
            number(queue["put_per_second"]),
            number(queue["got_per_second"]),
            "shut down" if queue["shut_down"] else "",
        )
        for queue in said["queues"]
    ]
    rows += [
        (
            str(stream["id"]),
            pids(stream["pids"]),
            "newest",
            "-",
            number(stream["put_per_second"]),
            "",
            "closed" if stream["closed"] else "stream",
        )
        for stream in said["streams"]
    ]
    return Table("Queues", columns, rows)


def _dicts_table(said: dict[str, Any]) -> Table:
    columns = ("SharedDict", "processes", ">keys", ">memory", ">updates/s", "locks")
    rows: list[tuple[str, ...]] = []
    for shared in said["dicts"]:
        locks = [
            f"{lock['key']} held by {lock['holder'] or 'nobody'}"
            + (f", {lock['waiting']} waiting" if lock["waiting"] else "")
            for lock in sorted(shared["locks"], key=lambda lock: -lock["waiting"])
        ]
        more = f"; {len(locks) - _WAITS_MOST} more" if len(locks) > _WAITS_MOST else ""
        rows.append(
            (
                shared["name"],
                pids(shared["pids"]) or ("none (kept)" if shared["persistent"] else "none (left)"),
                str(shared["keys"]),
                readable(shared["nbytes"]),
                number(shared["updates_per_second"]),
                "; ".join(locks[:_WAITS_MOST]) + more,
            )
        )
    return Table("Dicts", columns, rows, (">memory", ">keys"))


def pids(numbers: list[int]) -> str:
    """Return some process numbers in a few characters."""
    return " ".join(map(str, numbers[:3])) + (f" +{len(numbers) - 3}" if len(numbers) > 3 else "")


def number(value: float | None) -> str:
    """Return a rate."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """Return a time in a unit that one can read."""
    if value is None:
        return ""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.0f} ms"
