"""PyTorch's side of the evaluation benchmark: eager fake quantization (extra `bench`)."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from experiments.bench.evaluation_setting import Losses, Setting
from experiments.bench.peers import ResNetCIFAR
from jmpq.zoo.published.files import torch_name


def eager(setting: Setting, weights: pathlib.Path) -> Callable[[int], Losses]:
    """The network with kernels and layer inputs put on the same grids by PyTorch's own
    operations: kernels once for every candidate, inputs where they come.
    """  # noqa: D205
    torch.set_num_threads(setting.config.threads)
    net = ResNetCIFAR(20, 10, (16, 32, 64), 3)
    net.load_state_dict(load_file(weights), strict=False)  # without the batch counters
    net = net.eval().to(memory_format=torch.channels_last)
    names = [
        torch_name(f"params/{layer.kernel}").removesuffix(".weight")
        for layer in setting.build().layers
    ]
    layers = [net.get_submodule(name) for name in names]
    floats = [layer.weight.detach().clone() for layer in layers]
    data = [
        (
            torch.tensor(b.inputs.transpose(0, 3, 1, 2)).contiguous(
                memory_format=torch.channels_last
            ),
            torch.tensor(b.labels, dtype=torch.int64),
            torch.tensor(b.weights) > 0,
        )
        for b in setting.batches(setting.config.torch_batch)
    ]
    kernels, inputs = setting.quantizers.weights, setting.quantizers.activations
    assert inputs is not None
    bits_now = np.zeros(len(layers), int)

    def quantize_input(i: int, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        at = inputs.bits.index(bits_now[i])
        scale, zero = float(inputs.scale[i][at, 0]), int(inputs.zero_point[i][at, 0])
        top = 2 ** int(bits_now[i]) - 1
        return (torch.fake_quantize_per_tensor_affine(args[0], scale, zero, 0, top),)

    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(functools.partial(quantize_input, i))

    def measure(count: int) -> Losses:
        means = []
        for w_bits, a_bits in setting.bits[:count]:
            bits_now[:] = a_bits
            for i, (layer, kernel) in enumerate(zip(layers, floats, strict=True)):
                scale = torch.tensor(
                    np.asarray(kernels.scale[i][kernels.bits.index(w_bits[i])])
                )
                top = 2 ** (int(w_bits[i]) - 1) - 1
                zero = torch.zeros(len(scale), dtype=torch.int32)
                layer.weight.data = torch.fake_quantize_per_channel_affine(
                    kernel, scale, zero, 0, -top, top
                )
            with torch.no_grad():
                losses = [
                    functional.cross_entropy(net(x), y, reduction="none")[counts]
                    for x, y, counts in data
                ]
            means.append(float(torch.cat(losses).double().mean()))
        return np.array(means)

    return measure
