"""Curvature of any scalar function of any pytree; knows nothing of quantization or layers.

For those who want Hessians for their own ends; the metrics of `jmpq.sensitivity` are built on
it. Losses are taken as given, a mean over examples with batch statistics frozen.

Start with `hvp.hessian`: ``product = hessian(loss)`` is a compiled function ``product(params,
v)`` = Hv. Every estimator takes such a product, so that the Gauss-Newton matrix
(`ggn.ggn_product`) or a mean over many batches (`hvp.hessian_over`) serves as well. Loops run
on the host over one compiled product: inside a compiled loop a CPU is far slower.

- `hvp`: products, and the second-order increase ½ δᵀHδ along a perturbation.
- `ggn`: Gauss-Newton products and matrices, through the logits.
- `trace`: traces of every block from one set of probes, each with its standard error.
- `ggn_trace`: Gauss-Newton traces without probes, exactly; prefer it where there are few
  classes.
- `eigen`: extreme eigenpairs with measured residuals; prefer it to `power`, the iteration of
  the HAWQ papers, which does not notice what it missed.
- `spectrum`: the density of all eigenvalues.
- `blocks`: a function of some parameters, the others held. `krylov`: bases of vectors.

An estimate returns its standard error (`trace.Estimate`) or its residual (`eigen.EigenPairs`);
negative curvature is never clipped. A product that is not finite raises an error.

To add an estimator, write a file here that takes a `hvp.Product` and `params`. Tests compare
with the dense Hessian in float64, and with other packages where they are installed.
"""
