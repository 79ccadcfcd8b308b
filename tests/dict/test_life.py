"""How a SharedDict begins and ends: names, races, prune, other users, full memory."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

import ndshare
from ndshare import SharedDict
from ndshare._dict import files
from ndshare.cli import main
from tests.dict.dict_tasks import ended, forked, running, until


def _file(name: str) -> str:
    return files.file_of(name)


def _dead(name: str, **options) -> None:
    """Leave a dict all of whose users were killed."""

    def make():
        d = SharedDict({"a": np.arange(3)}, name, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        d.close()

    assert ended(forked(make)) == -signal.SIGKILL
    assert os.path.exists(_file(name))


@pytest.fixture
def name():
    """A name that no other test has."""
    return f"test-{os.getpid()}-{random.randrange(1 << 40)}"


def test_life_last_closer_removes(name):
    """The file is there as long as anybody has it, private to its user."""
    first = SharedDict({"a": 1}, name)
    status = os.stat(_file(name))
    assert status.st_mode & 0o777 == 0o600
    second = SharedDict.attach(name)
    first.close()
    assert SharedDict.attach(name)["a"] == 1  # dropped at once
    second.close()
    assert not os.path.exists(_file(name))
    with pytest.raises(FileNotFoundError, match=rf"no SharedDict named '{name}'.*make it with"):
        SharedDict.attach(name)


def test_life_dropped_and_at_exit(name, run_script):
    """Letting go of the object, and the end of the interpreter, close too."""
    d = SharedDict({"a": 1}, name)
    del d
    assert not os.path.exists(_file(name))
    run_script(f"import ndshare; d = ndshare.SharedDict({{'a': 1}}, {name!r})")
    assert not os.path.exists(_file(name))


def test_life_name_taken_is_refused_and_dead_is_replaced(name):
    """A name in use is refused; what killed users have left is replaced."""
    with SharedDict({"a": 1}, name), pytest.raises(FileExistsError, match=r"exists already.*open"):
        SharedDict({"a": 2}, name)
    _dead(name)
    with SharedDict({"b": 2}, name) as d:
        assert list(d) == ["b"]
    _dead(name)
    with SharedDict.attach(name) as d:  # its values are whole
        assert d["a"].tolist() == [0, 1, 2]


def test_life_persistent_stays_until_unlinked(name, capsys):
    """A persistent dict outlives its users and prune(), until unlink() or prune(persistent=True)."""
    SharedDict({"a": 1}, name, persistent=True).close()
    assert name not in ndshare.prune()
    with pytest.raises(FileExistsError):
        SharedDict({"a": 1}, name)
    with SharedDict.open(name, {"a": 5}) as d:
        assert d["a"] == 1
        d.unlink()
    assert not os.path.exists(_file(name))
    SharedDict({"a": 1}, name, persistent=True).close()
    assert main(["ls"]) == 0
    assert "persistent" in capsys.readouterr().out
    assert main(["prune", "--persistent"]) == 0
    assert f"removed {name}" in capsys.readouterr().out
    assert not os.path.exists(_file(name))


def test_life_what_lives_on_in_memory_holds_no_lock(name):
    """Objects, views and arrays made in slots outlive their dict without keeping others from attaching."""
    kept = []
    d = SharedDict({"a": np.zeros(40_000)}, name, persistent=True)
    kept += [d.view("a"), d.update({"a": 1.0}, lambda new, old: (kept.append(old + new), kept[-1])[1])["a"]]
    d.close()
    with open(_file(name), "rb") as file:
        assert files.users_of(file.fileno()) == ()

    def attach():
        with SharedDict.attach(name) as e:
            assert (e["a"] == 1).all()
            e.unlink()

    assert ended(forked(attach)) == 0  # neither here nor elsewhere does it wait
    assert not os.path.exists(_file(name))
    assert (kept[-1] == 1).all()


def test_life_no_mapping_of_a_fork_holds_a_lock(name):
    """Children of killed users: none keeps a lock of a key; the last that closes removes the file."""
    ready, tell = os.pipe()
    go_on, go = os.pipe()

    def grandchild(d):
        os.write(tell, b"%d" % os.getpid())
        os.read(go_on, 1)
        assert d["a"][0] == 2
        d.close()
        os.write(tell, b"closed")

    def child():
        d = SharedDict({"a": np.zeros(40_000)}, name)
        d.update({"a": 1.0}, lambda new, old: old + new)  # there are second mappings, too
        forked(lambda: grandchild(d))
        with d.locked("a") as a:
            a += 5
            os.kill(os.getpid(), signal.SIGKILL)

    assert ended(forked(child)) == -signal.SIGKILL
    pid = int(os.read(ready, 20))
    try:
        with SharedDict.attach(name) as d:
            assert files.users_of(d._store.fd) == tuple(sorted((os.getpid(), pid)))
            d.update({"a": 1.0}, lambda new, old: old + new, timeout=30)
            assert d["a"][0] == 2
            assert name not in ndshare.prune()
        os.write(go, b"x")
        assert os.read(ready, 20) == b"closed"
        until(lambda: not os.path.exists(_file(name)))
    finally:
        os.kill(pid, signal.SIGKILL)
        for fd in (ready, tell, go_on, go):
            os.close(fd)


def test_life_prune_removes_exactly_the_dead(name, capsys):
    """Of dead and living dicts and of other files, the dead are removed and nothing else."""
    _dead(name + "-dead1")
    _dead(name + "-dead2")
    foreign = _file(name + "-foreign")
    with open(foreign, "wb") as file:
        file.write(b"something else" * 100)
    os.chmod(foreign, 0o600)
    try:
        with SharedDict({"a": np.zeros(3)}, name + "-live") as d:
            with running(lambda: (SharedDict.attach(d.name), time.sleep(60))) as (pid,):
                until(lambda: len(files.users_of(d._store.fd)) == 2)
                infos = {info.name: info for info in files.infos()}
                assert infos[d.name].users == tuple(sorted((os.getpid(), pid)))
                assert infos[d.name].keys == 1
                assert infos[name + "-dead1"].users == ()
                assert 0 <= infos[d.name].age < 3600
                dead = [name + "-dead1", name + "-dead2"]
                assert main(["ls"]) == 0
                line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(d.name))
                assert str(pid) in line
                assert ndshare.prune(dry_run=True) == dead
                assert main(["prune", "--dry-run"]) == 0
                assert f"would remove {dead[0]}" in capsys.readouterr().out
                assert ndshare.prune() == dead
                assert ndshare.prune() == []
                assert os.path.exists(foreign)
            assert d["a"].shape == (3,)
    finally:
        os.unlink(foreign)
    assert main(["prune"]) == 0
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "nothing to remove\nno SharedDict of this user\n"


def test_life_prune_never_removes_a_live_one(name):
    """prune() all the time, while dicts come and go: nobody's dict disappears."""

    def prune_all():
        while True:
            ndshare.prune()

    with running(prune_all):
        for _ in range(300):
            with SharedDict({"a": 1}, name), SharedDict.attach(name) as d:
                assert d["a"] == 1
                assert os.path.exists(_file(name))


@pytest.mark.chaos
def test_life_attach_against_create_and_close(name, chaos_rounds):
    """Attaching while dicts of the name come and go: never a removed or half-made one."""

    def come_and_go():
        i = 0
        while True:
            i += 1
            with contextlib.suppress(FileExistsError), SharedDict({"a": np.full(100, i), "b": i}, name) as d:
                d["b"] = d["a"][0]

    found = missed = 0
    with running(come_and_go):
        while found < 2500 * chaos_rounds:
            try:
                d = SharedDict.attach(name)
            except FileNotFoundError:
                missed += 1
                continue
            found += 1
            a = d["a"]
            assert (a == a[0]).all()
            assert d["b"] == a[0]
            status = os.stat(_file(name))  # we have it, so it is there
            assert (status.st_dev, status.st_ino) == d._file
            d.close()
    print(f"attached {found} times, found nothing {missed} times")
    assert name not in [info.name for info in files.infos() if info.users]
    ndshare.prune()


def test_life_open_by_many_at_once_is_one(name):
    """8 processes open at once, again and again: one dict, and no update of it is lost."""
    for round_number in range(10):
        barrier_r, barrier_w = os.pipe()

        def come(barrier_r=barrier_r, barrier_w=barrier_w):
            os.close(barrier_w)
            os.read(barrier_r, 1)
            with SharedDict.open(name, {"a": np.zeros(3), "ready": 0}) as d:
                d.update({"ready": 1}, lambda new, old: old + new)
                until(lambda: d["ready"] >= 8)
                d.update({"a": 1}, lambda new, old: old + new)
                d.update({"ready": 1}, lambda new, old: old + new)
                until(lambda: d["ready"] >= 16)
                assert (d["a"] == 8).all()

        pids = [forked(come) for _ in range(8)]
        os.close(barrier_w)
        assert [ended(pid) for pid in pids] == [0] * 8, round_number
        os.close(barrier_r)
        assert not os.path.exists(_file(name))


def test_life_open_with_other_arrays_is_refused(name):
    """open() of a dict with other keys, dtypes or shapes says which key differs."""
    with SharedDict({"a": np.zeros(3), "b": 1}, name):
        for arrays, text in (
            ({"a": np.zeros(4), "b": 1}, r"key 'a' is float64 \(3,\), not float64 \(4,\)"),
            ({"a": np.zeros(3, "f4"), "b": 1}, "key 'a' is float64"),
            ({"a": np.zeros(3)}, "key 'b' is not asked for"),
            ({"a": np.zeros(3), "b": 1, "c": 1}, "key 'c' is not there"),
        ):
            with pytest.raises(ValueError, match=text):
                SharedDict.open(name, arrays)
        with SharedDict.open(name, {"b": 5, "a": np.ones(3)}) as d:
            assert list(d) == ["a", "b"]
            assert d["b"] == 1


def test_life_what_is_no_file_of_ours_is_refused(name, tmp_path):
    """A symbolic link, a directory, a pipe, an open mode: refused, by attach and by the constructor."""
    file = _file(name)
    with SharedDict({"a": 1}) as real:
        os.symlink(_file(real.name), file)
        try:
            with pytest.raises(ndshare.LayoutError, match="type is a symbolic link"):
                SharedDict.attach(name)
            with pytest.raises((FileExistsError, ndshare.LayoutError)):
                SharedDict({"a": 1}, name)
            ndshare.prune(persistent=True)
            assert os.path.islink(file)
            assert os.path.exists(_file(real.name))
        finally:
            os.unlink(file)
        for make, remove, text in (
            (os.mkdir, os.rmdir, "type is"),
            (lambda path: os.mkfifo(path, 0o600), os.unlink, "type is"),
            (lambda path: os.close(os.open(path, os.O_CREAT, 0o644)), os.unlink, "mode is -rw-r--r--"),
            (lambda path: os.close(os.open(path, os.O_CREAT, 0o600)), os.unlink, "length is 0 bytes"),
        ):
            make(file)
            try:
                with pytest.raises(ndshare.LayoutError, match=text):
                    SharedDict.attach(name)
                with pytest.raises((FileExistsError, ndshare.LayoutError)):
                    SharedDict({"a": 1}, name)
            finally:
                remove(file)


_AS_NOBODY = """
import os, sys
import numpy as np
import ndshare
from ndshare import SharedDict
from ndshare._dict import files
d = SharedDict({"a": np.arange(3)}, sys.argv[1])
SharedDict({"a": 1}, sys.argv[1] + "-p", persistent=True).close()
pid = os.fork()
if pid == 0:
    mine, prefix = files.file_of(sys.argv[1]), files.prefix()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    try:
        SharedDict.attach(sys.argv[1])
    except FileNotFoundError as error:
        print("not found", flush=True)
    files.prefix = lambda: prefix  # the other's very file
    for attempt in (lambda: SharedDict.attach(sys.argv[1]), lambda: open(mine, "rb")):
        try:
            attempt()
        except PermissionError:
            print("no permission", flush=True)
    print(ndshare.prune(persistent=True), files.infos(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
assert d["a"].tolist() == [0, 1, 2]
d.close()
SharedDict.open(sys.argv[1] + "-p", {"a": 1}).unlink()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_life_other_user_can_neither_attach_nor_prune(name, run_script):
    """A second user finds nothing, has no permission to the file itself, and removes nothing."""
    done = run_script(_AS_NOBODY, name)
    assert done.stdout == "not found\nno permission\nno permission\n[] []\n"
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_life_file_of_another_user_is_refused(name):
    """A file that another user has put under the name is refused."""
    with SharedDict({"a": 1}) as d:
        with open(_file(d.name), "rb") as file:
            content = file.read()
    with open(_file(name), "wb") as file:
        file.write(content)
    os.chmod(_file(name), 0o600)
    os.chown(_file(name), 65534, 65534)
    try:
        with pytest.raises(ndshare.LayoutError, match="owner is user 65534"):
            SharedDict.attach(name)
        with pytest.raises(FileExistsError):
            SharedDict({"a": 1}, name)
        assert ndshare.prune(persistent=True) == []
    finally:
        os.unlink(_file(name))


def test_life_too_large_is_refused_with_the_numbers(name):
    """More than there is memory for: MemoryError with what was asked for and what is free, nothing left."""
    free = os.statvfs("/dev/shm").f_bavail * 4096
    with pytest.raises(MemoryError, match=r"asked for.*are free; the limit that binds"):
        SharedDict({"a": np.zeros(int(0.6 * free), "u1"), "b": 1}, name)
    assert not os.path.exists(_file(name))


_FULL = """
import ctypes, os, sys
import numpy as np, ndshare
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None) \\
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
    print("cannot mount"); sys.exit()
try:
    ndshare.SharedDict.attach(sys.argv[1])
except FileNotFoundError as error:
    print("elsewhere" if "may have its own" in str(error) else error)
try:
    ndshare.SharedDict({"a": np.zeros(100_000)})
except MemoryError as error:
    print(error)
print(os.listdir("/dev/shm"))
d = ndshare.SharedDict({"a": np.zeros(50_000)})
d["a"] = 3
print(d["a"].sum())
"""


def test_life_full_tmpfs_and_other_mount(run_script):
    """In a small /dev/shm of its own: a clear error for what does not fit or is elsewhere, nothing left."""
    with SharedDict({"a": 1}) as d:
        done = run_script(_FULL, d.name)
    if "cannot mount" in done.stdout:
        pytest.skip("needs the right to mount a tmpfs")
    lines = done.stdout.splitlines()
    assert lines[0] == "elsewhere"
    assert re.search(r"\(160\d{4} bytes\)", lines[1])
    assert "size of /dev/shm" in lines[1]
    assert lines[2:] == ["[]", "150000.0"]


def test_life_file_size_limit_is_named(run_script):
    """RLIMIT_FSIZE in the way: MemoryError that names it."""
    done = run_script("""
import os, resource, signal
import numpy as np, ndshare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    ndshare.SharedDict({"a": np.zeros(100_000)})
except MemoryError as error:
    print("ulimit -f" in str(error))
with ndshare.SharedDict({"a": np.zeros(1000)}) as d:
    print(d["a"].sum())
""")
    assert done.stdout == "True\n0.0\n"


def test_life_command_line(name):
    """``ndshare ls`` and ``ndshare prune`` from a shell."""
    _dead(name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for words, text in (
        (["ls"], name),
        (["prune", "--dry-run"], f"would remove {name}"),
        (["prune"], f"removed {name}"),
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "ndshare", *words],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert text in done.stdout
    assert not os.path.exists(_file(name))


def test_life_reused_pid_means_nothing(name):
    """A holder's pid that now belongs to somebody else takes no lock and keeps no dict alive."""
    _dead(name)
    with SharedDict.attach(name) as d:
        at = d._layout.cells + 112  # `holder` of the first cell
        with open(_file(name), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), struct.pack("<I", os.getppid()), at)
        d.update({"a": 1}, lambda new, old: old + new, timeout=0)
        with open(_file(name), "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4, at) == bytes(4)
        with d.locked("a"), open(_file(name), "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 4, at) == struct.pack("<I", os.getpid())
