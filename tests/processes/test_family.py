"""A worker is a process of `multiprocessing`: its managers, its shared memory, its names hold there."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ndshare

RunScript = Callable[..., "subprocess.CompletedProcess[str]"]

_KINDS = """
import multiprocessing as mp, sys
import ndshare
import ndshare.integrations.joblib

def by_executor(function, *args):
    with ndshare.ProcessPoolExecutor(2) as executor:
        return executor.submit(function, *args).result(60)

def by_map(function, *args, start="pool"):
    out = ndshare.Queue()
    def kernel(worker_id, index, value):
        out.put(function(*args))
    ndshare.ProcessContext(2, start=start).map(kernel, range(1))
    return out.get(timeout=60)

def by_forked_map(function, *args):
    return by_map(function, *args, start="fork")

def by_workspace(function, *args):
    with ndshare.Workspace({}, num_workers=2) as workspace:
        def call():
            return function(*args)
        workspace.register(call)()
        return workspace.evaluate()[0]

def by_joblib(function, *args):
    import joblib
    ndshare.integrations.joblib.register()
    with joblib.parallel_config(backend="ndshare", n_jobs=2):
        return joblib.Parallel()([joblib.delayed(function)(*args)])[0]

def by_asyncio(function, *args):
    import asyncio
    async def ask():
        with ndshare.ProcessPoolExecutor(2) as executor:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *args)
    return asyncio.run(ask())

def nested(function, *args):
    def inside():
        with ndshare.ProcessPoolExecutor(1) as executor:
            return executor.submit(function, *args).result(60)
    return by_executor(inside)

KINDS = [by_executor, by_map, by_forked_map, by_workspace, by_joblib, by_asyncio, nested]
"""


def test_manager_proxies_work_in_every_kind_of_worker(run_script: RunScript) -> None:
    """As arguments, captured and as globals; the key that they are authenticated by comes along."""
    done = run_script(
        _KINDS
        + """
if __name__ == "__main__":  # a manager may import the script again
    with mp.Manager() as manager:
        queue, table, lock, space, event = manager.Queue(), manager.dict(), manager.Lock(), manager.Namespace(), manager.Event()
        def use(q, name):
            with lock:
                table[name] = mp.current_process().name
            space.last = name
            event.set()
            q.put(name)
            return name
        for kind in KINDS:
            assert kind(use, queue, kind.__name__) == kind.__name__
            seen = {queue.get(timeout=30)}
            while not queue.empty():
                seen.add(queue.get())
            assert seen == {kind.__name__} and space.last == kind.__name__ and event.is_set()
            event.clear()
        assert set(table.keys()) == {kind.__name__ for kind in KINDS}
        assert "MainProcess" not in table.values()
    print("fine")
""",
        timeout=180,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_key_that_changes_later_is_followed(run_script: RunScript) -> None:
    """A program may set the key of its process while workers are warm."""
    done = run_script(
        """
import multiprocessing as mp, ndshare
def key(): return bytes(mp.current_process().authkey)
for value in (None, b"another", b"a third"):
    if value: mp.current_process().authkey = value
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(key).result() == bytes(mp.current_process().authkey)
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_key_is_in_no_environment_and_no_command_line(run_script: RunScript) -> None:
    """Nor in a file: it goes by a socket."""
    done = run_script(
        """
import multiprocessing as mp, os, ndshare
key = mp.current_process().authkey = b"ndshare-key-of-a-test"
def seen():
    found = []
    for pid in (os.getpid(), os.getppid()):
        for name in ("environ", "cmdline"):
            with open(f"/proc/{pid}/{name}", "rb") as file:
                found.append(file.read())
    return b"".join(found)
with ndshare.ProcessPoolExecutor(1) as executor:
    assert key not in executor.submit(seen).result()
assert not [name for name in os.listdir(".") if not name.endswith(".py")]
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_shared_memory_lives_as_long_as_the_caller_wants(run_script: RunScript) -> None:
    """Attached or made in a worker, of any kind, which ends or is killed: its data are there until unlinked."""
    done = run_script(
        _KINDS
        + """
import os, signal, time
from multiprocessing import shared_memory
from multiprocessing.managers import SharedMemoryManager

def peek(name):
    memory = shared_memory.SharedMemory(name)
    value = bytes(memory.buf[:3])
    memory.close()
    return value

def make():
    memory = shared_memory.SharedMemory(create=True, size=64)
    memory.buf[:3] = b"new"
    memory.close()
    return memory.name

def make_in_child():
    def child(connection):
        connection.send(make())
    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    name = ours.recv()
    process.join()
    return name

def die(name):
    shared_memory.SharedMemory(name)
    os.kill(os.getpid(), signal.SIGKILL)

memory = shared_memory.SharedMemory(create=True, size=100)
memory.buf[:3] = b"abc"
for kind in KINDS:
    assert kind(peek, memory.name) == b"abc"
    name = kind(make)
    ndshare.shutdown()
    time.sleep(0.1)
    made = shared_memory.SharedMemory(name)
    assert bytes(made.buf[:3]) == b"new", kind
    made.close()
    made.unlink()
with ndshare.ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
    assert executor.submit(peek, memory.name).result() == b"abc"
    assert isinstance(executor.submit(die, memory.name).exception(), ndshare.WorkerDiedError)
    time.sleep(0.2)
    assert executor.submit(peek, memory.name).result() == b"abc"
    name = executor.submit(make_in_child).result()
ndshare.shutdown()
assert peek(name) == b"new"
shared_memory.SharedMemory(name).unlink()
memory.close()
memory.unlink()

numbers = shared_memory.ShareableList([1, 2, 3])
def change(numbers): numbers[1] += 40
with ndshare.ProcessPoolExecutor(1) as executor:
    executor.submit(change, numbers).result()
ndshare.shutdown()
assert list(numbers) == [1, 42, 3]
numbers.shm.close()
numbers.shm.unlink()

if __name__ == "__main__":  # a manager may import the script again
    with SharedMemoryManager() as manager:
        managed = manager.SharedMemory(32)
        managed.buf[:3] = b"man"
        with ndshare.ProcessPoolExecutor(1) as executor:
            assert executor.submit(peek, managed.name).result() == b"man"
        ndshare.shutdown()
        assert bytes(managed.buf[:3]) == b"man"
    del manager  # at the end of the program its finalizer may find no module any more
if sys.version_info >= (3, 13):
    def untracked(name):
        memory = shared_memory.SharedMemory(name, track=False)
        memory.close()
    memory = shared_memory.SharedMemory(create=True, size=10)
    with ndshare.ProcessPoolExecutor(1) as executor:
        executor.submit(untracked, memory.name).result()
    ndshare.shutdown()
    memory.close()
    memory.unlink()
if __name__ == "__main__":
    print("fine")
""",
        timeout=180,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_no_resource_tracker_is_started_that_nobody_needs(run_script: RunScript) -> None:
    """Neither by the caller nor by a worker."""
    done = run_script(
        """
import os, ndshare
from multiprocessing import resource_tracker
def tracked(): return resource_tracker._resource_tracker.__dict__["_fd"]
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(tracked).result() is None
assert resource_tracker._resource_tracker._fd is None
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_identity_is_that_of_a_process_of_the_caller(run_script: RunScript) -> None:
    """Name, identity and daemon as in the standard executor, the caller as parent, alive; in every kind."""
    done = run_script(
        _KINDS
        + """
import os
def who():
    me, parent = mp.current_process(), mp.parent_process()
    return me.name, me._identity, me.daemon, me.pid == os.getpid(), parent.name, parent.pid, parent.is_alive(), sys.argv
sys.argv += ["--with", "arguments"]
names = set()
for kind in KINDS:
    name, identity, daemon, own, parent, pid, alive, argv = kind(who)
    assert name == f"NdshareWorker-{identity[-1]}" and not daemon and own and alive and argv == sys.argv, (kind, name, argv)
    if kind is nested:
        assert len(identity) == 2 and parent.startswith("NdshareWorker-") and pid != os.getpid()
    else:
        assert len(identity) == 1 and (parent, pid) == ("MainProcess", os.getpid())
with ndshare.ProcessPoolExecutor(2, max_tasks_per_child=1) as executor:
    found = [executor.submit(who).result()[1] for _ in range(4)]
assert len(set(found)) == 4
print("fine")
""",
        timeout=180,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_identity_of_the_first_worker_is_one(run_script: RunScript) -> None:
    """As programs expect that take it for a number."""
    done = run_script(
        """
import multiprocessing as mp, ndshare
def who(): return mp.current_process().name, mp.current_process()._identity
with ndshare.ProcessPoolExecutor(1) as executor:
    print(*executor.submit(who).result())
"""
    )
    assert (done.stdout, done.stderr) == ("NdshareWorker-1 (1,)\n", "")


def _parent_is_watched() -> bool:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(0.01)
    return parent.is_alive() and parent.sentinel >= 0


def test_parent_can_be_watched() -> None:
    """Its sentinel becomes readable when it ends, as `multiprocessing.connection.wait` wants it."""
    with ndshare.ProcessPoolExecutor(1) as executor:
        assert executor.submit(_parent_is_watched).result()


def test_guard_for_the_main_process_does_not_run_in_workers(run_script: RunScript) -> None:
    """Code that is for the main process only asks for its name."""
    done = run_script(
        """
import multiprocessing as mp, ndshare
def guarded(): return mp.current_process().name == "MainProcess" or mp.parent_process() is None
with ndshare.ProcessPoolExecutor(1) as executor:
    print(executor.submit(guarded).result(), guarded())
"""
    )
    assert (done.stdout, done.stderr) == ("False True\n", "")


def _number_and_wait(barrier: Any, name: str) -> int | None:
    Path(name).touch()
    while len(list(Path(name).parent.iterdir())) < barrier:
        pass
    return ndshare.worker_id()


def test_worker_id_is_a_number_below_the_number_of_workers(tmp_path: Path) -> None:
    """Different in workers that run at the same time, the same in one that replaces another, None outside."""
    assert ndshare.worker_id() is None
    with ndshare.ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(_number_and_wait, 2, str(tmp_path / f"{n}")) for n in range(2)]
        assert sorted(future.result() for future in futures) == [0, 1]
    with ndshare.ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
        assert [executor.submit(ndshare.worker_id).result() for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        ndshare.SerialContext,
        lambda: ndshare.ThreadContext(2),
        lambda: ndshare.ProcessContext(2),
        lambda: ndshare.ProcessContext(2, start="fork"),
    ],
    ids=["serial", "threads", "processes", "forked"],
)
def test_worker_id_in_a_kernel_is_the_kernels(make: Callable[[], ndshare.MapContext]) -> None:
    """What it is called with."""
    context = make()
    out = context.alloc((64, 2), int)

    def kernel(worker_id: int, index: int, _value: int) -> None:
        out[index] = worker_id, ndshare.worker_id()

    context.map(kernel, range(64))
    assert (out[:, 0] == out[:, 1]).all()
    assert ndshare.worker_id() is None


def test_state_that_processes_inherit_is_the_callers(run_script: RunScript) -> None:
    """Arguments, options, limits and thresholds of the interpreter, umask, nice, processors, locale."""
    done = subprocess.run(
        [
            sys.executable, "-X", "faulthandler", "-X", "dev", "-X", "mine=7", "-W", "ignore::ResourceWarning", "-s",
            "-c",
            """
import faulthandler, gc, locale, os, sys, ndshare
def state():
    os.umask(mask := os.umask(0))
    names = [name for name in dir(sys.flags) if isinstance(getattr(sys.flags, name), int)]
    flags = {name: getattr(sys.flags, name) for name in names}
    return (
        flags, sys._xoptions, sys.warnoptions, sys.argv, sys.dont_write_bytecode, sys.pycache_prefix,
        sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(), gc.get_threshold(),
        faulthandler.is_enabled(), mask, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0),
        locale.setlocale(locale.LC_ALL),
    )
sys.argv += ["more"]
flags = state()[0]
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(state).result() == state(), (executor.submit(state).result(), state())
    sys.setrecursionlimit(2345)  # while it is open: seen by tasks a moment later
    import time; time.sleep(0.05)
    assert executor.submit(state).result() == state()
sys.dont_write_bytecode = not sys.dont_write_bytecode
sys.setrecursionlimit(4321)
gc.set_threshold(500, 5, 5)
os.umask(0o27)
os.nice(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
locale.setlocale(locale.LC_ALL, "C.UTF-8")
faulthandler.disable()
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(state).result() == state(), (executor.submit(state).result(), state())
print("fine")
""",
            "first",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("fine\n", "")


@pytest.mark.skipif(importlib.util.find_spec("coverage") is None, reason="coverage is not installed")
def test_coverage_measures_lines_of_workers(tmp_path: Path) -> None:
    """With its option for `multiprocessing`, as in processes that this starts."""
    (tmp_path / "tasks.py").write_text(
        "def task(value):\n    if value:\n        return 'yes'\n    return 'no'\n"
    )
    (tmp_path / "program.py").write_text(
        "import ndshare, tasks\n"
        "if __name__ == '__main__':\n"
        "    with ndshare.ProcessPoolExecutor(1) as executor:\n"
        "        assert executor.submit(tasks.task, 1).result() == 'yes'\n"
    )
    (tmp_path / ".coveragerc").write_text(
        "[run]\nconcurrency = multiprocessing\nparallel = true\nsource = .\n"
    )
    coverage = [sys.executable, "-m", "coverage"]
    for command in (["run", "program.py"], ["combine"], ["report", "-m"]):
        done = subprocess.run(
            [*coverage, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
        )
    line = next(line for line in done.stdout.splitlines() if line.startswith("tasks.py"))
    assert line.split()[-1] == "4", done.stdout


def test_threads_of_tasks_keep_no_worker_from_ending() -> None:
    """One that ends is not waited for by its threads."""
    with ndshare.ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
        pid = executor.submit(_leave_a_thread).result()
        assert executor.submit(os.getpid).result() != pid


def _leave_a_thread() -> int:
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def test_ends_of_pipes_and_sockets_travel_in_every_kind_of_worker(run_script: RunScript) -> None:
    """As arguments and globals, and back as results; the receiver's descriptor is its own."""
    done = run_script(
        _KINDS
        + """
import socket
here, there = mp.Pipe()
server = socket.create_server(("127.0.0.1", 0))
def talk(connection, text):
    connection.send((text, mp.current_process().name))
    there.send("by its global")
    made, other = mp.Pipe(duplex=False)
    other.send(text)
    return made
for kind in KINDS:
    if kind in (by_map, by_forked_map):  # their results go through a queue
        continue
    made = kind(talk, there, kind.__name__)
    assert here.recv()[0] == kind.__name__ and here.recv() == "by its global"
    assert made.recv() == kind.__name__
out = ndshare.Queue()
def kernel(worker_id, index, value):
    there.send(value)
ndshare.ProcessContext(2).map(kernel, range(3))
assert sorted(here.recv() for _ in range(3)) == [0, 1, 2]
def serve(server, timeout):
    accepted, _ = server.accept()
    accepted.sendall(b"served")
    accepted.settimeout(timeout)
    return accepted
with ndshare.ProcessPoolExecutor(1) as executor:
    future = executor.submit(serve, server, 7.0)
    with socket.create_connection(server.getsockname()) as client:
        assert client.recv(6) == b"served"
        with future.result(60) as accepted:
            assert accepted.gettimeout() == 7.0 and accepted.getpeername() == client.getsockname()
            accepted.sendall(b"more")
            assert client.recv(4) == b"more"
    there.close()
    try: executor.submit(talk, there, "closed").result(60)
    except OSError as error: assert "closed" in str(error), error
    else: raise AssertionError
    other, made = mp.Pipe(duplex=False)
    executor.submit(made.send, 1).result(60)
    made.close()
    assert other.recv() == 1
    try: other.recv()
    except EOFError: pass  # nobody has kept the other end
    else: raise AssertionError
    other.close()
here.close(); server.close()
print("fine")
""",
        timeout=180,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_what_the_picklers_of_multiprocessing_know_is_known_here(run_script: RunScript) -> None:
    """Reducers that a program registers with them; what they refuse is refused, and inherited by initializers."""
    done = run_script(
        """
import ctypes, threading
import ndshare
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import RawArray
class Handle:
    def __init__(self, number):
        self.number = number
        self.lock = threading.Lock()
def number_of(handle): return handle.number
row = RawArray("d", 4)
def inherit(array):
    global kept
    kept = array
def write():
    kept[1] = 7
with ndshare.ProcessPoolExecutor(1) as executor:
    assert isinstance(executor.submit(number_of, Handle(3)).exception(), TypeError)
    ForkingPickler.register(Handle, lambda handle: (Handle, (handle.number,)))
    assert executor.submit(number_of, Handle(3)).result() == 3
    assert "through inheritance" in str(executor.submit(len, row).exception())
    assert executor.submit(sum, (ctypes.c_double * 4)(1, 2)).result() == 3
with ndshare.ProcessPoolExecutor(1, initializer=inherit, initargs=(row,)) as executor:
    executor.submit(write).result()
assert row[1] == 7
def write_by_name():
    row[2] = kept[1] + 1
with ndshare.ProcessPoolExecutor(1, initializer=inherit, initargs=(row,)) as executor:
    executor.submit(write_by_name).result()
def kernel(worker_id, index, value):
    row[3] = row[2] + 1
ndshare.ProcessContext(1).map(kernel, range(1))
assert list(row) == [0, 7, 8, 9]
print("fine")
"""
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
