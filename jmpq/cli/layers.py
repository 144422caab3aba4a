"""`jmpq layers`: the layer table of a network."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jmpq.cli.run_folder import LAYERS, SCHEMA, VERSION, WEIGHTS, NetworkSpec, load_network


@dataclasses.dataclass(frozen=True)
class Layers:
    """Write RUN/layers.json: every quantizable layer with parameters, MACs and shapes."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run; made if it is not there."""
    model: str = "resnet20"
    """digits_resnet, resnet20, resnet32, resnet44, resnet56, resnet110, or
    package.module:function, which returns a jmpq.Network."""
    weights: pathlib.Path | None = None
    """Safetensors file of the weights; RUN/weights.safetensors where it is there."""
    data: str = "cifar10"
    """Data set: cifar10 or digits."""
    data_dir: pathlib.Path | None = None
    """Local folder of the data set; without it, tensorflow-datasets' folder (cifar10)."""

    def __call__(self) -> None:
        from rich.console import Console
        from rich.table import Table

        from jmpq.files import write_json
        from jmpq.models.layers import layers_to_json
        from jmpq.models.weights import weights_sha256

        spec = NetworkSpec(
            model=self.model,
            weights=self._portable(self.weights),
            data=self.data,
            data_dir=str(self.data_dir.resolve()) if self.data_dir else None,
        )
        network = load_network(spec, self.run)
        record = {
            "schema": SCHEMA,
            "version": VERSION,
            "network": spec.to_json(),
            "weights_sha256": weights_sha256((network.params, network.state)),
            "layers": layers_to_json(network.layers),
            "other_parameters": network.other_parameters,
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
        console.print(f"Wrote {self.run / LAYERS}")

    def _portable(self, path: pathlib.Path | None) -> str | None:
        """Relative to the run folder where the file lies in it, else absolute."""
        if path is None:
            return WEIGHTS if (self.run / WEIGHTS).is_file() else None
        resolved, run = path.resolve(), self.run.resolve()
        return str(resolved.relative_to(run) if resolved.is_relative_to(run) else resolved)
