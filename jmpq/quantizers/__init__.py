"""Quantizers: from a float network to its kernels and inputs in number formats.

For everybody who quantizes. Start with `calibrate.calibrate_quantizers`. It returns
`scales.Quantizers`: scales of every kernel and every layer input for several schemes at once,
given as bit-widths or as names such as ``mxfp4``. `fake_quant.quantized_logits` then runs the
network under any allocation. Schemes are traced values, so one compilation serves all
allocations. The float network is not changed.

By default a kernel has a symmetric grid with one scale per output channel, and an input has an
affine grid with one scale. Both are clipped at the least mean squared error and rounded to
nearest. ``gptq`` reduces the output error of each layer at the price of one pass over the
examples and some linear algebra. ``adaround`` does so by gradient descent and takes longer.

Activations are quantized at the inputs of layers. ``InputSpec(placement="stream")`` also
quantizes outputs that are added, concatenated or pooled, which fast integer runtimes need.
Every stage then sees the network as it is deployed.

- `spec`: `KernelSpec` and `InputSpec`, every option of a grid besides the scheme. No JAX.
- `calibrate`: scales of a whole network, or of its kernels, inputs or stream alone.
- `clipping`: scales from values, block by block.
- `number_line`: one rounding formula for floats and integers. `uniform`: the same with scales
  and clipping; gradients are straight-through.
- `scales`: `Scales` and `Quantizers`, which are hashed and stored. `widths`: the same, split
  and joined by scheme. `fake_quant`: the quantized network under any allocation.
- `stream`: tensors between layers that an integer runtime keeps as integers.
- `integer_bias`: int32 biases of integer kernels. `products`: attention, keys and values.
- `tiling`: blocks of several schemes on one tensor; the last block of a row may be shorter.
  `dynamic`: block scales that are computed from each input (MX, NVFP4).
- `rounding/`: GPTQ and AdaRound, layer by layer.
- `learned`: scales of one allocation as trainable values (LSQ).

To add a format, append a family to `jmpq.formats`. If its scales are of a new kind, add their
rule to `number_line`, their bytes to `jmpq.problem.costs` and their codes to
`jmpq.export.float_codes`. To add an integer grid, name it in
`spec.Grid` and extend `uniform.code_range`, `uniform.scale_of_range` and `spec.check_bits`. If
it has zero points, also extend `clipping`, `rounding.codes`, `jmpq.problem.costs` and
`jmpq.deploy.finetuned`. To add a clipping, add a case to `clipping.calibrate`. To add a
rounding, name it in `spec.Rounding` and in ``rounding.codes.hessian_codes``.
"""
