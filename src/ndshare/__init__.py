"""Shared-memory NumPy arrays for parallel Python."""
