"""Shared memory: segments that are made, filled, lent, received, recycled and given back, and who uses them.

Everything that moves arrays between processes, or makes them shared, takes its memory here::

    one process                                        another process
    _arrays, _transport, _dict ...
       │ allocate / stage / seal                          attach
       ▼                                                    ▼
    Block ── Block.lend: a descriptor of its own, with a lock, in a message ──▶ Block ── Block.array ──▶ array
       ▲
       │ block_of                       the kernel counts: once the last array there is gone, the descriptor
    array                               is closed and the memory is reused here

`_heap` (C) is the allocator, also as NumPy's own (`shared_memory`, `install_handler`); `segments` what the
rest of ndshare sees of it; `layout` how an array lies in its memory; `scratch` which arrays may be lost.

Guarantees
----------
* Nothing has a name, so nothing is left behind, whatever dies. What was lent is reused only when nobody
  holds it.
* A request that does not fit raises `CapacityError` before anything is taken; nothing ends in SIGBUS.
* What NumPy asks for inside `shared_memory` is never refused: what does not fit is ordinary memory.
* A forked child never sees its parent's by-value arrays change, nor the parent the child's.

Not guaranteed
--------------
* Idle memory is kept warm, up to a limit: `trim` gives it back.
* `stats` is a look at one moment; other threads go on.
"""

from __future__ import annotations

from ndshare._memory._heap import altered, detach, digest, idle_bytes, inherited, rewritten
from ndshare._memory.copying import copy_array
from ndshare._memory.layout import (
    decode_dtype,
    dense_strides,
    encode_dtype,
    is_movable,
    lead_in,
    may_overlap_itself,
    span,
    view_of,
)
from ndshare._memory.scratch import is_scratch, marked, reduce_marked, scratch
from ndshare._memory.segments import (
    COPY,
    SEALED,
    SHARED,
    VALUE,
    Block,
    Stats,
    allocate,
    attach,
    attach_file,
    available,
    before_trim,
    block_of,
    forget_owner,
    idle_limit,
    install_handler,
    is_shared,
    ledger_attach,
    ledger_clear,
    ledger_create,
    ledger_detach,
    ledger_held,
    owner_prefix,
    parse_size,
    readable_bytes,
    recycled_memory,
    seal,
    set_idle_limit,
    shared_memory,
    should_copy_out,
    sparse,
    stage,
    stats,
    trim,
    value_handler,
)
from ndshare._memory.watching import HeapFigures, ledger

__all__ = [
    "COPY",
    "SEALED",
    "SHARED",
    "VALUE",
    "Block",
    "HeapFigures",
    "Stats",
    "allocate",
    "altered",
    "attach",
    "attach_file",
    "available",
    "before_trim",
    "block_of",
    "copy_array",
    "decode_dtype",
    "dense_strides",
    "detach",
    "digest",
    "encode_dtype",
    "forget_owner",
    "idle_bytes",
    "idle_limit",
    "inherited",
    "install_handler",
    "is_movable",
    "is_scratch",
    "is_shared",
    "lead_in",
    "ledger",
    "ledger_attach",
    "ledger_clear",
    "ledger_create",
    "ledger_detach",
    "ledger_held",
    "marked",
    "may_overlap_itself",
    "owner_prefix",
    "parse_size",
    "readable_bytes",
    "recycled_memory",
    "reduce_marked",
    "rewritten",
    "scratch",
    "seal",
    "set_idle_limit",
    "shared_memory",
    "should_copy_out",
    "span",
    "sparse",
    "stage",
    "stats",
    "trim",
    "value_handler",
    "view_of",
]
