"""`jmpq layers`: the layer table of a network."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jmpq.cli.run_folder import (
    LAYERS,
    SCHEMA,
    VERSION,
    WEIGHTS,
    NetworkSpec,
    load_data,
    load_network,
)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Write RUN/layers.json: every quantizable layer with parameters, MACs and shapes."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run; made if it is not there."""
    model: str = "resnet20"
    """A built-in network: digits_resnet; resnet20, 32, 44, 56, 110 (small images); resnet18,
    34, 50, 101, vgg11, 13, 16, 19 and vgg11_bn, ..., mobilenet_v1_0.25, 0.5, 0.75, 1,
    mobilenet_v2, squeezenet1_1 (ImageNet); bert_tiny, bert_mini, minilm_l6, bert_base
    (sentences). Or package.module:function, which returns a jmpq.Network."""
    weights: pathlib.Path | None = None
    """File of the weights, safetensors or a PyTorch state dict; RUN/weights.safetensors where
    it is there."""
    data: str = "cifar10"
    """Data set: digits, cifar10; imagenet2012, imagenet_v2, imagenette, as prepared by
    tensorflow-datasets; imagenet_sample, image_folder; sst2 (sentences)."""
    data_dir: pathlib.Path | None = None
    """Local folder of the data set (image_folder: folder or zip archive); without it,
    tensorflow-datasets' folder."""
    preprocessing: str | None = None
    """What is done to images: torchvision (mean and standard deviation of ImageNet) or
    tensorflow (x/127.5 - 1); by default what the built-in network expects."""
    tokenizer: pathlib.Path | None = None
    """Of sentences: tokenizer.json, vocab.txt, or a folder with one; by default the one beside
    the weights."""
    fold_batch_norm: bool = False
    """Fold batch normalisation into the kernels before it: the logits stay, the kernels and
    what they are quantized to do not."""
    without_caps: bool = False
    """Take the caps off activations: ReLU6 becomes ReLU. Another network: `jmpq evaluate`
    reports its own float accuracy."""
    equalize_ranges: bool = False
    """Scale channels so that their ranges are equal in a layer and in the one that reads it
    (Nagel et al. 2019): for depthwise networks whose tensors have one scale. Needs
    --fold-batch-norm, and --without-caps where activations are capped."""
    product_bits: int | None = None
    """Bits of both operands of every product of two activations (attention), on the range of
    every example and head. Part of the network: `jmpq evaluate` reports its accuracy as that
    of the float network."""

    def __call__(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from jmpq.files import write_json
        from jmpq.network.equalize import equalization_pairs
        from jmpq.network.layers import layers_to_json
        from jmpq.network.ties import architecture_ties
        from jmpq.zoo.tensor_files import weights_sha256

        spec = NetworkSpec(
            model=self.model,
            weights=self._portable(self.weights),
            data=self.data,
            data_dir=str(self.data_dir.resolve()) if self.data_dir else None,
            preprocessing=self.preprocessing,
            fold=self.fold_batch_norm,
            capless=self.without_caps,
            equalize=self.equalize_ranges,
            product_bits=self.product_bits,
            tokenizer=self._tokenizer(),
        )
        # A network that makes itself is looked at before the data.
        known = None if ":" in spec.model else load_data(spec, self.run)
        network = load_network(spec, self.run, known)
        dataset = known or load_data(spec, self.run)
        record = {
            "schema": SCHEMA,
            "version": VERSION,
            "network": spec.to_json(),
            "weights_sha256": weights_sha256((network.params, network.state)),
            "layers": layers_to_json(network.layers),
            "other_parameters": network.other_parameters,
            "ties": architecture_ties(network),
        }
        write_json(self.run / LAYERS, record)
        table = Table("layer", "kind", "kernel", "parameters", "MACs", "input")
        for x in network.layers:
            shapes = ("x".join(map(str, s)) for s in (x.kernel_shape, x.input_shape))
            kernel, given = shapes
            table.add_row(x.name, x.kind, kernel, f"{x.parameters:,}", f"{x.macs:,}", given)
        parameters = sum(x.parameters for x in network.layers)
        macs = sum(x.macs for x in network.layers)
        console = Console()
        console.print(table)
        console.print(
            f"{len(network.layers)} layers, {parameters:,} parameters, {macs:,} MACs per "
            f"example; {network.other_parameters:,} other parameters stay unquantized."
        )
        if dataset.note:
            console.print(f"{dataset.name}: {dataset.note}.")
        if self.equalize_ranges:
            pairs = ", ".join(f"{one} - {two}" for one, two in equalization_pairs(network))
            console.print(f"Ranges equalised: {pairs}.")
        console.print(f"Wrote {self.run / LAYERS}")

    def _tokenizer(self) -> str | None:
        """That of a built-in network lies beside its weights, if nothing else is said."""
        from jmpq.data.tokens import FILES
        from jmpq.zoo.architectures import architecture

        path = self.tokenizer
        if path is None and ":" not in self.model and architecture(self.model).tokens:
            folder = self.run
            if self.weights is not None:
                folder = self.weights if self.weights.is_dir() else self.weights.parent
            path = next((folder / name for name in FILES if (folder / name).is_file()), None)
        return None if path is None else self._portable(path)

    def _portable(self, path: pathlib.Path | None) -> str | None:
        """Relative to the run folder where the file lies in it, else absolute."""
        if path is None:
            return WEIGHTS if (self.run / WEIGHTS).is_file() else None
        resolved, run = path.resolve(), self.run.resolve()
        return str(resolved.relative_to(run) if resolved.is_relative_to(run) else resolved)
