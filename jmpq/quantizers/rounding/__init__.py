"""Rounding of kernels that uses the layers' inputs to reduce the error of their outputs.

For those who want less error than rounding to nearest, the default, which costs nothing. The
squared error of a layer's output is tr(ΔHΔᵀ), where Δ is the error of the kernel and H the
second moment matrix of the layer's inputs. Both methods reduce it layer by layer, for every
scheme at once.

If in doubt, use ``gptq``. It needs one pass over the calibration examples and some linear
algebra, and no row of a kernel gets a larger error than by rounding to nearest.

- `codes`: `hessian_codes`, the codes of all kernels, journalled layer by layer so that an
  interrupted run resumes. Embeddings are rounded to nearest, because their H is diagonal.
- `gptq`: column by column; each column compensates the errors of those before it.
- `adaround`: every weight up or down, by gradient descent; it takes longer.
- `layer_hessian`: H of every layer, in the float network.
- `code_lines`: the codes of a scheme: integers, or values of a float format.

Scales are calibrated first and do not change.

To add a rounding, write a function with the arguments of `gptq.round_by_hessian`, name it in
`jmpq.quantizers.spec.Rounding` and in `codes.hessian_codes`.
"""
