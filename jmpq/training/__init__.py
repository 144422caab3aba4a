"""Losses, float training and the evaluation of any parameters (import the modules)."""
