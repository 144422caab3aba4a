"""PyTorch's side of the flow benchmark: one Hessian-vector product of ResNet-18."""

import dataclasses
import pathlib
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Product:
    """Processor seconds of H·v of the mean loss as PyHessian takes it: backward twice.

    The graph of the gradient is built once and not counted, as for many probes on one batch.

    Attributes:
        weights: File with the weights, as jmpq writes them.
        data: Data set.
        data_dir: Folder of the data.
        images: Images of the one batch.
        repeats: Timed products after a first one; the median counts.
    """

    weights: pathlib.Path
    data: str
    data_dir: pathlib.Path
    images: int = 16
    repeats: int = 3

    def __call__(self) -> dict[str, Any]:
        import numpy as np
        import torch
        from torch.nn import functional

        from jmpq.data.batches import make_batch
        from jmpq.data.load import load_dataset
        from jmpq.zoo.architectures import PREPROCESSINGS, build_module
        from jmpq.zoo.tensor_files import load_variables

        torch.set_num_threads(1)
        split = load_dataset(self.data, self.data_dir, PREPROCESSINGS["torchvision"]).heldout
        inputs, labels, _ = make_batch(split, np.arange(self.images))
        net = resnet18()
        variables, _ = load_variables(self.weights, architecture="resnet18")
        net.load_state_dict(torch_tensors(variables), strict=False)  # without batch counters
        net.eval()
        images = torch.tensor(inputs.transpose(0, 3, 1, 2))
        logits = net(images)
        ours = build_module("resnet18", 1000).apply(variables, inputs)
        check_parity(np.asarray(ours), logits.detach().numpy())
        params = [p for p in net.parameters() if p.ndim > 1]
        loss = functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.int64))
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        generator = torch.Generator().manual_seed(0)
        seconds = []
        for _ in range(1 + self.repeats):
            probe = [2.0 * torch.randint(2, p.shape, generator=generator) - 1 for p in params]
            start = time.process_time()
            torch.autograd.grad(gradient, params, probe, retain_graph=True)
            seconds.append(time.process_time() - start)
        median = float(np.median(seconds[1:]))
        return {"images": self.images, "seconds": seconds, "median_s": median}


def torch_tensors(variables: Any) -> dict[str, Any]:
    """Variables under the published names, axes as PyTorch has them."""
    import jax
    import numpy as np
    import torch

    from jmpq.network.tree_paths import leaf_paths
    from jmpq.zoo.published.files import KERNEL_AXES, torch_name

    tensors = {}
    for path, leaf in zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True):
        array = np.array(leaf)
        if path.endswith("/kernel"):
            array = array.transpose(np.argsort(KERNEL_AXES[array.ndim]))
        tensors[torch_name(path)] = torch.tensor(np.ascontiguousarray(array))
    return tensors


def check_parity(ours: Any, theirs: Any) -> None:
    """Refuse to time two different networks.

    Raises:
        ValueError: If their logits differ by more than 1e-4 of the largest.
    """
    if not (error := float(abs(ours - theirs).max() / abs(ours).max())) < 1e-4:
        raise ValueError(
            f"The logits of the two sides differ by {error:.2g} of the largest, more than "
            "1e-4: they do not compute the same network."
        )


def resnet18() -> Any:
    """He et al. (2015), table 1, 18 layers, with the parameter names of torchvision."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, given: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.downsample = (
                None
                if stride == 1
                else nn.Sequential(
                    nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            )

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return functional.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet18(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            widths = (64, 64, 128, 256, 512)
            for i in range(1, 5):
                blocks = (
                    Block(widths[i - 1], widths[i], 1 if i == 1 else 2),
                    Block(widths[i], widths[i], 1),
                )
                setattr(self, f"layer{i}", nn.Sequential(*blocks))
            self.fc = nn.Linear(512, 1000)

        def forward(self, x: Any) -> Any:
            x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for i in range(1, 5):
                x = getattr(self, f"layer{i}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet18()
