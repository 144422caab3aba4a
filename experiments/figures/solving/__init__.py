"""Tables and figures of the solver benchmarks."""
