"""A scientist's job from start to end: choose a handwriting classifier on a grid of models.

::

    digits.py   the data: images, labels, what is held out, folds
    ridge.py    the model: kernel ridge regression, its cross-validation error
    grid.py     the search: the same function on every grid point, serially or by an executor
    table.py    the numbers as text
    plot.py     the numbers as a picture
    command.py  ``ndshare demo``: does all of it and compares the two runs

The matrix of squared distances between all images is made once, in shared memory. Every task
receives it by reference.
"""

from __future__ import annotations

from ndshare.demo.command import main

__all__ = ["main"]
