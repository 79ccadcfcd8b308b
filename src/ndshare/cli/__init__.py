"""The ``ndshare`` command and its sub-commands."""

from __future__ import annotations

from ndshare.cli.main import main

__all__ = ["main"]
