"""Data sets in memory, fixed splits, batches (import the modules)."""
