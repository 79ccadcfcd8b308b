"""strax: records, hits and peaks in worker processes, whose arrays go through npshmex."""

from __future__ import annotations

import shutil
import tempfile
import warnings

import common
import numpy as np

common.install("npshmex")
import strax  # finds the npshmex that has just been said

_CHUNKS, _RECORDS, _SAMPLES = (4, 2_000, 110) if common.QUICK else (72, 60_000, 110)


class Records(strax.Plugin):
    """A digitizer: pulses of noise with a peak in some, read in this process."""

    provides = "records"
    depends_on = ()
    dtype = strax.record_dtype(_SAMPLES)
    parallel = False
    save_when = strax.SaveWhen.NEVER
    rechunk_on_save = False

    def source_finished(self):
        """Everything is there from the start."""
        return True

    def is_ready(self, chunk_i):
        """Tell whether there is a chunk of this number."""
        return chunk_i < _CHUNKS

    def compute(self, chunk_i):
        """Return a chunk, cheaply: the work is in what follows."""
        rng = np.random.default_rng(chunk_i % 2)
        records = np.zeros(_RECORDS, self.dtype)
        length = _RECORDS * _SAMPLES
        records["time"] = chunk_i * length + np.arange(_RECORDS) * _SAMPLES
        records["length"] = records["pulse_length"] = _SAMPLES
        records["dt"] = 1
        records["channel"] = np.arange(_RECORDS) % 100
        lit = rng.random(_RECORDS) < 0.03
        records["data"][lit, 40:60] = rng.integers(0, 200, (lit.sum(), 20))
        return self.chunk(start=chunk_i * length, end=(chunk_i + 1) * length, data=records)


class Hits(strax.Plugin):
    """Where records are above threshold, with their areas in several windows."""

    provides = data_kind = "hits"
    depends_on = ("records",)
    dtype = strax.hit_dtype
    parallel = "process"
    save_when = strax.SaveWhen.NEVER

    def compute(self, records):
        """Filter each pulse, then find hits."""
        smooth = records["data"].astype(np.float32)
        for _ in range(6):
            smooth[:, 1:-1] = (smooth[:, :-2] + smooth[:, 1:-1] + smooth[:, 2:]) / 3
        records = records.copy()
        records["data"] = smooth
        return strax.find_hits(records, min_amplitude=15)


class Peaks(strax.Plugin):
    """Hits that are close to each other."""

    provides = data_kind = "peaks"
    depends_on = ("hits",)
    dtype = strax.peak_dtype(n_channels=100)
    parallel = "process"
    save_when = strax.SaveWhen.NEVER

    def compute(self, hits):
        """Group the hits."""
        hits = strax.sort_by_time(hits)
        return strax.find_peaks(
            hits,
            np.ones(100, np.float32),
            gap_threshold=30,
            left_extension=0,
            right_extension=0,
            min_area=0,
            min_channels=1,
            result_dtype=self.dtype,
        )


def process(folder: str) -> dict[str, np.ndarray]:
    """Return the peaks of a run."""
    context = strax.Context(
        storage=strax.DataDirectory(folder),
        register=[Records, Hits, Peaks],
        allow_multiprocess=True,
        allow_shm=True,
    )
    peaks = context.get_array(
        "0", "peaks", max_workers=common.WORKERS, progress_bar=False, processor="threaded_mailbox"
    )
    return {name: peaks[name] for name in ("time", "length", "n_hits", "area")}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    FOLDER = tempfile.mkdtemp(dir=common.FOLDER)
    try:
        common.run(lambda: process(FOLDER))
    finally:
        shutil.rmtree(FOLDER)
