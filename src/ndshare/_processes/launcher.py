"""The caller's side of a zygote: start it, ask it for workers, hear what became of them.

A zygote is a fresh interpreter, of the kind that this process is. A frozen program is started once more, by
the protocol of `multiprocessing`, if it calls `freeze_support`. Where no interpreter can be found (a program
that embeds Python has its own path in ``sys.executable``), this process is forked if that is safe.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import marshal
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from multiprocessing import spawn, util
from typing import Any, NamedTuple

from ndshare._processes import frames, streams, zygote
from ndshare._processes.surroundings import absolute, working_directory
from ndshare._system import THREAD_NAME, _wire, fork_hazards
from ndshare.errors import WorkerError, code_or_signal

# Runs in a fresh interpreter. The caller's sys.path comes first, by the socket, so that ndshare itself is
# found wherever the caller found it; the current directory must not be looked at before that.
# What is imported stays: to look for garbage in it meanwhile would take a tenth of the time.
_BOOT = (
    "import gc,sys;"
    "gc.disable();"
    "sys.path[:1]==['']and sys.path.pop(0);"
    "import socket,marshal;"
    "s=socket.socket(fileno=int(sys.argv[1]));"
    "c=marshal.loads(s.recv(1<<20));"
    "sys.path[:]=c['path'];"
    "from ndshare._processes import worker,zygote;"
    "gc.freeze();gc.enable();"
    "zygote.main(s,c['parent'],c['preload'])"
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
    inherited : int
        The number of what is inherited, if it is forked from this program; see `inheritance`.
    """

    variables: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()
    inherited: int = 0

    @classmethod
    def of(cls, overlay: dict[str, str], preload: tuple[str, ...], inherited: int) -> ZygoteSpec:
        """The zygote that workers with this environment need; a fork of this program has read it already."""
        if inherited:
            return cls((), preload, inherited)
        early = {k: v for k, v in overlay.items() if k.startswith(_IMPORT_TIME_PREFIXES)}
        return cls(tuple(sorted(early.items())), preload)


class Zygote:
    """A zygote process, started at once; everything sent before it is up waits in its socket."""

    def __init__(self, spec: ZygoteSpec) -> None:
        self.spec = spec
        self.ready = False
        self.buffer = bytearray(1 << 16)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                # Where the standard streams are closed, the number may be that of one of them.
                fd = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
            with socket.socket(fileno=fd) as theirs:
                self.process = self._start(theirs)
        except BaseException:
            self.control.close()
            raise
        boot = {
            "path": absolute(sys.path, working_directory()),
            "parent": os.getpid(),
            "preload": spec.preload,
        }
        try:
            self.control.send(marshal.dumps(boot))
        except ConnectionError as error:
            self.close()
            raise WorkerError(self.failure) from error

    @property
    def threads(self) -> int:
        """What the BLAS and OpenMP libraries use in its workers; 0 if that is not known."""
        return 0 if isinstance(self.process, _Forked) else 1

    def _start(self, theirs: socket.socket) -> Any:
        """Start it; what it is to be told waits in its socket."""
        if self.spec.inherited:
            if threading.current_thread().name == THREAD_NAME:  # what the others are just doing is not known
                raise WorkerError(
                    "the process that the workers of this executor were forked from has ended; the next "
                    "submit forks another one"
                )
            return _Forked(theirs, self.control)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "BLIS_NUM_THREADS": "1",
        }
        environment.pop("PYTHONWARNINGS", None)
        environment |= dict(self.spec.variables)
        fd = theirs.fileno()
        if (program := _interpreter()) is not None:
            return _launched([program, *_flags(), "-c", _BOOT, str(fd)], environment, (fd,))
        if is_frozen() and _is_supported():
            reader, writer = os.pipe()
            with open(reader, "rb", closefd=True), open(writer, "wb", closefd=True) as pipe:
                pipe.write(pickle.dumps({}) + pickle.dumps(zygote.Start(fd)))
                pipe.flush()
                command = spawn.get_command_line(pipe_handle=reader)
                return _launched(command, environment, (fd, reader))
        strangers = fork_hazards(parked=False)
        if strangers or spawn.is_forking(sys.argv):
            raise WorkerError(_no_interpreter(strangers))
        return _Forked(theirs, self.control)

    @property
    def failure(self) -> str:
        """What is to be said if it has ended before it was ready."""
        code, number = code_or_signal(self.process.returncode)
        how = f"was killed by {signal.Signals(number).name}" if number else f"ended with exit status {code}"
        program = getattr(self.process, "args", [sys.executable])[0]
        return (
            f"the process that workers are forked from {how} before it was ready; it may have said why on "
            f"standard error. It was started from {program!r}: if that is no Python with the packages of "
            "this one, give multiprocessing.set_executable() the path of one"
        )

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
            except ConnectionResetError:  # said once, before what it had still said
                continue
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


def _launched(command: Sequence[str], environment: dict[str, str], fds: tuple[int, ...]) -> Any:
    # Ctrl-C in a terminal goes to the whole process group: the new interpreter starts with it blocked, until
    # it can ignore it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if streams.is_open(1) else subprocess.DEVNULL,
            stderr=None if streams.is_open(2) else subprocess.DEVNULL,
            cwd=None if working_directory() else "/",  # Python does not start where there is no directory
            env=environment,
            pass_fds=fds,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flags() -> list[str]:
    """Options of this interpreter, for one like it."""
    # -W is left out: a warning turned into an error must not stop the interpreter from starting. The
    # caller's filters reach the workers with their tasks.
    flags = iter(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
    found: list[str] = []
    for flag in flags:
        if flag == "-X":
            next(flags)
        elif not flag.startswith("-W"):
            found.append(flag)
    for name, value in sys._xoptions.items():  # all of them, a program's own included
        found += ("-X", name if value is True else f"{name}={value}")
    return found


# ---------------------------------------------------------------------- which program to start

_supports_freezing = False


def freeze_support() -> None:
    """Let a frozen program (PyInstaller, cx_Freeze) have workers; call it first thing in the main module.

    Workers come from a process that is a copy of the program, which `freeze_support` recognises: there it
    does not return. It also does what `multiprocessing.freeze_support` does. Without effect in a program that
    is not frozen.

    Page: docs/executor.md.

    Notes
    -----
    A frozen program that does not call it has its workers forked from itself, if it runs no threads, and a
    `WorkerError` that names this function otherwise.

    Examples
    --------
    >>> import ndshare
    >>> if __name__ == "__main__":
    ...     ndshare.freeze_support()
    """
    global _supports_freezing
    _supports_freezing = True
    if is_frozen():
        import multiprocessing

        multiprocessing.freeze_support()
        if spawn.is_forking(sys.argv):
            words = (argument.split("=", 1) for argument in sys.argv[2:])
            told: Any = {name: None if value == "None" else int(value) for name, value in words}
            spawn.spawn_main(**told)
            sys.exit()


def is_frozen() -> bool:
    """Whether ``sys.executable`` is the program, interpreter and modules in one."""
    return bool(getattr(sys, "frozen", False))


def _is_supported() -> bool:
    """Whether the program, started once more to fork workers from, notices that."""
    if spawn.is_forking(sys.argv):
        return False  # it is such a copy, and has not noticed
    if _supports_freezing:
        return True
    import multiprocessing

    # PyInstaller and others put their own in its place, which works on this system, too.
    if getattr(multiprocessing.freeze_support, "__self__", None) is not None:
        return False
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        names = frame.f_code.co_names if frame.f_globals.get("__name__") == "__main__" else ()
        if "multiprocessing" in names and "freeze_support" in names:
            return True
        frame = frame.f_back
    return False


def _interpreter() -> str | None:
    """Path of a Python like this one; None if there is none to be found.

    What is not called Python is not tried out: it may be any program.
    """
    program = os.fsdecode(spawn.get_executable() or "")
    told = program != (sys.executable or "") and not _is_this_program(program)  # `set_executable`
    candidates = [program] if told else [] if is_frozen() else [program, sys.executable or ""]
    for path in candidates:
        if (told or _is_python(path)) and os.access(path, os.X_OK):
            return path
    if is_frozen():
        return None
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}{sys.abiflags}"
    for top in dict.fromkeys((sys.exec_prefix, sys.base_exec_prefix)):
        path = os.path.join(top, "bin", name)
        if os.access(path, os.X_OK):
            return path
    return None


def _is_this_program(path: str) -> bool:
    """Whether it is what embeds Python here: noted before the program has put ``sys.executable`` right."""
    with contextlib.suppress(OSError):
        return not _is_python(path) and os.path.samefile(path, "/proc/self/exe")
    return False


def _is_python(path: str) -> bool:
    return os.path.basename(path).lower().startswith(("python", "pypy"))


def _no_interpreter(strangers: list[str]) -> str:
    if is_frozen():
        what = f"this program is frozen: {sys.executable} is no interpreter to fork workers from"
        todo = "call ndshare.freeze_support() first thing in its main module"
    else:
        what = f"sys.executable is {sys.executable!r}, which is no Python interpreter to fork workers from"
        todo = "give multiprocessing.set_executable() the path of one with the same version and packages"
    if strangers:
        why = f"and this process cannot be forked while other threads run in it ({', '.join(strangers)})"
    else:
        why = "and this process has been started as one to fork workers from itself"
    return f"{what}, {why}; {todo}"


# ---------------------------------------------------------------------- this process as the one to fork from


class _Forked:
    """A fork of this process, with what `subprocess.Popen` has."""

    def __init__(self, control: socket.socket, callers: socket.socket) -> None:
        self.returncode: int | None = None
        streams.flush()  # else the child writes it again
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # the other thread is ours, see `fork_hazards`
            self.pid = os.fork()
        if self.pid == 0:
            try:
                callers.close()
                _forget_program()
                zygote.Start(control.detach()).run()
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        """Return the exit status, if it has ended."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                self.returncode = 0
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("", timeout or 0)
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _forget_program() -> None:
    """In a fork: leave to the program what is the program's."""
    atexit._clear()
    atexit.register(util._exit_function)  # type: ignore[attr-defined]  # waits for what tasks put into its queues
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    sys.settrace(None)
    sys.setprofile(None)
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
