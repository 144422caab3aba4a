"""Knapsacks: a loss that is a sum over layers, under one budget or several."""
