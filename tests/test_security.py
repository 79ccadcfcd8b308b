"""What docs/security.md says: who may attach, what is executed, what others see. One test a sentence, as another user too."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndshare
from ndshare._node.link import Link, machine_name
from tests import jobs
from tests.kernel import descendants

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
_OTHER = 54321


def _as_another_user(source: str, *words: str) -> str:
    """Run a program that becomes somebody else first; returns what it prints."""
    source = f"import os, socket; os.setgroups([]); os.setgid({_OTHER}); os.setuid({_OTHER})\n{source}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", source, *words],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_OPEN = """
import sys
try:
    open(sys.argv[1], "rb").close()
except PermissionError:
    print("refused")
else:
    print("opened")
"""


def _memory_descriptors() -> list[str]:
    folder = f"/proc/{os.getpid()}/fd"
    return [
        f"{folder}/{entry}"
        for entry in os.listdir(folder)
        if os.path.lexists(f"{folder}/{entry}") and "memfd:" in os.readlink(f"{folder}/{entry}")
    ]


@needs_root
def test_memory_cannot_be_opened_by_another_user() -> None:
    """Anonymous memory has no name, and /proc lets nobody else in."""
    array = ndshare.ones(1 << 20)
    paths = _memory_descriptors()
    assert paths
    assert array.sum() == 1 << 20
    assert {_as_another_user(_OPEN, path) for path in paths} == {"refused"}


@needs_root
def test_shared_dict_cannot_be_opened_by_another_user() -> None:
    """Mode 0600, and a name with the number of its user: another one's name is another dict's."""
    with ndshare.SharedDict({"a": np.zeros(3)}, "security-test"):
        files = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.endswith("security-test")]
        assert len(files) == 1
        assert f"-{os.geteuid()}-" in files[0]
        assert stat.S_IMODE(os.stat(files[0]).st_mode) == 0o600
        assert _as_another_user(_OPEN, files[0]) == "refused"


@needs_root
def test_snapshot_cannot_be_opened_by_another_user(tmp_path: Path) -> None:
    """A file that was asked for by `path` is the user's own, too."""
    tmp_path.chmod(0o755)
    path = tmp_path / "snapshot"
    with ndshare.SharedDict({"a": np.zeros(3)}, "security-snapshot", path=path) as d:
        d.sync()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _as_another_user(_OPEN, str(path)) == "refused"


def _addresses() -> set[str]:
    """Addresses of Unix sockets of this machine that have one."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {line.split()[7] for line in lines if len(line.split()) > 7}


def test_nothing_listens() -> None:
    """Executor, map, queue and workspace have no address that anybody could connect to."""
    before = _addresses()
    queue = ndshare.Queue()
    out = ndshare.alloc(4)
    with ndshare.ProcessPoolExecutor(1) as executor, ndshare.Workspace({"a": np.ones(3)}, num_workers=1):
        assert executor.submit(jobs.identity, 1).result() == 1
        queue.put(1)
        ndshare.map(lambda _w, i, v: out.__setitem__(i, v), range(4))
        assert {name for name in _addresses() - before if "ndshare" in name} == set()
        inet = [len(Path(f"/proc/self/net/{kind}").read_text().splitlines()) for kind in ("tcp", "tcp6")]
        assert queue.get() == 1
    assert inet == [len(Path(f"/proc/self/net/{kind}").read_text().splitlines()) for kind in ("tcp", "tcp6")]
    queue.close()


_CONNECT = """
import socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.settimeout(20)
link.connect("\\0" + sys.argv[1])
try:
    link.send(bytes(41))
    print(len(link.recv(100)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""


@needs_root
@pytest.mark.leaves("thread", "open descriptor")
def test_node_answers_its_own_user_only() -> None:
    """The socket by which engine processes find each other hangs up on anybody else."""
    link = Link(list)
    assert link.find(bytes(16)) is None  # it has become the holder, or asks the one there is
    assert _as_another_user(_CONNECT, machine_name()[1:]) == "0"
    link._drop()


def test_shared_dict_runs_no_code(run_script: Any) -> None:
    """To attach, read, list and prune looks up no class and runs no pickle, whatever the file says."""
    run_script(
        """
        import os, subprocess, sys
        import numpy as np
        import ndshare

        with ndshare.SharedDict({"a": np.arange(5.0), ("k", 1): np.zeros(2)}, "no-code") as d:
            d["a"]

            def refuse(event, _):
                if event.startswith(("pickle.", "marshal.loads", "exec", "compile")):
                    os.write(2, event.encode())
                    os._exit(9)

            import ndshare._dict.shared_dict  # noqa: everything is imported before
            with ndshare.SharedDict.attach("no-code") as warm:
                warm["a"], warm.view("a"), list(warm)
            ndshare.prune()
            sys.addaudithook(refuse)
            with ndshare.SharedDict.attach("no-code") as e:
                assert (e["a"] == np.arange(5.0)).all()
                assert list(e) == list(d)
                e.write({"a": 1.0})
            ndshare.prune()
        """.replace("\n        ", "\n")
    )


def test_command_lines_hold_no_data() -> None:
    """What `ps` shows of workers: the interpreter, a fixed program, and the number of a descriptor."""
    secret = "correct-horse-battery"
    environment = dict(os.environ)
    with ndshare.ProcessPoolExecutor(2, initializer=jobs.identity, initargs=(secret,)) as executor:
        assert executor.submit(jobs.identity, secret).result() == secret
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid())]
    assert len(lines) >= 2
    for line in lines:
        assert secret.encode() not in line
        assert b"identity" not in line
        assert re.fullmatch(rb"\d+", line.rstrip(b"\0").split(b"\0")[-1]) or b"resource_tracker" in line
    assert dict(os.environ) == environment


def test_memory_cannot_be_cut() -> None:
    """Whoever has a descriptor of it cannot make it shorter: no access ends in SIGBUS."""
    array = ndshare.ones(1 << 18)
    for path in _memory_descriptors():
        fd = os.open(path, os.O_RDWR)
        try:
            if os.fstat(fd).st_size >= array.nbytes:
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, 0)
        finally:
            os.close(fd)
    assert array.sum() == 1 << 18


def test_read_only_memory_cannot_be_written_by_anybody() -> None:
    """Not by making the pages writable again, nor by mapping them anew."""
    array = ndshare.share(np.ones(1 << 18), mode="r")
    libc = ctypes.CDLL(None, use_errno=True)
    page = array.ctypes.data // 4096 * 4096
    assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(4096), 3) == -1
    assert array.sum() == 1 << 18


def test_foreign_holder_is_not_asked(run_script: Any) -> None:
    """A process of another user that has taken the name of the node is not believed."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    out = run_script(
        """
import os, socket, time
from ndshare._node import link
name = link.machine_name().replace("-0-", "-54321-", 1)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(name)
listener.listen()  # by root: what the other user connects to is not his
pid = os.fork()
if pid == 0:
    listener.close()
    os.setgroups([]); os.setgid(54321); os.setuid(54321)
    assert link.machine_name() == name
    found = link.Link(lambda: []).find(bytes(16))
    os._exit(0 if found is None else 1)
assert os.waitpid(pid, 0)[1] == 0
listener.settimeout(0.5)
try:
    peer, _ = listener.accept()
except TimeoutError:
    pass
else:
    peer.settimeout(5)
    assert peer.recv(100) == b""  # it hung up without a word
"""
    )
    assert out.stderr == ""
