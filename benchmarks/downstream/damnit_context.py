"""DAMNIT: a context file whose variables map over the trains of a run with pasha."""

from __future__ import annotations

import logging

import common
import extra_data_run
import numpy as np
from damnit.context import Pipeline
from extra_data import RunDirectory

_CONTEXT = """
from damnit_ctx import Variable
import numpy as np
import pasha as psh
from scipy import ndimage

CAMERA, XGM = "FXE_XAD_GEC/CAM/CAMERA:daqOutput", "SA1_XTD2_XGM/DOOCS/MAIN"
psh.set_default_context("processes", num_workers=%d)

@Variable(title="Energy")
def energy(run):
    key = run[XGM, "pulseEnergy.photonFlux.value"]
    out = psh.alloc(shape=(len(key.train_ids),))
    def of_train(worker_id, index, train_id, data):
        out[index] = data
    psh.map(of_train, key)
    return out

@Variable(title="Sharpness")
def sharpness(run):
    key = run[CAMERA, "data.image.pixels"]
    out = psh.alloc(shape=(len(key.train_ids),))
    def of_train(worker_id, index, train_id, image):
        out[index] = ndimage.gaussian_laplace(image.astype("f4"), 1.5).std()
    psh.map(of_train, key)
    return out

@Variable(title="Spots")
def spots(run):
    key = run[CAMERA, "data.image.pixels"]
    out = psh.alloc(shape=(len(key.train_ids),), dtype=np.int64)
    def of_train(worker_id, index, train_id, image):
        smooth = ndimage.gaussian_filter(image.astype("f4"), 3)
        out[index] = ndimage.label(smooth > smooth.mean() + 3 * smooth.std())[1]
    psh.map(of_train, key)
    return out

@Variable(title="Profile", summary="mean")
def profile(run, energy: "var#energy"):
    key = run[CAMERA, "data.image.pixels"]
    sums = psh.alloc(shape=key.entry_shape, dtype=np.int64, per_worker=True)
    def of_train(worker_id, index, train_id, image):
        if energy[index] > 0.5:
            sums[worker_id] += image
    psh.map(of_train, key)
    return sums.sum(axis=(0, 1))
"""


def execute() -> dict[str, np.ndarray]:
    """Return the values of the variables."""
    trains = RunDirectory(RUN, parallelize=False).select_trains(np.s_[: 48 if common.QUICK else 480])
    context = Pipeline.from_str(_CONTEXT % common.WORKERS).with_context(proposal=1, run_number=450)
    results = context.execute(data=trains)
    if results.errors:
        raise SystemExit(f"DAMNIT: {results.errors}")
    return {name: results.cells[name].data for name in ("energy", "sharpness", "spots", "profile")}


if __name__ == "__main__":
    logging.disable()
    RUN = common.FOLDER / "fxe_run"
    if not RUN.exists():
        extra_data_run.make(RUN)
    common.run(execute)
