"""HAWQ-V2's traces: exact against dense Hessians of a ReLU network, probes around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_activations, calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.sensitivity.analyse import analyse, estimate_batch
from jmpq.sensitivity.metrics.hawq_trace import USEFUL_PROBES, HawqTrace
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy, squared_error
from tests import helpers
from tests.sensitivity.dense import A_BITS, W_BITS

CHOICES = choice_grid(W_BITS, A_BITS)


class Piecewise:
    """A ReLU network, its batches, and the dense Hessian's traces by move."""

    def __init__(self):
        self.network = helpers.residual_cnn(3, activation="relu")
        self.inputs, self.labels = helpers.images(5, 6)
        self.moves = moves_of(self.network, self.inputs)
        self.batches = [(self.inputs, self.labels)]

    def losses(self, loss, targets):
        """½ Tr(H_i)/n_i · ‖δ_i‖² of every choice, H by `jax.hessian` of the mean loss."""
        kernels = self.network.kernels()
        zero = [jnp.zeros(())] * 4
        _, seen = helpers.manual_logits(self.network, kernels, zero, self.inputs, jax.nn.relu)
        point, unravel = ravel_pytree((kernels, [jnp.zeros_like(x) for x in seen]))

        def mean_loss(w):
            logits, _ = helpers.manual_logits(
                self.network, *unravel(w), self.inputs, jax.nn.relu
            )
            return jax.vmap(loss)(logits, targets).mean()

        by_kernel, by_shift = unravel(jnp.diag(jax.jit(jax.hessian(mean_loss))(point)))
        curvature = []
        for kernel, shift in zip(by_kernel, by_shift, strict=True):
            by_input = float(shift.sum()) / (shift.size / len(self.inputs))
            curvature += [float(kernel.mean())] * 2 + [by_input] * 2
        squares = analyse(self.moves, SquaredError(), self.batches, CHOICES)
        return squares.members @ (np.array(curvature) * 0.5 * squares.second / 2)


def moves_of(network, inputs):
    return MoveNetwork(
        network=network,
        quantizers=Quantizers(
            weights=calibrate_weights(network, KernelSpec(clipping="minmax"), W_BITS),
            activations=calibrate_activations(
                network, InputSpec(clipping="minmax"), A_BITS, [inputs], key=jax.random.key(0)
            ),
        ),
    )


@pytest.fixture(scope="module")
def piecewise():
    return Piecewise()


def test_exact_traces_are_those_of_the_dense_hessian(piecewise):
    found = analyse(piecewise.moves, HawqTrace(traces="exact"), piecewise.batches, CHOICES)
    want = piecewise.losses(cross_entropy, piecewise.labels)
    np.testing.assert_allclose(found.losses, want, rtol=1e-9)
    assert (found.losses > 0).all()


def test_exact_traces_of_a_regression(piecewise):
    targets = jax.random.normal(jax.random.key(1), (6, 3))
    data = [(piecewise.inputs, targets)]
    metric = HawqTrace(traces="exact", loss=squared_error)
    found = analyse(piecewise.moves, metric, data, CHOICES)
    np.testing.assert_allclose(
        found.losses, piecewise.losses(squared_error, targets), rtol=1e-9
    )


def test_probes_are_within_five_standard_errors_of_exact_traces(piecewise):
    data = [(piecewise.inputs, piecewise.labels)] * 40
    probes = analyse(piecewise.moves, HawqTrace(traces="probes", num_probes=20), data, CHOICES)
    exact = analyse(piecewise.moves, HawqTrace(traces="exact"), data[:1], CHOICES)
    assert np.all(np.abs(probes.losses - exact.losses) < 5 * probes.sem)


def test_what_was_taken_and_why_is_recorded(piecewise, dense):
    found = analyse(piecewise.moves, HawqTrace(), piecewise.batches, CHOICES)
    exact = analyse(piecewise.moves, HawqTrace(traces="exact"), piecewise.batches, CHOICES)
    np.testing.assert_array_equal(found.second, exact.second)
    assert found.provenance["prepared"] == {
        "traces": "exact",
        "why": "piecewise linear, 3 outputs cost less than 50 probes",
        "outputs": 3,
    }
    assert exact.provenance["note"] == "traces: exact (asked for)"
    smooth = dense.analyse(HawqTrace(num_probes=2))
    assert smooth.provenance["prepared"]["traces"] == "probes"
    assert smooth.provenance["note"].startswith("traces: 2 probes a batch (something between")
    asked = dense.analyse(HawqTrace(num_probes=2, traces="probes"))
    np.testing.assert_array_equal(asked.second, smooth.second)


def test_exact_traces_are_refused_where_the_hessian_is_another_matrix(dense):
    with pytest.raises(ValueError, match=r"something between its layers is curved.*'probes'"):
        dense.analyse(HawqTrace(traces="exact"))
    x = jax.random.normal(jax.random.key(0), (3, 3))
    twice = Network.from_function(
        lambda p, x: jax.nn.relu(x @ p["w"]) @ p["w"], {"w": jnp.eye(3)}, x, tied=("w",)
    )
    assert HawqTrace().way(twice) == ("probes", "the kernel of layer 'w' is used 2 times")
    with pytest.raises(ValueError, match="but the kernel of layer 'w' is used 2 times"):
        HawqTrace(traces="exact").way(twice)


def test_many_outputs_take_probes():
    params = {"w": jnp.ones((4, USEFUL_PROBES + 1))}
    wide = Network.from_function(lambda p, x: x @ p["w"], params, jnp.ones((2, 4)))
    assert HawqTrace().way(wide) == ("probes", "51 outputs cost more than 50 probes")
    assert HawqTrace(num_probes=60).way(wide)[0] == "exact"
    assert HawqTrace(traces="exact").way(wide)[0] == "exact"


def test_memory_of_exact_traces_is_known_before_the_start(piecewise):
    data = [(piecewise.inputs, piecewise.labels)]
    exact = estimate_batch(HawqTrace(traces="exact"), piecewise.moves, data)
    assert exact is not None
    assert exact.bytes > 0
