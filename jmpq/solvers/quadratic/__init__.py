"""Quadratic knapsacks: a loss with cross-layer terms."""
