"""joblib, and so scikit-learn's ``n_jobs``, on the workers and the memory of ndshare.

::

    register()                            makes the backend known to joblib
    joblib.parallel_config("ndshare")     chooses it
    Parallel(n_jobs=2)(delayed(f)(x, i) for i in ...)
                                          x: copied into shared memory once; results: not copied

Guarantees
----------
* What a function gets is private and writable, whatever its size; shared arrays are the same memory.
* No temporary files, nothing left behind.
"""

from __future__ import annotations

__all__ = ["register"]


def register(*, make_default: bool = False) -> None:
    """Make the backend ``"ndshare"`` known to joblib.

    Parameters
    ----------
    make_default : bool
        Whether joblib uses it where no backend is chosen.

    Raises
    ------
    ImportError
        If joblib is not installed.

    Notes
    -----
    Large ordinary arrays that several tasks of a `joblib.Parallel` call have in common are copied into shared
    memory once and mapped copy-on-write by each task: do not change them while the call runs. Shared arrays
    (`ndshare.share`) go by reference. Results cost no copy. joblib's `max_nbytes`, `mmap_mode` and
    `temp_folder` have no meaning here.

    References
    ----------
    The interface is that of `joblib.parallel.ParallelBackendBase`.

    Examples
    --------
    >>> import joblib, numpy as np
    >>> import ndshare.integrations.joblib
    >>> ndshare.integrations.joblib.register()
    >>> with joblib.parallel_config("ndshare", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(np.sum)(np.arange(n)) for n in range(4))
    [0, 0, 1, 3]
    """
    try:
        import joblib
    except ModuleNotFoundError as error:
        raise ImportError(
            "ndshare.integrations.joblib needs joblib, which is not installed: pip install 'ndshare[joblib]'"
        ) from error
    from ndshare.integrations._joblib_backend import NdshareBackend

    joblib.register_parallel_backend("ndshare", NdshareBackend, make_default=make_default)
