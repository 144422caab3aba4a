"""Quantizers: from a float network to its kernels and inputs on integer grids.

For everybody who quantizes. Start with `calibrate.calibrate_quantizers`: it gives the
`fake_quant.Quantizers` of a network, scales of every kernel and every input at several
bit-widths at once. `quantized_logits` then runs the network under any allocation: bits are
traced values, so one compiled program serves them all. The float network is not changed.

By default kernels are on a symmetric grid, a scale per output channel, inputs on an affine
grid, one scale each, both clipped where the mean squared error is least. Rounding to nearest
is the default; ``gptq`` leaves less error in each layer's output for a pass over the examples
and some linear algebra, ``adaround`` by gradient descent, which takes longer. Bits are 1 or 2
to 16, and 32 for unquantized.

- `spec`: `KernelSpec`, `InputSpec`: all that decides a grid besides the bits. No JAX.
- `calibrate`: all quantizers at once. `calibration`: scales from values, block by block.
- `uniform`: the grids themselves; rounding passes gradients straight through.
- `fake_quant`: scales as a value, the quantized network. `widths`: one bit-width at a time.
- `rounding`: integer codes other than the nearest, layer by layer, by `gptq` or `adaround` on
  the second moments of the inputs (`layer_hessian`).
- `learned`: scales of one allocation, to be learned (LSQ). `products`: attention products.

To add an integer grid, name it in `spec.Grid`, give its codes in `uniform.code_range` and its
scale in `uniform.scale_of_range`, its least bits in `spec.check_bits`. A clipping is a case of
`calibration.calibrate`. A rounding is a function with the arguments of `round_by_hessian`,
named in `spec.Rounding` and in `rounding.hessian_codes`. A grid with zero points is also asked
for by name in `calibration`, in `rounding.code_dtype`, in `jmpq.problem.costs` and in
`jmpq.deploy.finetuned`. A format that is not an integer grid has no home yet: it would enter
where values meet a grid (`uniform.fake_quantize`, called by ``Scales.quantize`` and
`fake_quant`), and `learned`, `jmpq.formats.Choice` and the costs assume integers too.
"""
