"""Networks: the user's own function, its parameters, its layer table, access to its layers.

Start with `network.Network`: `from_linen`, `from_nnx` or `from_function`. The model is never
wrapped or rewritten. Its function is traced once to a jaxpr; every convolution, matrix product
or embedding lookup with exactly one operand that is a parameter is a layer.

A `sites.Site` is one use of a layer. ``network.run(inputs, transform)`` evaluates the network
with ``transform(site, x, op)`` at every site, where ``op(x)`` is the original operation and
``op(x, kernel)`` the same with another kernel: enough to record, perturb or quantize.
``network.logits(inputs)`` is the plain pass, bit-identical to the user's function.

How it works, from the bottom up:

- `walk`: one walk over a jaxpr; a rule says what an equation does to the values that flow.
- `sites`: an operation with a kernel, its geometry, and its use in a network.
- `unroll`: loops over stacked layers written out, so that ``layers/mlp/kernel[3]`` is a kernel.
- `tap`: finds the operations behind one output of a function, evaluates it with a callback at
  each, and says which kernels it cannot reach and why.
- `independence`: whether an example's output depends on the rest of its batch.
- `network`: layers by name, sites, runs.

Rules of the same walk read the graph: `ties` (layers that should share bits), `channels`
(layers between which channels may be scaled), `piecewise` (no curvature but by products,
outputs that are probabilities).
Transforms give another network: `fold` (batch normalisation), `equalize` (ranges of channels,
caps); `precision` runs the products in a lower precision. `patches` writes a layer as a
matrix product. `layers` is the layer table by itself, which needs no JAX; `tree_paths` names
the leaves of parameters and the pieces of those that are stacks.

To add a built-in network, see `jmpq.zoo`. To add a kind of layer, name it in `layers.Kind`,
find its equation in `tap` and give its geometry in `sites`. To add a tie, name it in
``layers.TieKind``, find its groups in `ties`, and say it in the help of ``Solve.tie``
(`jmpq.run.options`).
"""

from jmpq.lazy import attach

_HOMES = {
    "network": ("Network",),
    "layers": ("Layer", "layers_from_json", "layers_to_json"),
    "sites": ("Op", "Site"),
    "tap": ("Tap",),
    "fold": ("fold_batch_norm",),
    "equalize": ("equalize_ranges",),
    "piecewise": ("piecewise_linear",),
}
__getattr__, __dir__, __all__ = attach(
    __name__, _HOMES, ("channels", "layers", "patches", "precision", "sites", "ties", "walk")
)
