"""What the programs have in common: their words, the clock, the checksum.

    python PROGRAM.py original|ndshare FOLDER [--quick]

Each makes its data, does its work once and prints a line of JSON: the seconds that the work took, with start
and end of its workers, and a checksum of what came out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_parser = argparse.ArgumentParser()
_parser.add_argument("library", choices=("original", "ndshare"))
_parser.add_argument("folder", type=Path, help="for files, kept between runs")
_parser.add_argument("--quick", action="store_true", help="little data: checks that it works")
_options, _ = _parser.parse_known_args()

NDSHARE: bool = _options.library == "ndshare"
FOLDER: Path = _options.folder
QUICK: bool = _options.quick
WORKERS = max(2, min(4, len(os.sched_getaffinity(0))))

if NDSHARE:
    import ndshare


def install(name: str) -> None:
    """Let ``import name`` mean ndshare's module, if this run is to show that."""
    if NDSHARE:
        import ndshare.compat

        ndshare.compat.install(name)


def pool() -> Any:
    """Return a pool of processes that are forked from this one, as those of `multiprocessing` mostly are."""
    context = multiprocessing.get_context("fork")
    if NDSHARE:
        return ndshare.Pool(WORKERS, context=context)
    return context.Pool(WORKERS)


def checksum(value: Any) -> str:
    """Return a short digest of arrays, numbers and texts, in dicts and lists."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part):
                add(key)
                add(part[key])
        elif isinstance(part, list | tuple):
            for one in part:
                add(one)
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())

    add(value)
    return digest.hexdigest()[:16]


def run(work: Callable[[], Any]) -> None:
    """Do the work, print how long it took and what came out."""
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "checksum": checksum(result)}), flush=True)
