"""A scientist's job from start to end: choose a handwriting classifier on a grid of models.

::

    digits.py   the data: images, labels, what is held out, folds
    ridge.py    the model: kernel ridge regression, its cross-validation error
    grid.py     the search: the same function on every grid point, serially or by an executor
    table.py    the numbers as text
    plot.py     the numbers as a picture
    options.py  the words of the command line that all demos have
    command.py  ``ndshare demo``: does all of it and compares the two runs

The matrix of squared distances between all images is made once, in shared memory. Every task
receives it by reference.

Demos with a name::

    widths.py     one linear system per width of a Gaussian kernel, serially or in a workspace
    workspace.py  ``ndshare demo workspace``
    tiles.py      photographs, noise, square tiles
    denoise.py    non-local means of one tile, and how good a tile is
    cleaning.py   a map over the tiles, in any context
    images.py     ``ndshare demo images``
    cluster.py    ``ndshare demo cluster``
    scene.py      photographs as a scene, a path over it, and finding a frame in it
    camera.py     ``ndshare demo camera``: frames through queues
    network.py    the model of the next one: a network with a hidden layer
    sgd_worker.py one learner, a program of its own
    sgd.py        gradient descent by several learners that are killed on the way
    sgd_plot.py   accuracy over time
    sgd_command.py ``ndshare demo sgd``
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Sequence

_NAMED = {
    "camera": "ndshare.demo.camera",
    "cluster": "ndshare.demo.cluster",
    "images": "ndshare.demo.images",
    "sgd": "ndshare.demo.sgd_command",
    "workspace": "ndshare.demo.workspace",
}


def main(argv: Sequence[str]) -> int:
    """Run ``ndshare demo`` with the words of the command line; return the exit status."""
    name = argv[0] if argv and argv[0] in _NAMED else "digits"
    module = _NAMED.get(name, "ndshare.demo.command")
    argv = argv[name in _NAMED :]
    if "--json" not in argv or {"-h", "--help"} & set(argv):
        status: int = importlib.import_module(module).main(argv)
        return status
    from ndshare.demo.options import figures

    figures.clear()
    with contextlib.redirect_stdout(sys.stderr):
        status = importlib.import_module(module).main(argv)
    print(json.dumps({"demo": name, "status": status, **figures}))
    return status


__all__ = ["main"]
