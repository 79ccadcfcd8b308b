"""What the rooms above ask of the system, and checks that every face makes.

`platform` is the facts of the machine, system calls, and how many workers make sense; `board` what the
processes of one map tell each other; `threads` those that Python did not start; `arguments` checks of what
users pass, and warnings at their line; `doors` loads files of a room when they are needed; `progress` the
bar of everything that has one. `_wire` is a namespace of functions in C: messages with descriptors, atomics
in shared memory, the shield against Ctrl-C between two lines that belong together. Every C extension begins
and ends with `extension.h`.

Guarantees
----------
* Nothing here starts a process or a thread, or keeps a file open.
* Functions of `_wire` that cannot block keep the GIL, those that can give it up; none needs it.

Not guaranteed
--------------
* Anything on other systems than Linux: `require_linux` says so at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ndshare._system import _wire
from ndshare._system._wire import load_u64, selective
from ndshare._system.arguments import (
    callable_name,
    check_callable,
    check_count,
    check_environment,
    check_runs,
    check_seconds,
    code_of,
    module_names,
    tuple_of,
    variables,
    warn_caller,
    within_partials,
)
from ndshare._system.doors import later
from ndshare._system.platform import (
    cpu_quota,
    default_workers,
    descriptors_in_flight,
    is_alive,
    is_byte_locked,
    lock_byte,
    process_memory,
    processors,
    reopen,
    require_linux,
    set_inside_worker,
    unshared_memory,
)

if TYPE_CHECKING:
    from ndshare._system.board import (
        DONE,
        FAILED,
        UNDONE,
        Board,
        drop_spares,
        keep_spare,
        spare_size,
        take_spare,
    )
    from ndshare._system.pinning import cpu_sets
    from ndshare._system.progress import Bar, Progress, progress_of
    from ndshare._system.threads import (
        THREAD_NAME,
        blas_controller,
        fork_hazards,
        limit_child,
        native_threads,
        own_thread,
    )
    from ndshare._system.timeline import Moment, Slice, Timeline

__all__ = [
    "DONE",
    "FAILED",
    "THREAD_NAME",
    "UNDONE",
    "Bar",
    "Board",
    "Moment",
    "Progress",
    "Slice",
    "Timeline",
    "_wire",
    "blas_controller",
    "callable_name",
    "check_callable",
    "check_count",
    "check_environment",
    "check_runs",
    "check_seconds",
    "code_of",
    "cpu_quota",
    "cpu_sets",
    "default_workers",
    "descriptors_in_flight",
    "drop_spares",
    "fork_hazards",
    "is_alive",
    "is_byte_locked",
    "keep_spare",
    "later",
    "limit_child",
    "load_u64",
    "lock_byte",
    "module_names",
    "native_threads",
    "own_thread",
    "process_memory",
    "processors",
    "progress_of",
    "reopen",
    "require_linux",
    "selective",
    "set_inside_worker",
    "spare_size",
    "take_spare",
    "tuple_of",
    "unshared_memory",
    "variables",
    "warn_caller",
    "within_partials",
]

# What workers, or programs that only make shared arrays, have no use for.
__getattr__ = later(
    __name__,
    {
        "board": (
            "DONE",
            "FAILED",
            "UNDONE",
            "Board",
            "drop_spares",
            "keep_spare",
            "spare_size",
            "take_spare",
        ),
        "pinning": ("cpu_sets",),
        "progress": ("Bar", "Progress", "progress_of"),
        "threads": (
            "THREAD_NAME",
            "blas_controller",
            "fork_hazards",
            "limit_child",
            "native_threads",
            "own_thread",
        ),
        "timeline": ("Moment", "Slice", "Timeline"),
    },
)
