"""Door."""

from __future__ import annotations

from ndshare._workspace.workspace import Workspace

__all__ = [
    "Workspace",
]
