"""``ndshare top``: what it sees of a program with every face, and that the program does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ndshare
from ndshare import cli
from ndshare.cli import processes
from ndshare.cli.top import look as looking
from ndshare.cli.top import show, tables
from ndshare.cli.top.tables import Table, facts

pytestmark = pytest.mark.once

_PROGRAM = """
import sys, threading, time
import numpy as np, ndshare

begun = ndshare.zeros(2)

def linger(x, seconds):
    begun[0] = 1
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)
    return x[0]

def hold(name):
    with ndshare.SharedDict.attach(name) as d, d.locked("weights"):
        begun[1] = 1
        time.sleep(100)

def main():
    shared = ndshare.ones(1_000_000)
    queue = ndshare.Queue(8)
    stream = ndshare.Stream()
    d = ndshare.SharedDict({"weights": np.zeros(10), "steps": 0}, sys.argv[1])
    executor = ndshare.ProcessPoolExecutor(3)
    executor.submit(linger, shared, 100)
    executor.submit(hold, d.name)
    for number in range(5):
        queue.put(number)
    queue.get()
    out = ndshare.alloc(1000)
    def kernel(worker, index, value):
        time.sleep(0.05)
        out[index] = value
    context = ndshare.ProcessContext(1)
    threading.Thread(target=context.map, args=(kernel, range(1000)), daemon=True).start()
    def go_on():
        while True:
            d.update({"steps": 1}, lambda one, steps: steps + one)
            stream.put(np.zeros(3))
            executor.submit(abs, -1).result()
            time.sleep(0.01)
    threading.Thread(target=go_on, daemon=True).start()
    while not (begun.all() and out[2] and d["steps"] > 2):
        time.sleep(0.01)
    print("ready", flush=True)
    sys.stdin.read()

main()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A program that uses every face, and goes on until it is killed."""
    path = tmp_path_factory.mktemp("top") / "faces.py"
    path.write_text(_PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(path), "top-test"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
        while os.path.exists(f"/dev/shm/ndshare-{os.geteuid()}-top-test"):
            ndshare.prune()
            time.sleep(0.01)


@pytest.fixture
def said(program: subprocess.Popen[str]) -> dict[str, Any]:
    """What two looks find."""
    before = looking.look()
    time.sleep(0.4)
    return facts(before, looking.look())


def test_top_sees_workers_and_what_they_run(program, said) -> None:
    """Each worker below its program, with the function, since when, and how many tasks."""
    workers = [process for process in said["processes"] if process["works_for"] == program.pid]
    by_name = {worker["runs"]: worker for worker in workers}
    assert {"linger", "hold", "map"} <= set(by_name)
    assert by_name["linger"]["for_seconds"] > 0.5
    assert by_name["linger"]["tasks_per_second"] == 0
    assert max(worker["tasks_per_second"] or 0 for worker in workers) > 1  # abs
    assert {worker["role"] for worker in workers} == {"worker"}
    numbers = [process["pid"] for process in said["processes"]]
    at = numbers.index(program.pid)
    assert {process["pid"] for process in said["processes"][at : at + 1 + len(workers)]} >= {program.pid}


def test_top_sees_memory(program, said) -> None:
    """The program owns what it has made, and the worker that uses it holds it."""
    by_pid = {process["pid"]: process for process in said["processes"]}
    own = by_pid[program.pid]["memory"]
    assert own["own"] - own["idle"] - own["lent"] >= 8_000_000
    worker = next(process for process in said["processes"] if process["runs"] == "linger")
    assert worker["memory"]["held"] >= 8_000_000
    assert worker["segments"] >= 8_000_000


def test_top_sees_maps(program, said) -> None:
    """Kernel, items, progress, rate and how long it will still take."""
    (running,) = [running for running in said["maps"] if running["pid"] == program.pid]
    assert running["kernel"].endswith("kernel")
    assert running["items"] == 1000
    assert 0 < running["finished"] < 1000
    assert 0 < running["items_per_second"] <= 25
    assert running["seconds_left"] > 1
    assert running["workers"] == 1


def test_top_sees_queues_and_streams(program, said) -> None:
    """Length and bounds of a queue, and how fast a stream goes."""
    queue = next(queue for queue in said["queues"] if program.pid in queue["pids"])
    assert (queue["length"], queue["maxsize"], queue["put"], queue["got"]) == (4, 8, 5, 1)
    assert queue["put_per_second"] == 0
    assert not queue["shut_down"]
    stream = next(stream for stream in said["streams"] if program.pid in stream["pids"])
    assert stream["newest"] > 1
    assert stream["put_per_second"] > 1


def test_top_sees_dicts_and_who_holds_what(program, said) -> None:
    """Updates per second, and the process that has a key."""
    shared = next(shared for shared in said["dicts"] if shared["name"] == "top-test")
    assert program.pid in shared["pids"]
    assert shared["updates_per_second"] > 1
    holder = next(process["pid"] for process in said["processes"] if process["runs"] == "hold")
    lock = next(lock for lock in shared["locks"] if lock["key"] == "'weights'")
    assert lock["holder"] == holder


def test_top_changes_nothing(program) -> None:
    """Looking opens and locks nothing that the program could see: its files and the dict's users stay the same."""
    before = sorted(os.listdir(f"/proc/{program.pid}/fd")), len(os.listdir(f"/proc/{program.pid}/task"))
    mine = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        looking.look()
    assert len(os.listdir("/proc/self/fd")) == mine
    after = sorted(os.listdir(f"/proc/{program.pid}/fd")), len(os.listdir(f"/proc/{program.pid}/task"))
    assert before == after
    dicts = {state.info.name: state.info.users for state in looking.look().dicts}
    assert os.getpid() not in dicts["top-test"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_top_text_fits_the_terminal(said, width: int) -> None:
    """No line is wider, and the numbers are whole: names and columns give way."""
    text = show.plain(tables.tables(said), width)
    assert max(map(len, text.splitlines())) <= width
    assert "linger" in text
    assert "█" in text or "░" in text


@pytest.mark.parametrize("width", [80, 120])
def test_top_with_rich_fits_the_terminal(said, width: int) -> None:
    """The same by rich, with nothing cut off that is not a name."""
    pytest.importorskip("rich")
    from rich.console import Console

    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 -- closed below
    console.print(show.rich_group(tables.tables(said), width))
    console.file.close()
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "linger" in text
    assert "kernel" in text


def test_top_once_prints_json(program, run_ndshare) -> None:
    """``--once --json`` is one object with everything."""
    said = json.loads(run_ndshare("top --once --json --interval 0.1").stdout)
    assert program.pid in [process["pid"] for process in said["processes"]]
    assert {"seconds", "processes", "maps", "queues", "streams", "dicts"} == set(said)


def test_top_ends_by_ctrl_c(program) -> None:
    """It goes on until Ctrl-C, and ends with status 0."""
    with subprocess.Popen(
        [sys.executable, "-m", "ndshare", "top", "--plain", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = 0
        while looks < 2:
            looks += "\033[H" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == ""


def test_top_of_nothing_says_so() -> None:
    """No process: a sentence."""
    assert show.plain([]) == "no process of this user uses ndshare"


def test_top_leaves_columns_out_where_there_is_no_room() -> None:
    """First those that are spare, then names are cut."""
    table = Table("T", ("pid", "what", ">a", ">b"), [("1", "n" * 50, "1234567", "7654321")], (">b",))
    assert "7654321" in show.plain([table], 80)
    narrow = show.plain([table], 30)
    assert "7654321" not in narrow
    assert "1234567" in narrow
    assert max(map(len, narrow.splitlines())) <= 30


def test_top_interval_is_checked(capsys) -> None:
    """An interval of zero is refused with a sentence."""
    with pytest.raises(SystemExit):
        cli.main(["top", "--interval", "0"])
    assert "0.01 to 3600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["python", "train.py", "--epochs", "3"], "train.py --epochs 3"),
        (["python", "-m", "package.module", "x"], "-m package.module x"),
        (["python", "-W", "error", "-u", "/home/me/a.py"], "a.py"),
        (["python", "-c", "import  x\nx.run()"], "-c import x x.run()"),
        (["python"], "python"),
        (["python", "-c", "from ndshare._processes.zygote import main"], "ndshare zygote"),
        (["python", "x" * 90], "x" * 39 + "…"),
    ],
)
def test_programs_have_short_names(words: list[str], name: str) -> None:
    """The script, the module or the code, without the interpreter and its options."""
    assert processes.name_of(words) == name
