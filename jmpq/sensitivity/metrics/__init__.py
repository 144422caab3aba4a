"""Metrics: one file a method."""
