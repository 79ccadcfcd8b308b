"""Room of `SharedDict`: named arrays that many processes read and update, and what removes dead ones.

::

    process A                    /dev/shm, one file                          process B
    SharedDict(arrays, name) ──▶ header │ directory │ cells │ slots    ◀── SharedDict.attach(name)
    update, write, locked   ──▶  lock of the key │ idle slot │ one store ──▶ d[key], read, view, wait

From the ground up: `_store` (C) decides between processes: slots, locks, copies. `layout` says what the file
begins with, `files` how it is made, held, listed and removed, `snapshot` what goes to disk, `life` what forks
and the end of a process mean for it. `reading`, `writing` and `shared_dict` are the class;
`watching` looks at the dicts of others.

Guarantees
----------
* A reader never sees a half-written value, nor a part of what was written to several keys as one.
* Who dies, at any instant, holds no lock any more, and what it had begun has no effect.
* Attaching runs no code of the maker, whatever the bytes of the file are.

Not guaranteed
--------------
* Anything against programs of the same user that write to the file past this room.
"""

from __future__ import annotations

from ndshare._dict.files import infos, prune
from ndshare._dict.shared_dict import SharedDict
from ndshare._dict.watching import DictState, states

__all__ = [
    "DictState",
    "SharedDict",
    "infos",
    "prune",
    "states",
]
