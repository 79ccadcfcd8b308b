"""The interpreter, packages, and environment variables."""

from __future__ import annotations

import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import sys
import sysconfig

from ndshare.cli.doctor.finding import Finding

_OLDEST = (3, 11)
_NEEDED = ("numpy", "cloudpickle", "threadpoolctl", "tqdm")
_USED = ("distributed", "joblib", "mpi4py", "matplotlib", "scikit-learn", "pandas", "xarray", "h5py", "rich")
_KNOWN = ("NDSHARE_MEMORY_LIMIT", "NDSHARE_DICT_SPACE")


def interpreter() -> Finding:
    """Version, and whether threads run side by side."""
    built = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    kind = (
        "free-threaded" if built and not gil else "free-threaded, but its GIL is on" if built else "with GIL"
    )
    found = f"{platform.python_implementation()} {platform.python_version()}, {kind}"
    if sys.implementation.name != "cpython" or sys.version_info < _OLDEST:
        return Finding("Python", "fail", found, "Use CPython 3.11 or newer.")
    if built and gil:
        remedy = (
            "PYTHON_GIL=1 is set, or a module that was imported needs the GIL; processes work all the same."
        )
        return Finding("Python", "warn", found, remedy)
    return Finding("Python", "ok", found)


def package() -> Finding:
    """Whether ndshare itself can be imported, with its compiled parts."""
    try:
        import ndshare

        for name in ("_dict", "_locks", "_map", "_node", "_pool", "_queue", "_workspace"):
            importlib.import_module(f"ndshare.{name}")
    except Exception as error:  # a broken installation may raise anything
        found = f"cannot be imported: {type(error).__name__}: {error}"
        remedy = "Do what it says. If a compiled part is missing, pip install --force-reinstall ndshare."
        return Finding("ndshare", "fail", found, remedy)
    return Finding("ndshare", "ok", f"{ndshare.__version__}, all parts can be imported")


def versions() -> Finding:
    """What ndshare needs, and what it works with."""
    found, missing = [], []
    for name in (*_NEEDED, *_USED):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name in _NEEDED:
                missing.append(name)
    if missing:
        return Finding(
            "packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Finding("packages", "ok", ", ".join(found))


def start_methods() -> Finding:
    """The start methods of multiprocessing: ndshare works under each, and needs none."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    every = multiprocessing.get_all_start_methods()
    text = f"{chosen or every[0]}{'' if chosen else ' by default'}, of {', '.join(every)}"
    return Finding("start methods", "ok", f"{text}; ndshare's workers come from a process of their own")


def variables() -> Finding:
    """Environment variables of ndshare: known, and well-formed."""
    mine = {name: value for name, value in os.environ.items() if name.startswith("NDSHARE_")}
    unknown = sorted(set(mine) - set(_KNOWN))
    if unknown:
        found = f"not known to ndshare: {', '.join(unknown)}"
        return Finding("environment", "warn", found, f"Known are {' and '.join(_KNOWN)}; a typing error?")
    said = ", ".join(f"{name}={value}" for name, value in sorted(mine.items()))
    return Finding("environment", "ok", said or "no variable of ndshare is set")
