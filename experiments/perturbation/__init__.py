"""One perturbation at a time: what a layer's rounding costs, and what curvature says of it."""
