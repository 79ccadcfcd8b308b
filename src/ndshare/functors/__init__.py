"""What can be mapped over: one functor class per kind of collection, and the search for the right one.

::

    find(obj) ──► Functor ──► split(num_workers) ──► shares ──► iterate(share) ──► (index, value), ...

Importing this package imports none of the libraries it knows; whether one is there is looked up in
``sys.modules``, since an object of it cannot exist otherwise.

Guarantees
----------
- Entries, their order and their indices are those of a loop over the collection, however it is divided.
- What lies in shared memory reaches a worker by reference; other arrays are copied once for all workers.
- No open file travels: each process opens it anew, for reading only.

Not guaranteed
--------------
- A collection that is changed while a map runs over it is seen in the old or the new state, item by item.
"""

from __future__ import annotations

import numpy as np

from ndshare.functors.base import Functor, claimed, count_items, find, gen_split_slices, of_builtins
from ndshare.functors.columnar import ArrowFunctor, AwkwardFunctor, ParquetFunctor, PolarsFunctor
from ndshare.functors.files import HDF5Functor, HDF5ViewFunctor, ZarrFunctor
from ndshare.functors.iterators import IteratorFunctor
from ndshare.functors.labelled import DataArrayFunctor, DatasetFunctor, RollingFunctor, XarrayGroupByFunctor
from ndshare.functors.sequences import NdarrayFunctor, SequenceFunctor, TensorFunctor, numbers_of, values_of
from ndshare.functors.sparse import SparseFunctor
from ndshare.functors.tables import DataFrameFunctor, GroupByFunctor, IndexFunctor, SeriesFunctor
from ndshare.functors.trains import ExtraDataFunctor

__all__ = [
    "ArrowFunctor",
    "AwkwardFunctor",
    "DataArrayFunctor",
    "DataFrameFunctor",
    "DatasetFunctor",
    "ExtraDataFunctor",
    "Functor",
    "GroupByFunctor",
    "HDF5Functor",
    "HDF5ViewFunctor",
    "IndexFunctor",
    "IteratorFunctor",
    "NdarrayFunctor",
    "ParquetFunctor",
    "PolarsFunctor",
    "RollingFunctor",
    "SequenceFunctor",
    "SeriesFunctor",
    "SparseFunctor",
    "TensorFunctor",
    "XarrayGroupByFunctor",
    "ZarrFunctor",
    "claimed",
    "count_items",
    "find",
    "gen_split_slices",
    "numbers_of",
    "values_of",
]

of_builtins.update(dict.fromkeys((range, list, tuple), SequenceFunctor))
of_builtins[np.ndarray] = NdarrayFunctor
