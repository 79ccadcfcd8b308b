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

::

    sgd_command.py  ``ndshare demo sgd``: gradient descent by processes that are killed on the way
    sgd.py          the run: starts, looks, kills
    sgd_worker.py   one learner, a program of its own
    softmax.py      the model
    sgd_plot.py     accuracy over time
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run ``ndshare demo`` with the words of the command line; return the exit status."""
    if argv and argv[0] == "sgd":
        from ndshare.demo.sgd_command import main as descend

        return descend(argv[1:])
    from ndshare.demo.command import main as search

    return search(argv)


__all__ = ["main"]
