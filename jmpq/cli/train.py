"""`jmpq train`: float weights of a built-in network."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.run_folder import TOKENIZER, WEIGHTS, NetworkSpec, load_data

if TYPE_CHECKING:
    from jmpq.data.dataset import Dataset
    from jmpq.data.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a built-in network and write RUN/weights.safetensors; resumable by epoch. Of
    sentences a WordPiece tokenizer is made first, RUN/tokenizer.json.
    """  # noqa: D205

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run; made if it is not there."""
    model: str = "digits_resnet"
    """Network: digits_resnet, resnet20, resnet32, resnet44, resnet56 or resnet110; bert_tiny or
    bert_mini (sentences); or one for ImageNet, see `jmpq layers --help` (without dropout and
    without random crops)."""
    data: str = "digits"
    """Data set: digits or cifar10; sst2 (sentences); imagenet2012, imagenette or image_folder
    for ImageNet's networks."""
    data_dir: pathlib.Path | None = None
    """Local folder of the data set."""
    epochs: int = 15
    """Passes over the training examples."""
    batch_size: int = 64
    """Examples per step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Nesterov momentum, or AdamW."""
    learning_rate: float = 5e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    weight_decay: float = 1e-2
    """On kernels only."""
    shift: int = 0
    """Augmentation: random shifts by up to so many pixels."""
    flip: bool = False
    """Augmentation: random mirroring left to right."""
    vocab_size: int = 8000
    """Of sentences: most tokens in the vocabulary, which is made from the training examples."""
    seed: int = 0
    """Of initialisation, order of examples and augmentation."""

    def __call__(self) -> None:
        from jmpq.cli.progress import bar
        from jmpq.training.evaluate import evaluate
        from jmpq.training.loop import TrainConfig
        from jmpq.training.train import train
        from jmpq.zoo.architectures import build_module
        from jmpq.zoo.tensor_files import save_variables

        names = {field.name for field in dataclasses.fields(TrainConfig)}
        config = TrainConfig(**{k: v for k, v in vars(self).items() if k in names})
        dataset = self._dataset()
        tokenizer = dataset.tokenizer
        vocab_size = None if tokenizer is None else tokenizer.vocab_size
        module = build_module(self.model, len(dataset.classes), vocab_size)
        with bar(f"Training {self.model}", "steps") as progress:
            variables = train(
                module,
                dataset.train,
                config,
                seed=self.seed,
                checkpoints=(self.run / "checkpoints").resolve(),
                progress=progress,
            )

        apply: Any = module.apply
        found = evaluate(apply, variables, dataset.heldout)
        save_variables(
            self.run / WEIGHTS,
            variables,
            architecture=self.model,
            metadata={
                "config": dataclasses.asdict(config),
                "seed": self.seed,
                "heldout_top1": found.top1,
                **({} if tokenizer is None else _vocabulary(tokenizer)),
            },
        )
        if tokenizer is not None:
            tokenizer.save(self.run / TOKENIZER)
        print(f"Held-out top-1 {100 * found.top1:.2f} % on {len(dataset.heldout)} examples.")
        print(f"Wrote {self.run / WEIGHTS}")

    def _dataset(self) -> "Dataset":
        from jmpq.data.glue import read_glue
        from jmpq.data.load import load_dataset
        from jmpq.data.tokens import train_tokenizer

        data_dir = None if self.data_dir is None else str(self.data_dir)
        if self.data != "sst2":
            spec = NetworkSpec(
                model=self.model, weights=None, data=self.data, data_dir=data_dir
            )
            return load_data(spec)
        sentences = read_glue(self.data, "train", data_dir).first
        tokenizer = train_tokenizer(sentences, vocab_size=self.vocab_size)
        return load_dataset(self.data, data_dir, tokenizer=tokenizer)


def _vocabulary(tokenizer: "Tokenizer") -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "vocabulary_sha256": tokenizer.vocabulary_sha256,
    }
