"""The quadratic objective: matrices of real networks, and rivals that solve them."""
