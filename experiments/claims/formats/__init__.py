"""Claims on number formats: of kernels, and of keys and values."""
