"""The caller's side of a zygote: start it, ask it for workers, hear what became of them."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import signal
import socket
import subprocess
import sys
from typing import Any, NamedTuple

from ndshare._processes import frames
from ndshare._system import _wire
from ndshare.errors import WorkerError

# Runs in a fresh interpreter. The caller's sys.path comes first, by the socket, so that ndshare itself is
# found wherever the caller found it.
_BOOT = (
    "import sys,socket,marshal;"
    "s=socket.socket(fileno=int(sys.argv[1]));"
    "c=marshal.loads(s.recv(1<<20));"
    "sys.path[:]=c['path'];"
    "from ndshare._processes.zygote import main;"
    "main(s,c['parent'],c['preload'])"
)

#: Variables that libraries read once, when they are loaded: too late for a worker whose zygote has
#: imported NumPy already.
_IMPORT_TIME_PREFIXES = (
    "BLIS_", "GOMP_", "GOTO_", "KMP_", "LD_", "MKL_", "NDSHARE_", "NPY_", "NUMEXPR_", "OMP_", "OPENBLAS_",
    "PYTHON", "VECLIB_",
)  # fmt: skip


#: What a zygote needs at most to end: it gives its workers a grace of 2 s.
_END_S = 5.0


class ZygoteSpec(NamedTuple):
    """What distinguishes one zygote from another.

    Parameters
    ----------
    variables : tuple of (str, str)
        Environment variables that must be set before NumPy is imported, sorted.
    preload : tuple of str
        Modules imported once, before the workers are forked.
    """

    variables: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()

    @classmethod
    def of(cls, overlay: dict[str, str], preload: tuple[str, ...]) -> ZygoteSpec:
        """The zygote that workers with this environment need."""
        early = {k: v for k, v in overlay.items() if k.startswith(_IMPORT_TIME_PREFIXES)}
        return cls(tuple(sorted(early.items())), preload)


class Zygote:
    """A zygote process, started at once; everything sent before it is up waits in its socket."""

    def __init__(self, spec: ZygoteSpec) -> None:
        if not sys.executable:
            raise WorkerError(
                "sys.executable is empty: ndshare needs the path of a Python interpreter to start workers"
            )
        self.spec = spec
        self.ready = False
        self.buffer = bytearray(1 << 16)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -W is left out: a warning turned into an error must not stop the interpreter from starting; the
            # caller's filters reach the workers with their tasks.
            flags = [f for f in subprocess._args_from_interpreter_flags() if not f.startswith("-W")]  # type: ignore[attr-defined]
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "BLIS_NUM_THREADS": "1",
            }
            environment.pop("PYTHONWARNINGS", None)
            # Ctrl-C in a terminal goes to the whole process group: the new interpreter starts with it
            # blocked, until it can ignore it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                self.process = subprocess.Popen(
                    [sys.executable, *flags, "-P", "-c", _BOOT, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    env=environment | dict(spec.variables),
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                self.control.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            path = [os.path.abspath(p) for p in sys.path if isinstance(p, str)]
            boot = {"path": path, "parent": os.getpid(), "preload": spec.preload}
            self.control.send(marshal.dumps(boot))

    def fileno(self) -> int:
        """Descriptor of the control socket."""
        return self.control.fileno()

    def spawn(self, worker_id: int, options: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Fork a worker that serves ``fds``; they are the caller's to close afterwards.

        Raises
        ------
        BlockingIOError
            If too many descriptors of this user are in flight; they are on their way somewhere.
        ConnectionError
            If the zygote is gone.
        """
        if not self._tell((frames.SPAWN, worker_id, options), fds):
            raise BlockingIOError(errno.ETOOMANYREFS, "too many descriptors in flight to start a worker")

    def kill(self, worker_id: int, number: int) -> None:
        """Send a signal to a worker, if it is still there."""
        with contextlib.suppress(OSError):
            self._tell((frames.KILL, worker_id, int(number)), ())

    def _tell(self, message: tuple[Any, ...], fds: tuple[int, ...]) -> bool:
        return _wire.send_message(self.control.fileno(), [marshal.dumps(message)], fds, 0)

    def read(self) -> list[tuple[Any, ...]]:
        """What it has said since the last call; the last entry is ``()`` when it is gone."""
        said: list[tuple[Any, ...]] = []
        while True:
            try:
                received = _wire.recv_message(self.control.fileno(), self.buffer, socket.MSG_DONTWAIT)
            except OSError:
                received = (0, ())
            if received is None:
                return said
            if received[0] == 0:
                return [*said, ()]
            message = marshal.loads(self.buffer[: received[0]])
            if message[0] == frames.READY:
                self.ready = True
            else:
                said.append(message)

    def close(self) -> None:
        """End it and its workers; wait for it."""
        self.control.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:  # stopped, or deaf: its workers die with it
            self.process.kill()
            self.process.wait()

    def forget(self) -> None:
        """Let go of it in a forked child, which must not wait for it."""
        self.control.close()
        self.process.returncode = 0
