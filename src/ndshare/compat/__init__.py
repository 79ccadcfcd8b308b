"""Drop-in modules for five small libraries: change the import, keep the program.

::

    from ndshare.compat import pasha as psh          a program of one's own: one line
    ndshare.compat.install("pasha")                  code of others that says ``import pasha``

Each module has the names and the habits of its original, and maps them to ndshare.
"""

from __future__ import annotations

import importlib
import sys
import types

from ndshare._processes import add_aliases

__all__ = ["install"]

#: The modules that each original has.
_MODULES = {
    "SHMArrays": ("SHMArrays",),
    "contextshare": ("contextshare", "contextshare.contextshare"),
    "npshmex": ("npshmex",),
    "pasha": ("pasha", "pasha.context", "pasha.functor"),
    "shared_numpy": (
        "shared_numpy",
        "shared_numpy.queue",
        "shared_numpy.reduction",
        "shared_numpy.shared_memory",
        "shared_numpy.shared_numpy",
    ),
}


def install(name: str) -> types.ModuleType:
    """Make ``import name`` mean ndshare's module of that name, for the rest of this program.

    Parameters
    ----------
    name : str
        Of one of the originals, such as ``"pasha"``.

    Returns
    -------
    module
        The same as ``ndshare.compat.<name>``.

    Raises
    ------
    ValueError
        If there is no such module.
    ImportError
        If the original has been imported already: modules that did so would go on with it.

    Notes
    -----
    All workers of this process find the same when they import code that says ``import name``.

    Examples
    --------
    >>> import ndshare.compat
    >>> _ = ndshare.compat.install("pasha")
    >>> import pasha
    >>> pasha.ProcessContext.__module__
    'ndshare.compat.pasha.context'
    """
    if name not in _MODULES:
        names = ", ".join(repr(known) for known in _MODULES)
        raise ValueError(f"install: there is no module {name!r} in ndshare.compat; allowed are {names}")
    modules = {full: importlib.import_module(f"{__name__}.{full}") for full in _MODULES[name]}
    for full, module in modules.items():
        present = sys.modules.get(full, module)
        if present is not module:
            raise ImportError(
                f"install: {full} has been imported already, from {getattr(present, '__file__', None)}; call "
                f"ndshare.compat.install({name!r}) before anything imports it"
            )
    sys.modules.update(modules)
    add_aliases({full: module.__name__ for full, module in modules.items()})
    return modules[name]
