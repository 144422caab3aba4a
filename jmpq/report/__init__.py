"""Figures, tables and one HTML page from the artifacts of a run folder; needs no JAX."""
