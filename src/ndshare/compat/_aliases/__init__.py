"""Modules whose import installs one of the drop-in modules: for workers, by ``preload``."""
