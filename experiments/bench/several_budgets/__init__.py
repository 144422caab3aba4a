"""Many tight budgets at once: `instances` to solve, and `measure`, which solves them.

The instances are the public ones of the multidimensional multiple-choice knapsack, where they
are at hand, and tables of ResNet-20 scaled up to many layers.
"""
