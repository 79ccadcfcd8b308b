"""Where the figures were taken."""

from __future__ import annotations

import os
import platform
import time

import numpy as np

from ndshare._system import default_workers


def facts() -> dict[str, object]:
    """Return what another machine would have to match to give the same figures."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "usable cores": default_workers(),
        "memory": f"{_kibibytes('MemTotal') / 1e6 * 1.024:.1f} GB",
        "free memory": f"{free_bytes() / 1e9:.1f} GB",
        "load before": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "huge pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "date": time.strftime("%Y-%m-%d"),
    }


def free_bytes() -> int:
    """Return how much memory programs can have without swapping."""
    return int(_kibibytes("MemAvailable")) * 1024


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _first(path: str, key: str) -> str:
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _kibibytes(key: str) -> float:
    return float(_first("/proc/meminfo", key).split()[0])
