"""Nothing is printed when a program ends, whatever it still has and whoever ends first."""

from __future__ import annotations

import pytest

_IMPORTS = (
    "import numpy as np",
    "import ndshare",
    "import multiprocessing.util, concurrent.futures.process, asyncio",
)

_FACES = """
import os, threading, time
queue = ndshare.Queue(2)
queue.put(np.zeros(50_000))
waiting = ndshare.Queue()
for _ in range(300):
    waiting.put(np.zeros(3000))  # more than the socket takes
waiting.cancel_join_thread()
executor = ndshare.ProcessPoolExecutor(1)
result = executor.submit(np.ones, 100_000).result()
future = executor.submit(abs, 1)
results = executor.map(abs, range(50))
first = next(results)
coming = executor.imap_unordered(abs, range(50))
first = next(coming)
context = ndshare.ProcessContext(2)
rows = context.alloc(shape=4)
context.map(lambda worker_id, index, value: None, range(4))
shared = ndshare.SharedDict({"a": np.zeros(3)}, f"exit-{os.getpid()}")
view = shared["a"]
stream = ndshare.Stream()
stream.put(np.ones(100_000))
frame = stream.get()
lock = ndshare.lock()
lock.acquire()
repair = ndshare.lock().repair()
repair.__enter__()
workspace = ndshare.Workspace({"x": np.ones(10)})
memory = ndshare.shared_memory()
memory.__enter__()
array = np.zeros(1_000_000)
carrier = ndshare.Queue()
carrier.put(queue)  # descriptors on their way
again = carrier.get()
for target in (ndshare.Queue(1).get, lock.acquire, stream.get):
    threading.Thread(target=target, daemon=True).start()
faces = dict(globals())
"""

_KEEPS = {
    "nobody": "",
    # As large extensions do that keep the modules they were given, so that these are emptied while objects live.
    "the main module": "ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.modules['__main__']))",
    "all modules": "modules = dict(sys.modules); ctypes.pythonapi.Py_IncRef(ctypes.py_object(modules))",
    "another order of modules": "sys.modules = dict(reversed(list(sys.modules.items())))",
    "sys": "sys.kept = faces",
    "builtins": "import builtins; builtins.kept = faces",
    "a module imported before": "np.kept = faces",
    "a module that comes last": "late = types.ModuleType('late'); sys.modules['late'] = late; late.kept = faces",
    "a circle": "circle = [faces]; circle.append(circle); [globals().pop(name) for name in faces if name[0] != '_']",
    "nobody ever frees them": "ctypes.pythonapi.Py_IncRef(ctypes.py_object(faces))",
    "an exit function": "atexit.register(lambda: faces)",
    "a thread": "threading.Thread(target=lambda kept: time.sleep(1000), args=(faces,), daemon=True).start()",
}


@pytest.mark.parametrize("keep", _KEEPS)
def test_nothing_is_printed_at_exit_whoever_keeps_the_objects(keep, run_script):
    """Every face, in use."""
    tools = "import atexit, ctypes, sys, types\n"
    done = run_script("\n".join([*_IMPORTS, tools, _FACES, _KEEPS[keep]]), interpreter_args=("-X", "dev"))
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.once
@pytest.mark.parametrize("order", [(2, 0, 1), (0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_nothing_is_printed_at_exit_in_any_order_of_imports(order, run_script):
    """What ends at exit does so in the order in which it was imported, backwards."""
    source = "\n".join(
        [*(_IMPORTS[number] for number in order), "import ctypes, sys", _FACES, _KEEPS["all modules"]]
    )
    done = run_script(source, interpreter_args=("-X", "dev"))
    assert (done.stdout, done.stderr) == ("", "")
