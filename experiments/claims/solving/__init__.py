"""Claims on solvers."""
