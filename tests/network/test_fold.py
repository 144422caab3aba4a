import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.fold import fold_batch_norm
from jmpq.zoo.mobilenet import MobileNetV1
from jmpq.zoo.squeezenet import SqueezeNet


class Mixed(nn.Module):
    """Layers with and without bias, norms with and without scale, one that cannot fold."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = lambda name, **options: nn.BatchNorm(  # noqa: E731
            use_running_average=not train, name=name, param_dtype=x.dtype, **options
        )
        x = norm("conv_bn", use_bias=False)(
            nn.Conv(4, (3, 3), feature_group_count=2, name="conv", param_dtype=x.dtype)(x)
        )
        x = norm("after_relu")(nn.relu(x)).mean((1, 2))
        return norm("dense_bn", use_scale=False)(
            nn.Dense(3, name="dense", param_dtype=x.dtype)(x)
        )


def random_variables(module, x, seed=0):
    rng = np.random.default_rng(seed)
    structs = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.2, 1.2, s.shape), x.dtype), structs)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Mixed(), (2, 5, 5, 2)),
        (MobileNetV1(width=0.25, num_classes=3, blocks=((64, 2), (64, 1))), (2, 16, 16, 3)),
    ],
)
def test_folding_does_not_move_the_logits(module, shape):
    x = jax.random.normal(jax.random.key(3), shape)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = random_variables(module, x)
        before = jax.tree.map(np.array, variables)
        folded = fold_batch_norm(module, variables, x)
        apply = jax.jit(module.apply)
        want, got = apply(variables, x), apply(folded, x)
    jax.tree.map(np.testing.assert_array_equal, variables, before)  # a pure function
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    np.testing.assert_allclose(got, want, rtol=1e-5 if want.dtype == jnp.float32 else 1e-9)
    assert not np.allclose(want, 0)


def test_folded_norms_only_add_and_kernels_are_scaled_by_channel():
    module, x = Mixed(), jnp.ones((1, 5, 5, 2))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = random_variables(module, x)
        folded = fold_batch_norm(module, variables, x)
    old, new = variables["params"], folded["params"]
    var = variables["batch_stats"]["conv_bn"]["var"]
    factor = np.asarray(old["conv_bn"]["scale"] / np.sqrt(var + 1e-5))
    np.testing.assert_allclose(
        new["conv"]["kernel"], np.asarray(old["conv"]["kernel"]) * factor
    )
    np.testing.assert_allclose(new["conv"]["bias"], old["conv"]["bias"] * factor)
    np.testing.assert_array_equal(new["conv_bn"]["scale"], np.ones(4))
    np.testing.assert_allclose(folded["batch_stats"]["conv_bn"]["var"], 1 - 1e-5)
    np.testing.assert_array_equal(new["after_relu"]["scale"], old["after_relu"]["scale"])
    np.testing.assert_array_equal(folded["batch_stats"]["dense_bn"]["mean"], np.zeros(3))


def test_a_layer_that_is_called_twice_is_not_folded():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(2, name="dense")
            norm = nn.BatchNorm(use_running_average=True, name="norm")
            return norm(dense(dense(x)))

    x = jnp.ones((1, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = Twice().init(jax.random.key(0), x)
        with pytest.raises(ValueError, match="Twice has no batch normalisation that reads"):
            fold_batch_norm(Twice(), variables, x)


def test_nothing_to_fold_is_an_error():
    module, x = SqueezeNet(num_classes=2), jnp.ones((1, 32, 32, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        with pytest.raises(ValueError, match="nothing to fold"):
            fold_batch_norm(module, variables, x)
