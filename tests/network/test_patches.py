"""Input rows times the kernel's matrix are the operation itself, whatever its geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from jmpq.network.patches import input_rows, output_feature_axes

CONVOLUTIONS = {
    "plain": ((3, 3, 4, 6), {}),
    "strided": ((3, 2, 4, 6), {"window_strides": (2, 3), "padding": ((1, 1), (0, 1))}),
    "dilated": ((3, 3, 4, 6), {"rhs_dilation": (2, 1), "padding": ((2, 2), (1, 1))}),
    "transposed": ((3, 3, 4, 6), {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 1))}),
    "cropped": ((2, 2, 4, 6), {"padding": ((-1, 0), (0, -2))}),
    "grouped": ((3, 3, 2, 6), {"feature_group_count": 2, "padding": "SAME"}),
    "depthwise": ((3, 3, 1, 8), {"feature_group_count": 4, "padding": "SAME"}),
    "channels first": ((6, 4, 3, 2), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "transposed kernel": ((4, 2, 3, 6), {"dimension_numbers": ("NHWC", "IWHO", "NWHC")}),
}
PRODUCTS = {
    "dense": ("nf,fo->no", (4, 5)),
    "kernel first": ("of,ntf->ont", (5, 4)),
    "two contracted": ("nthf,hfo->nto", (3, 4, 5)),
    "heads out": ("ntf,fhd->nthd", (4, 3, 2)),
    "batch of kernels": ("hnf,hfo->hno", (3, 4, 5)),
}


def convolution(shape, options):
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    options.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    first = options["dimension_numbers"][0] == "NCHW"
    example = jnp.zeros((2, 4, 6, 7) if first else (2, 6, 7, 4))

    def apply(params, x):
        return jax.lax.conv_general_dilated(x, params["w"], **options)

    return apply, shape, example


def product(equation, shape):
    example = {"nf": (2, 4), "ntf": (2, 3, 4), "nthf": (2, 3, 3, 4), "hnf": (2, 3, 4)}
    inputs = next(part for part in equation.split("->")[0].split(",") if "n" in part)

    def apply(params, x):
        if inputs == "hnf":  # the batch axis comes first outside
            x = x.transpose(1, 0, 2)
        y = jnp.einsum(equation, *((params["w"], x)[:: 1 if equation[0] == "o" else -1]))
        return jnp.moveaxis(y, equation.split("->")[1].index("n"), 0)

    return apply, shape, jnp.zeros(example[inputs])


@pytest.mark.parametrize(
    ("apply", "shape", "example"),
    [
        *(pytest.param(*convolution(*c), id=name) for name, c in CONVOLUTIONS.items()),
        *(pytest.param(*product(*p), id=name) for name, p in PRODUCTS.items()),
    ],
)
def test_input_rows_times_the_matrix_is_the_operation(apply, shape, example):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=shape))}
    network = Network.from_function(apply, params, example)
    x = jnp.asarray(rng.normal(size=(3, *example.shape[1:])))
    seen = []

    def at_site(site, x, op):
        seen.append((site, x, op(x)))
        return seen[-1][2]

    network.run(x, at_site)
    ((site, data, y),) = seen
    rows = input_rows(site, data)
    matrix = network.to_matrix(0, params["w"]).reshape(len(rows), -1, rows.shape[2])
    got = jnp.einsum("gpc,goc->pgo", rows, matrix)
    axes = output_feature_axes(site)
    rest = [a for a in range(y.ndim) if a not in axes]
    want = y.transpose([*rest, *axes]).reshape(got.shape)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_an_embedding_has_neither_rows_nor_output_features():
    network = Network.from_function(
        lambda params, x: params["table"][x].sum(1),
        {"table": jnp.ones((5, 3))},
        jnp.zeros((2, 4), int),
    )
    (site,) = network.sites
    with pytest.raises(ValueError, match="no input rows"):
        input_rows(site, jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match="no output features"):
        output_feature_axes(site)
