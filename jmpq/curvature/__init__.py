"""Curvature of any scalar function of any pytree; knows nothing of quantization."""
