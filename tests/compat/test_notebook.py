"""Programs of pasha's users in a notebook: threads of IPython, ZeroMQ and a progress bar run beside them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

pytest.importorskip("ipykernel")
pytest.importorskip("jupyter_client")

pytestmark = pytest.mark.once

RunScript = Callable[..., subprocess.CompletedProcess[str]]

#: Runs the cells of a session in a kernel of its own; prints what they print, raises what they raise.
_SESSION = """
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3")
try:
    for cell in CELLS:
        def hear(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                print(content["text"], end="")
            elif message["msg_type"] == "error":
                print("\\n".join(content["traceback"]))
        reply = client.execute_interactive(cell, timeout=90, output_hook=hear, allow_stdin=False)
        if reply["content"]["status"] != "ok":
            sys.exit("cell failed:\\n" + cell)
finally:
    client.stop_channels()
    manager.shutdown_kernel()  # not by a signal: semaphores of its own would stay
"""

_BEGIN = """
import multiprocessing, os, threading
import numpy as np, tqdm
import ndshare.compat; ndshare.compat.install("pasha")
import pasha as psh
bar = tqdm.tqdm(total=3, disable=False); bar.update()  # its monitor is a thread
psh.set_default_context("processes", num_workers=2)
"""

_OBJECTS = """
queue, lock, count = multiprocessing.Queue(), multiprocessing.Lock(), multiprocessing.Value("i", 0)
queue.put("begun")  # its feeder is a thread
out = psh.alloc(20)
def kernel(worker_id, index, value):
    queue.put(index)
    with lock:
        out[index] += 1
    with count.get_lock():
        count.value += 1
for _ in range(3):
    psh.map(kernel, range(20))
assert out.tolist() == [3] * 20 and count.value == 60
found = [queue.get(timeout=5) for _ in range(61)]
assert found.count("begun") == 1 and sorted(set(found) - {"begun"}) == list(range(20))
print("\\n" + psh.get_default_context().map(kernel, range(2), retries=0).start_method)
"""

_FILES = """
import h5py, tempfile
path = os.path.join(tempfile.mkdtemp(), "frames.h5")
with h5py.File(path, "w") as file:
    file["frames"] = np.arange(80.0).reshape(20, 4)
class Reader:
    def __init__(self):
        self.file = h5py.File(path, "r")
        self.log = open(os.devnull, "w")
reader, file = Reader(), h5py.File(path, "r")
def from_file(worker_id, index, value):
    out[index] = file["frames"][index].sum()
def by_object(worker_id, index, value):
    out[index] = reader.file["frames"][index].sum()
    reader.log.write("read")
for kernel in (from_file, by_object):
    out[:] = 0
    report = psh.get_default_context().map(kernel, range(20), retries=0)
    assert out.tolist() == [16 * k + 6 for k in range(20)]
    print(report.start_method, "opened by name" in report.reason)
"""


def _run(run_script: RunScript, *cells: str) -> str:
    done = run_script(f"CELLS = {cells!r}\n{_SESSION}", check=False, PYDEVD_DISABLE_FILE_VALIDATION="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kernels_use_what_can_only_be_inherited_beside_the_threads_of_a_notebook(
    run_script: RunScript,
) -> None:
    """Queues, locks and values of multiprocessing; files of h5py, which are opened again; objects with files."""
    pytest.importorskip("h5py")
    printed = _run(run_script, _BEGIN, _OBJECTS, _FILES)
    assert [line for line in printed.splitlines() if line.startswith(("fork", "pool"))] == [
        "fork",
        "pool True",
        "fork False",
    ]


_RUN = """
import os, tempfile
from extra_data import RunDirectory
from extra_data.tests.mockdata import write_file
from extra_data.tests.mockdata.xgm import XGM
folder = tempfile.mkdtemp()
write_file(os.path.join(folder, "RAW-R0001-DA01-S00000.h5"), [XGM("SA1_XTD2_XGM/DOOCS/MAIN")], ntrains=40)
run = RunDirectory(folder)
xgm = "SA1_XTD2_XGM/DOOCS/MAIN"
intensity = run[xgm + ":output", "data.intensityTD"]
"""

_ANALYSIS = """
sums, trains = psh.alloc(shape=(len(intensity.train_ids),)), psh.alloc(len(intensity.train_ids), np.uint64)
histogram = psh.alloc(shape=(10,), dtype=int, per_worker=True)
def analyse(worker_id, index, train_id, data):
    sums[index] = data.sum()
    trains[index] = train_id
    histogram[worker_id, index % 10] += 1
psh.map(analyse, intensity)
assert np.allclose(sums, intensity.ndarray().sum(axis=1))
assert (trains == intensity.train_ids).all()
assert histogram.sum(axis=0).tolist() == [4] * 10
messages = multiprocessing.Queue()
def of_run(worker_id, index, train_id, data):
    trains[index] = data[xgm]["pulseEnergy.photonFlux.value"] + index
    messages.put(train_id)
psh.map(of_run, run.select([(xgm, "pulseEnergy.photonFlux.value"), (xgm + ":output", "*")]))
assert sorted(messages.get(timeout=5) for _ in range(40)) == list(run.train_ids)
print("analysed", len(run.train_ids))
"""


def test_session_of_extra_data_runs_end_to_end(run_script: RunScript) -> None:
    """A run, its keys and its trains, mapped from cells."""
    pytest.importorskip("extra_data.tests.mockdata")
    assert "analysed 40" in _run(run_script, _BEGIN, _RUN, _ANALYSIS)
