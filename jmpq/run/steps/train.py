"""Training: float weights of a built-in network."""

import dataclasses
import os
from typing import Any

from jmpq.data.dataset import Dataset
from jmpq.data.load import load_dataset
from jmpq.data.text.glue import read_glue
from jmpq.data.text.tokens import Tokenizer, train_tokenizer
from jmpq.run.artifacts import NetworkSpec
from jmpq.run.folder import TOKENIZER, WEIGHTS, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import load_data
from jmpq.run.options import Train
from jmpq.run.progress import QUIET, Reporter
from jmpq.training.evaluate import Scores, evaluate
from jmpq.training.loop import TrainConfig
from jmpq.training.train import train as train_network
from jmpq.zoo.architectures import build_module
from jmpq.zoo.tensor_files import save_variables


@writes
def train(
    folder: str | os.PathLike[str], options: Train = Train(), *, reporter: Reporter = QUIET
) -> Scores:
    """Train a built-in network and write ``weights.safetensors``.

    For sentences a WordPiece tokenizer is made first, ``tokenizer.json``. If interrupted, the
    same call resumes from the last epoch.

    Args:
        folder: The run folder; made if it is not there.
        options: Network and training recipe.
        reporter: Listens.

    Returns:
        Loss and top-1 on the held-out examples.

    Raises:
        ValueError: If options do not fit each other, the data or the network.
        FileNotFoundError: If the data are not there.
    """
    run = RunFolder(folder)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in vars(options).items() if k in names})
    dataset = _dataset(options)
    tokenizer = dataset.tokenizer
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    module = build_module(options.model, len(dataset.classes), vocab_size, dataset.inputs)
    with reporter.bar(f"Training {options.model}", "steps") as progress:
        variables = train_network(
            module,
            dataset.train,
            config,
            seed=options.seed,
            checkpoints=(run.path / "checkpoints").resolve(),
            progress=progress,
        )
    apply: Any = module.apply
    heldout = evaluate(apply, variables, dataset.heldout)
    metadata = {
        "config": dataclasses.asdict(config),
        "seed": options.seed,
        "heldout_top1": heldout.top1,
        **({} if tokenizer is None else _vocabulary(tokenizer)),
    }
    save_variables(run.path / WEIGHTS, variables, architecture=options.model, metadata=metadata)
    if tokenizer is not None:
        tokenizer.save(run.path / TOKENIZER)
    reporter.say(f"Held-out top-1 {100 * heldout.top1:.2f} % on {heldout.examples} examples.")
    reporter.say(f"Wrote {run.path / WEIGHTS}")
    return heldout


def _dataset(options: Train) -> Dataset:
    data_dir = None if options.data_dir is None else str(options.data_dir)
    if options.data != "sst2":
        spec = NetworkSpec(
            model=options.model, weights=None, data=options.data, data_dir=data_dir
        )
        return load_data(spec)
    sentences = read_glue(options.data, "train", data_dir).first
    tokenizer = train_tokenizer(sentences, vocab_size=options.vocab_size)
    return load_dataset(options.data, data_dir, tokenizer=tokenizer)


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "vocabulary_sha256": tokenizer.vocabulary_sha256,
    }
