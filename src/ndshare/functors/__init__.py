"""What can be mapped over: one functor class per kind of collection, and the search for the right one.

::

    find(obj) ──► Functor ──► split(num_workers) ──► shares ──► iterate(share) ──► (index, value), ...

Importing this package imports none of the libraries it knows; whether one is there is looked up in
``sys.modules``, since an object of it cannot exist otherwise.
"""

from __future__ import annotations

from ndshare.functors.base import Functor, count_items, find, gen_split_slices, of_builtins
from ndshare.functors.hdf5 import HDF5Functor
from ndshare.functors.iterators import IteratorFunctor
from ndshare.functors.labelled import DataArrayFunctor, DatasetFunctor
from ndshare.functors.sequences import NdarrayFunctor, SequenceFunctor, numbers_of, values_of
from ndshare.functors.tables import DataFrameFunctor, GroupByFunctor, SeriesFunctor
from ndshare.functors.trains import ExtraDataFunctor
from ndshare.functors.zarrays import ZarrFunctor

__all__ = [
    "DataArrayFunctor",
    "DataFrameFunctor",
    "DatasetFunctor",
    "ExtraDataFunctor",
    "Functor",
    "GroupByFunctor",
    "HDF5Functor",
    "IteratorFunctor",
    "NdarrayFunctor",
    "SequenceFunctor",
    "SeriesFunctor",
    "ZarrFunctor",
    "count_items",
    "find",
    "gen_split_slices",
    "numbers_of",
    "values_of",
]

of_builtins.update(dict.fromkeys((range, list, tuple), SequenceFunctor))
