"""EXtra-data and pasha: spots on a camera, train by train, then pulse energies of all sources.

The run is made by EXtra-data's own examples; the pixels of its camera are filled here.
"""

from __future__ import annotations

import os

import common
import h5py
import numpy as np
from extra_data import RunDirectory
from extra_data.tests import make_examples
from scipy import ndimage

common.install("pasha")
import pasha as psh  # which of the two has just been said

_CAMERA = "FXE_XAD_GEC/CAM/CAMERA:daqOutput"
_XGM = "SA1_XTD2_XGM/DOOCS/MAIN"
_TRAINS = 48 if common.QUICK else 480


def make(folder: os.PathLike[str]) -> None:
    """Write the run: a camera and a gas monitor, 480 trains in two files."""
    os.makedirs(folder)
    make_examples.make_fxe_run(folder, raw=True)
    rng = np.random.default_rng(1)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if "LPD" in name:
            os.remove(path)
            continue
        with h5py.File(path, "r+") as file:
            images = file[f"INSTRUMENT/{_CAMERA}/data/image"]
            shape = images["pixels"].shape
            del images["pixels"]
            pixels = images.create_dataset(
                "pixels", shape, np.uint16, chunks=(1, *shape[1:])
            )  # as cameras have it
            for index in range(len(pixels)):
                pixels[index] = rng.integers(0, 400, shape[1:], np.uint16)
            energy = file[f"CONTROL/{_XGM}/pulseEnergy/photonFlux/value"]
            energy[:] = rng.random(energy.shape)


def analyse(path: os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return what a user would look at."""
    psh.set_default_context("processes", num_workers=common.WORKERS)
    trains = RunDirectory(path, parallelize=False).select_trains(np.s_[:_TRAINS])
    pixels = trains[_CAMERA, "data.image.pixels"]
    background = pixels[:10].ndarray().mean(axis=0, dtype=np.float32)
    profiles = psh.alloc(shape=(_TRAINS, background.shape[1]))
    centres = psh.alloc(shape=(_TRAINS, 2), fill=np.nan)
    histograms = psh.alloc(shape=(64,), dtype=np.int64, per_worker=True)

    def spot(worker_id: int, index: int, train_id: int, image: np.ndarray) -> None:
        smooth = ndimage.gaussian_filter(image - background, 4)
        profiles[index] = smooth.sum(axis=0)
        centres[index] = ndimage.center_of_mass(smooth > 2)
        histograms[worker_id] += np.bincount(image.ravel() >> 3, minlength=64)[:64]

    psh.map(spot, pixels)

    energies = psh.alloc(shape=(_TRAINS,))
    ids = psh.alloc(shape=(_TRAINS,), dtype=np.uint64)

    def pulse(worker_id: int, index: int, train_id: int, data: dict[str, dict[str, np.ndarray]]) -> None:
        energies[index] = data[_XGM]["pulseEnergy.photonFlux.value"]
        ids[index] = train_id

    psh.map(pulse, trains.select(_XGM, "pulseEnergy.photonFlux.value"))
    return {
        "profiles": profiles,
        "centres": centres,
        "histogram": histograms.sum(axis=0),
        "energies": energies,
        "ids": ids,
    }


if __name__ == "__main__":
    RUN = common.FOLDER / "fxe_run"
    if not RUN.exists():
        make(RUN)
    common.run(lambda: analyse(RUN))
