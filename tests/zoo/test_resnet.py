import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.zoo.architectures import build_module
from jmpq.zoo.resnet import ResNetCIFAR, shortcut_a
from jmpq.zoo.weights_torchvision import abstract_variables


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def paper_parameters(depth: int) -> int:
    """Kernels, two numbers per normalised channel, the dense layer: counted from the paper."""
    n, total, before = (depth - 2) // 6, 9 * 3 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        total += 9 * before * width + (2 * n - 1) * 9 * width * width + 2 * n * 2 * width
        before = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "with_statistics"),
    [(20, 271_098), (32, 466_426), (44, 661_754), (56, None), (110, None)],
)
def test_parameter_counts_are_those_of_the_paper_and_the_published_files(
    depth, with_statistics
):
    variables = abstract_variables(build_module(f"resnet{depth}"), (32, 32, 3))
    assert count(variables["params"]) == paper_parameters(depth)
    if with_statistics:
        assert count(variables) == with_statistics


def test_paths_follow_the_published_names():
    params = abstract_variables(ResNetCIFAR(depth=20), (32, 32, 3))["params"]
    assert set(params) == {"conv1", "bn1", "layer1", "layer2", "layer3", "linear"}
    assert set(params["layer2"]) == {"0", "1", "2"}
    assert set(params["layer2"]["0"]) == {"conv1", "bn1", "conv2", "bn2"}


def test_default_call_is_evaluation_and_independent_of_the_batch():
    module = ResNetCIFAR(depth=6, widths=(4, 7), num_classes=3)
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1), jnp.float32)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    apply = jax.jit(module.apply)
    together = apply(variables, x)
    assert together.shape == (5, 3)
    assert together.dtype == jnp.float32
    # an example's logits do not depend on its neighbours
    others = apply(variables, jnp.concatenate([x[:1], 3 * x[1:]]))
    np.testing.assert_allclose(others[0], together[0], rtol=1e-5)
    assert np.abs(others[1:] - together[1:]).max() > 1e-2
    _, updates = jax.jit(lambda v: module.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables
    )
    moved = updates["batch_stats"]["bn1"]["mean"] - variables["batch_stats"]["bn1"]["mean"]
    assert np.abs(moved).max() > 1e-3


def test_shortcut_subsamples_and_pads_channels_on_both_sides():
    x = jnp.arange(2 * 4 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 4, 2)
    y = shortcut_a(x, 5, 2)
    assert y.shape == (2, 2, 2, 5)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    assert not y[..., [0, 3, 4]].any()


def test_depth_that_fits_no_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match=r"depth=21 does not fit 3 stages.*8, 14, 20"):
        abstract_variables(ResNetCIFAR(depth=21), (32, 32, 3))


def test_no_stage_is_refused():
    with pytest.raises(ValueError, match="`widths` is empty"):
        abstract_variables(ResNetCIFAR(widths=()), (32, 32, 3))


def test_shrinking_widths_are_refused():
    with pytest.raises(ValueError, match=r"widths=\(16, 8\) shrink"):
        abstract_variables(ResNetCIFAR(depth=6, widths=(16, 8)), (32, 32, 3))
