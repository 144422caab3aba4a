"""Benchmarks: speed and memory beside rivals, as ratios."""
