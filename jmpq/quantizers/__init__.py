"""Quantizers: grids, granularity, clipping; fake quantization with traced bit-widths."""
