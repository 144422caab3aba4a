"""ResNet-20 in float64: the same products and forms as PyHessian and curvlinops.

Runs where the extra `bench` is installed (README, "Against other tools").
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.part import Work
from jmpq.curvature.ggn_trace import ggn_block_traces
from jmpq.curvature.hvp import hessian_over
from jmpq.curvature.trace import random_signs
from jmpq.data.batches import make_batch
from jmpq.data.cifar10 import cifar10
from jmpq.network.network import Network
from jmpq.network.tree_paths import leaf_paths
from jmpq.training.losses import cross_entropy
from jmpq.zoo.architectures import build_module
from jmpq.zoo.published.files import torch_name
from jmpq.zoo.weights_torchvision import load_published

ABSENT = [n for n in ("torch", "pyhessian", "curvlinops") if not importlib.util.find_spec(n)]
pytestmark = [
    pytest.mark.skipif(
        bool(ABSENT), reason=f"{', '.join(ABSENT)} not installed: extra `bench`"
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # in linear_operator
]
IMAGES = 6


class Sides:
    """ResNet-20 on both sides in float64, on the first training images."""

    def __init__(self, shared_data):
        batch = make_batch(cifar10(shared_data).train, np.arange(IMAGES))
        path = shared_data / "cifar10" / "resnet20.safetensors"
        self.work = Work(
            config={"depth": 20, "num_classes": 10, "widths": (16, 32, 64), "peer_batch": 4},
            images=batch.inputs,
            labels=batch.labels,
            kernels=[],
            deltas=[],
            weights=path,
        )
        module = build_module("resnet20")
        to64 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)  # noqa: E731
        variables = to64(load_published(path, module))
        self.images = jnp.asarray(batch.inputs, jnp.float64)
        self.labels = jnp.asarray(batch.labels)
        self.network = Network.from_linen(module, variables, self.images[:1], train=False)
        names = leaf_paths(self.network.params)
        self.names = [torch_name(f"params/{name}") for name in names]

    def apply(self, params, images):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self.network.apply(params, images)

    def loss(self, params, batch):
        return jax.vmap(cross_entropy)(self.apply(params, batch[0]), batch[1]).mean()

    def product(self):
        rows = [(self.images[i : i + 2], self.labels[i : i + 2]) for i in range(0, IMAGES, 2)]
        return hessian_over(self.loss, rows, memory_bytes=1 << 30)

    def to_torch(self, tree):
        """By the published names, axes as in PyTorch."""
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
        leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
        return {n: x.transpose(axes[x.ndim]) for n, x in zip(self.names, leaves, strict=True)}


@pytest.fixture(scope="module")
def sides(shared_data):
    return Sides(shared_data)


def test_logits_and_products_agree(sides):
    import torch

    from experiments.bench import peers

    net = peers.model(sides.work, torch.float64)
    ((x, _),) = peers.data(sides.work, IMAGES, torch.float64)
    params = sides.network.params
    with torch.no_grad():
        want = net(x).numpy()
    np.testing.assert_allclose(sides.apply(params, sides.images), want, rtol=1e-6, atol=1e-8)

    signs = random_signs(params, jax.random.key(0))
    ours = sides.to_torch(sides.product()(params, signs))
    h = peers.PyHessian(sides.work, torch.float64)
    v = sides.to_torch(signs)
    probe = [torch.tensor(np.ascontiguousarray(v[name])) for name in h.names]
    scale = max(abs(x).max() for x in ours.values())
    for name, found in zip(h.names, h.product(probe), strict=True):
        np.testing.assert_allclose(ours[name], found, rtol=1e-6, atol=1e-8 * scale)
    flat = peers.curvlinops_operator(sides.work, None, torch.float64) @ torch.cat(
        [x.flatten() for x in probe]
    )
    joined = np.concatenate([ours[name].ravel() for name in h.names])
    np.testing.assert_allclose(joined, flat.detach(), rtol=1e-6, atol=1e-8 * scale)


def test_exact_traces_are_those_of_the_peers_matrix(sides):
    """Two small blocks column by column: as many products as they have parameters."""
    import torch

    from experiments.bench import peers

    ours = ggn_block_traces(
        sides.apply, cross_entropy, sides.network.params, sides.images, sides.labels
    )
    h = peers.PyHessian(sides.work, torch.float64)
    for name in ("linear.bias", "layer3.2.bn2.weight"):
        at = h.names.index(name)
        unit = torch.eye(h.hessian.params[at].numel(), dtype=torch.float64)
        columns = [h.product([e], slice(at, at + 1))[0] for e in unit]
        want = float(torch.trace(torch.stack(columns)))
        path = dict(zip(sides.names, jax.tree.leaves(ours), strict=True))
        np.testing.assert_allclose(path[name].mean(), want, rtol=1e-6)
