"""Door."""

from __future__ import annotations

from ndshare._system import _wire
from ndshare._system._wire import load_u64, selective
from ndshare._system.arguments import (
    check_callable,
    check_count,
    check_environment,
    check_runs,
    check_seconds,
    module_names,
    tuple_of,
    variables,
)
from ndshare._system.board import DONE, FAILED, UNDONE, Board, drop_spares, keep_spare, spare_size, take_spare
from ndshare._system.callers import warn_caller
from ndshare._system.cpus import default_workers, processors, set_inside_worker
from ndshare._system.platform import (
    descriptors_in_flight,
    is_alive,
    is_byte_locked,
    lock_byte,
    reopen,
    require_linux,
    unlock_byte,
)

__all__ = [
    "DONE",
    "FAILED",
    "UNDONE",
    "Board",
    "_wire",
    "check_callable",
    "check_count",
    "check_environment",
    "check_runs",
    "check_seconds",
    "default_workers",
    "descriptors_in_flight",
    "drop_spares",
    "is_alive",
    "is_byte_locked",
    "keep_spare",
    "load_u64",
    "lock_byte",
    "module_names",
    "processors",
    "reopen",
    "require_linux",
    "selective",
    "set_inside_worker",
    "spare_size",
    "take_spare",
    "tuple_of",
    "unlock_byte",
    "variables",
    "warn_caller",
]
