"""Door."""

from __future__ import annotations

from ndshare._dict.listing import infos, prune
from ndshare._dict.shared_dict import SharedDict

__all__ = [
    "SharedDict",
    "infos",
    "prune",
]
