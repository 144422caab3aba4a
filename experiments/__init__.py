"""Experiments: one file a result, results/*.json; figures are redrawn from these alone."""
