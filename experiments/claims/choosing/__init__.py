"""Claims on allocations that metrics and solvers choose."""
