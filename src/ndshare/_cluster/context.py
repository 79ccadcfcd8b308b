"""`ClusterContext`: the same kernel on many machines, through Dask or any engine with futures.

::

    map ──► shares ──► engine (Dask, MPI, any futures) ──► nodes: warm workers, shared memory
     ▲                                                        │
     └── the caller's arrays ◄── what each share has changed ─┘

No cluster of its own: the engine schedules, moves and recovers; ndshare adds shared memory inside each
machine, and the merging of what kernels wrote.

Guarantees
----------
- Writes to different elements never overwrite each other, down to single bytes; each share counts once,
  whatever is lost or runs twice.

Not guaranteed
--------------
- Kernels do not see what other shares have written: they see what arrays held when the map began. Of arrays
  with rows per worker they see their own row, as their last share left it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from ndshare._cluster.engines import find_engine
from ndshare._cluster.workers import Remote
from ndshare._map import Job, MapContext, MapWorkers, unsendable
from ndshare._system import check_count
from ndshare.errors import CapacityError

__all__ = ["ClusterContext"]


class ClusterContext(MapContext):
    """Maps run on the machines of a cluster.

    Page: docs/cluster.md.

    Parameters
    ----------
    engine : distributed.Client, str or Executor
        A Dask client or the address of a Dask scheduler; ``"ray"`` or ``"ray://host:port"``; or an executor
        with the interface of `concurrent.futures`, such as ``client.get_executor()`` or
        ``mpi4py.futures.MPIPoolExecutor``. Futures without callbacks are polled.
    workers_per_node : int, optional
        Workers of each process of the engine. By default the threads of a Dask worker, else 1.
    processes : int, optional
        Processes of the engine, if it does not say how many it has.

    Notes
    -----
    ndshare must be installed where the engine runs. Arrays that a kernel writes to arrive in the caller's: a
    node compares its copy with what it was, byte by byte, and sends what is different.

    The number of workers is fixed when the context is made. Machines that join later take shares; the number
    of rows stays.

    Examples
    --------
    >>> from concurrent.futures import ProcessPoolExecutor
    >>> import ndshare
    >>> with ProcessPoolExecutor(1) as engine:
    ...     context = ndshare.ClusterContext(engine)
    ...     out = context.alloc(3)
    ...     def kernel(worker_id, index, value):
    ...         out[index] = value ** 2
    ...     report = context.map(kernel, [1, 2, 3])
    >>> out.tolist()
    [1.0, 4.0, 9.0]
    """

    can_kill = True
    can_lock = False

    def __init__(
        self, engine: Any, *, workers_per_node: int | None = None, processes: int | None = None
    ) -> None:
        if workers_per_node is not None:
            check_count("workers_per_node", workers_per_node, 1)
        if processes is not None:
            check_count("processes", processes, 1)
        self._engine = find_engine(engine, processes)
        self._groups = self._engine.processes()
        self.workers_per_node = workers_per_node or self._engine.threads()
        super().__init__(self._groups * self.workers_per_node)
        self.rows_together = self.workers_per_node

    def release(self) -> None:
        """Free what machines keep for the next map: inputs that were sent to them, and copies of outputs.

        Notes
        -----
        What is needed again is sent again. A Dask cluster is reached as a whole; of other engines those
        processes that take a task each.
        """
        self._engine.release()

    def close(self) -> None:
        """Release the memory of machines; disconnect, if the context has made the connection itself."""
        self._engine.release()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_workers(self, job: Job, _tell: Callable[[], None]) -> tuple[MapWorkers, str]:
        """See `MapContext`."""
        workers = Remote(job, self._engine, self._groups, self.workers_per_node)
        try:
            workers.pack()
        except (CapacityError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise TypeError(unsendable(job.kernel, job.functor, error)) from error
        return workers, ""
