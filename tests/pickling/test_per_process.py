"""Globals that every process has for itself, and libraries of C: as with the standard library's workers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

RunScript = Callable[..., subprocess.CompletedProcess[str]]

_TIMEOUT_S = 90


def test_locks_locals_and_context_variables_of_the_script(run_script: RunScript) -> None:
    """Each worker has its own, free and with its default; within one they are one, whoever refers to them."""
    done = run_script(
        """
import contextvars, functools, pathlib, sys, threading
import ndshare
pathlib.Path(__file__).with_name("users.py").write_text(
    "import contextvars, threading\\nlock, place = threading.Lock(), threading.local()\\n"
    "number = contextvars.ContextVar('number', default=1)\\n"
    "def same(*those): return those == (lock, place, number)\\n"
)
import users
from users import lock as their_lock, number as their_number, place as their_place

lock, model = threading.Lock(), None
request = contextvars.ContextVar("request", default="-")
bare = contextvars.ContextVar("bare")
place = threading.local()
place.connection, place.kept = None, object()
class Local(threading.local):
    def __init__(self): self.x = 5
local, told, few = Local(), threading.Event(), threading.BoundedSemaphore(2)
condition = threading.Condition(lock)
class Cache:
    def __init__(self): self.lock, self.content = threading.RLock(), {}
    def get(self, key):
        with self.lock:
            self.content[key] = self.content.get(key, 0) + 1
            return self.content[key]
cache = Cache()
def memo(function):
    guard, store = threading.Lock(), {}
    @functools.wraps(function)
    def wrapped(*args):
        with guard: return store.setdefault(args, function(*args)), len(store)
    return wrapped
@memo
def square(x): return x * x
def lazily(x, guard=threading.Lock()):
    global model
    with lock, guard: model = model or 10
    return model + x
def look(also=lock):
    with few:
        facts = request.get(), bare.get("none"), place.connection, hasattr(place, "kept"), local.x, told.is_set()
    return facts, condition._lock is lock is also, users.same(their_lock, their_place, their_number)
def reset():
    token = request.set("mine")
    found = request.get()
    request.reset(token)
    return found, request.get()
def nested():
    with ndshare.ProcessPoolExecutor(1) as inner: return inner.submit(lazily, 5).result(), inner.submit(reset).result()
with ndshare.ProcessPoolExecutor(1) as executor:
    call = lambda function, *args: executor.submit(function, *args).result(60)
    with lock: assert call(lazily, 1) == 11, "held by the caller"
    assert call(look) == (("-", "none", None, False, 5, False), True, True), call(look)
    assert call(reset) == ("mine", "-")
    assert [call(lambda: cache.get("a")) for _ in range(2)] == [1, 2], "it is sent once"
    cache.content["a"] = 50
    assert call(lambda: cache.get("a")) == 51, "and again when it was changed"
    assert [call(square, 3) for _ in range(2)] == [(9, 1)] * 2
    told.set()
    assert call(look)[0][-1]
    assert call(nested) == (15, ("mine", "-"))
    for one in (lock, request, place, cache):  # in arguments they are what they are for pickle
        assert isinstance(executor.submit(print, one).exception(), TypeError)
with ndshare.Pool(1) as pool: assert pool.map(square, [2]) == [(4, 1)]
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_what_runs_here_or_holds_messages_is_refused_by_name(run_script: RunScript) -> None:
    """A thread, a process, a future, a queue between threads: a copy would mislead."""
    done = run_script(
        """
import concurrent.futures, queue, subprocess, sys, threading
import ndshare
class Mine(queue.LifoQueue): pass
made = [queue.Queue(), queue.SimpleQueue(), Mine(), threading.Thread(target=print), threading.Timer(9, print),
        concurrent.futures.Future(), subprocess.Popen([sys.executable, "-c", ""])]
made[-1].wait()
def use(): return thing
with ndshare.ProcessPoolExecutor(1) as executor:
    for thing in made:
        error = executor.submit(use).exception()
        assert isinstance(error, ndshare.UnsendableGlobalError), (thing, error)
        assert "'thing'" in str(error) and type(thing).__name__ in str(error)
        assert ("ndshare.Queue()" in str(error)) == ("Queue" in str(error.args) or type(thing) is Mine), error
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_libraries_of_ctypes_are_loaded_anew_and_know_what_their_functions_give(
    run_script: RunScript,
) -> None:
    """Their addresses would be another process's."""
    done = run_script(
        """
import ctypes, ctypes.util, struct
import ndshare
libm = ctypes.CDLL("libm.so.6")
libm.cos.restype, libm.cos.argtypes = ctypes.c_double, [ctypes.c_double]
power = libm.pow
power.restype, power.argtypes = ctypes.c_double, [ctypes.c_double] * 2
this = ctypes.CDLL(None)
head = struct.Struct("<If")
def call(): return libm.cos(0.0), power(2.0, 3.0), this.abs(-3), head.size
with ndshare.ProcessPoolExecutor(1) as executor:
    assert executor.submit(call).result() == (1.0, 8.0, 3, 8)
    libm.cos.restype = ctypes.c_int64
    assert executor.submit(lambda: libm.cos.restype).result() is ctypes.c_int64, "in place, too"
    assert executor.submit(lambda library: library.abs(-4), this).result() == 4
print("fine")
""",
        timeout=_TIMEOUT_S,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
