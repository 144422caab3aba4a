"""The options of every step, in the order of the steps; the command line shows these texts.

Nothing here imports JAX, so that the help comes at once, and so does the refusal of a value
that no run could use.
"""

import dataclasses
import pathlib
from typing import Literal

from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice, choice_grid
from jmpq.network.layers import TieKind
from jmpq.problem.budgets import check_cost, parse_budgets
from jmpq.problem.costs import additive_cost, known_costs
from jmpq.problem.rules import parse_rule
from jmpq.quantizers.spec import InputSpec, KernelSpec, check_bits
from jmpq.run.ranges import between, check_batches, check_seed, counts, not_empty
from jmpq.sensitivity.metrics.by_name import DEFAULT_METRICS, MetricName
from jmpq.solvers.automatic import check_solver

CorrectName = Literal["none", "bias", "batch_norm"]
MeasuredRole = Literal["solution", "uniform", "baseline", "sweep", "random", "single"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Options of `jmpq.run.train`."""

    model: str = "digits_resnet"
    """Network: digits_resnet, resnet20, resnet32, resnet44, resnet56 or resnet110; vit_cifar;
    bert_tiny or bert_mini (sentences); or one for ImageNet, see `jmpq layers --help` (without
    random crops)."""
    data: str = "digits"
    """Data set: digits or cifar10; sst2 (sentences); imagenet2012, imagenette or image_folder
    for ImageNet's networks; or package.module:function, as for jmpq layers."""
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
    """Weight decay (kernels only)."""
    label_smoothing: float = 0.0
    """Share of the label that is spread evenly over all classes in the loss."""
    shift: int = 0
    """Augmentation: random shifts by up to so many pixels."""
    flip: bool = False
    """Augmentation: random mirroring left to right."""
    vocab_size: int = 8000
    """Largest vocabulary of a tokenizer (sentences only); it is made from the training
    examples."""
    seed: int = 0
    """Seed of initialisation, order of examples and augmentation."""

    def __post_init__(self) -> None:
        check_batches(self, "epochs")
        between(self, 0.0, 1e6, "learning_rate", above=True)
        between(self, 0.0, 1e6, "weight_decay")
        between(self, 0.0, 0.999, "label_smoothing")
        counts(self, "vocab_size")
        counts(self, "shift", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """Options of `jmpq.run.layers`."""

    model: str = "resnet20"
    """A built-in network: digits_resnet; resnet20, 32, 44, 56, 110 (small images); resnet18,
    34, 50, 101, vgg11, 13, 16, 19 and vgg11_bn, ..., mobilenet_v1_0.25, 0.5, 0.75, 1,
    mobilenet_v2, efficientnet_lite0, squeezenet1_1, vit_b16, vit_b32, vit_s16, vit_ti16
    (ImageNet); vit_cifar (CIFAR-10); bert_tiny, bert_mini, minilm_l6, bert_base (sentences);
    stories260k (text). Or package.module:function, which returns a jmpq.Network."""
    output: str | None = None
    """Array to analyse, where the network returns several: its name in a dictionary, its
    position in a tuple or list. The function of --model takes it as output=... and hands it to
    jmpq.Network."""
    weights: pathlib.Path | None = None
    """File of the weights: safetensors, PyTorch's (.pth, .pth.tar, .bin), .npz, .msgpack, an
    index of shards, or a folder with one of them or of orbax; RUN/weights.safetensors where it
    is there."""
    data: str = "cifar10"
    """Data set: digits, cifar10; imagenet2012, imagenet_v2, imagenette, as prepared by
    tensorflow-datasets; imagenet_sample, image_folder; sst2 (sentences); text, windows of
    running text; documents, one by one. Or package.module:function, which returns a
    jmpq.Dataset (jmpq.Dataset.from_arrays) of inputs as the network takes them."""
    data_dir: pathlib.Path | None = None
    """Local folder of the data set (image_folder: folder or zip archive; text: .txt or .npy of
    token ids, or a folder with one); without it, tensorflow-datasets' folder."""
    preprocessing: str | None = None
    """Preprocessing of images: unit (x/255, from 0 to 1), tensorflow (x/127.5 - 1), torchvision
    (mean and standard deviation of ImageNet) or efficientnet_lite ((x - 127)/128); by default
    what the built-in network expects. A network of your own gets the size and the channels, RGB
    or grey, of its example."""
    tokenizer: pathlib.Path | None = None
    """Tokenizer of sentences or text: tokenizer.json, vocab.txt, or a folder with one; by
    default the one beside the weights."""
    text_length: int = 128
    """Tokens of a window (text), or most of a document (documents)."""
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
    kv_cache: bool = False
    """Give the keys and the values of every attention a row of the layer table, with formats of
    their own (`jmpq sensitivity --kv-formats`) and a cost, kv_bytes."""
    product_bits: int | None = None
    """Bits of both operands of every product of two activations (attention), on the range of
    every example and head; keys and values of --kv-cache have their own. Part of the network:
    `jmpq evaluate` reports its accuracy as that of the float network."""

    def __post_init__(self) -> None:
        counts(self, "product_bits", most=16)
        counts(self, "text_length")
        if self.tokenizer is not None and ":" in self.data:
            raise ValueError(
                f"--tokenizer is for built-in data sets: {self.data!r} returns tokens as the "
                "network takes them. Leave it out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Options of `jmpq.run.sensitivity`."""

    metrics: tuple[MetricName, ...] = DEFAULT_METRICS
    """Metrics to compute; the first is the one the report puts first. Others that the file has
    of the same examples and candidates are kept. composed also writes RUN/superposed.npz: what
    every move alone does to the logits, with which `jmpq solve` searches and predicts joint
    allocations."""
    rivals: bool = False
    """Also compute the metrics of other methods, to compare with: empirical_fisher, hawq_trace
    (about as long as all others together), squared_error."""
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    """Candidate bits of weights: 1 to 16, or 32 for unquantized."""
    a_bits: tuple[int, ...] = (4, 8)
    """Candidate bits of activations: 1 to 16; 32 leaves them unquantized."""
    w_formats: tuple[str, ...] = ()
    """Candidate formats of weights instead of --w-bits: int1 to int16, also as int4_g64 with a
    scale for every 64 inputs; fp8_e4m3, fp8_e5m2, fp6_e3m2, fp6_e2m3, fp4_e2m1; mxfp8_e4m3,
    mxfp8_e5m2, mxfp6_e3m2, mxfp6_e2m3, mxfp4, mxint8 (blocks of 32), nvfp4 (blocks of 16);
    bf16, f16; none."""
    a_formats: tuple[str, ...] = ()
    """Candidate formats of activations instead of --a-bits, by the same names; blocks of mx
    and nvfp4 lie along the features of every position."""
    kv_formats: tuple[str, ...] = ()
    """Candidate formats of keys and values, which need `jmpq layers --kv-cache`, by the same
    names: int4, int8, mxfp4, fp8_e4m3, none, ...; their grid is that of activations."""
    calibration_from: Literal["train", "heldout"] = "heldout"
    """Source of the calibration examples: training data, or a part of the held-out data set
    aside for it (accuracy is then reported on the rest only)."""
    examples: int = 256
    """Number of calibration examples."""
    batch_size: int = 64
    """Examples per batch; a smaller last batch is kept."""
    loss: str = "cross_entropy"
    """Loss whose increase is predicted: cross_entropy; kl, the KL divergence to the float
    network's own logits, whatever the labels; squared_error, of a regression; or
    package.module:function, of the logits of one example and its label, in nats."""
    class_samples: int | None = None
    """Backward passes per example of gauss_newton with many classes, in random directions of
    the logits instead of one per class. Unbiased; the standard error is printed."""
    traces: Literal["auto", "exact", "probes"] = "auto"
    """Traces of hawq_trace: exact, in a network that is piecewise linear (ReLU), by a backward
    pass for every output; by random probes, as HAWQ-V2; or auto, whichever is worth more. The
    step says which."""
    probes: int = 1
    """Random probes per batch of hawq_trace, where it takes probes."""
    qbert_spread: float = 1.0
    """c of qbert: mean + c · standard deviation of the eigenvalue over batches."""
    seed: int = 0
    """Seed of calibration examples, sampled activations and probes."""
    weights: KernelSpec = KernelSpec()
    """Grid of weights."""
    activations: InputSpec = InputSpec()
    """Grid of activations; --activations.placement stream for a network that an integer
    runtime is to run fast."""

    def __post_init__(self) -> None:
        not_empty(self, "metrics", "w_bits", "a_bits")
        if self.kv_formats and any(choice.weights.is_none for choice in self._of_layers):
            if self._of_layers != (UNQUANTIZED,):
                raise ValueError(
                    "With kv_formats, choices without weights' bits are those of keys and "
                    "values: leave 'none' out of w_formats and 32 out of w_bits, or quantize "
                    "no layer at all (w_formats=('none',), a_formats=('none',)). A layer stays "
                    "float by a rule, 'exclude PATTERN'."
                )
        for spec, numbers in (
            (self.weights, self.w_schemes),
            (self.activations, self.a_schemes),
        ):
            for number in numbers:
                check_bits(spec, number)
        check_batches(self, "class_samples", "probes", "examples")
        between(self, 0.0, 1e6, "qbert_spread")

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The candidates: every pair of a scheme of weights and one of activations, and those
        of keys and values, which have no weights.
        """  # noqa: D205
        kept = choice_grid((FLOAT_BITS,), self.kv_formats) if self.kv_formats else ()
        return tuple(sorted({*self._of_layers, *kept}))

    @property
    def _of_layers(self) -> tuple[Choice, ...]:
        return choice_grid(self.w_formats or self.w_bits, self.a_formats or self.a_bits)

    @property
    def w_schemes(self) -> tuple[int, ...]:
        """Numbers of the candidate schemes of weights."""
        return tuple(dict.fromkeys(choice.weights.number for choice in self.choices))

    @property
    def a_schemes(self) -> tuple[int, ...]:
        """Numbers of the candidate schemes of activations."""
        return tuple(dict.fromkeys(choice.activations.number for choice in self.choices))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Devices, processes and memory; the result is the same up to rounding."""

    devices: int | None = None
    """Devices (of each process) over which the examples of a batch are spread; on a CPU, the
    number that the host is split into. One by default; with --distributed all there are."""
    distributed: bool = False
    """This is one of several processes that compute together, all started with the same
    command on the same run folder; process 0 alone writes and prints."""
    coordinator: str | None = None
    """host:port of process 0; else JAX_COORDINATOR_ADDRESS, or what Slurm, Open MPI,
    Kubernetes or Cloud TPU say."""
    processes: int | None = None
    """Number of processes; else JAX_NUM_PROCESSES, or what the cluster says."""
    process_index: int | None = None
    """Index of this process, from 0; else JAX_PROCESS_ID, or what the cluster says."""
    memory: str | None = None
    """Bound of memory, as 4GB (10^9), 4GiB (2^30) or bytes: batches are cut into parts that
    fit. On a CPU it bounds the resident memory of the process while it computes metrics: what
    is there before, and XLA's plan of the pass times what one example was seen to take. On an
    accelerator it bounds XLA's plan of a pass on each device. No limit by default."""

    def __post_init__(self) -> None:
        counts(self, "devices", "processes")
        counts(self, "process_index", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solve:
    """Options of `jmpq.run.solve`."""

    name: str | None = None
    """Name of the plan, to keep it beside others: it lies in RUN/plans/NAME, and other steps
    take it by --plan NAME. By default it has none and is RUN/plan.json."""
    replace: bool = False
    """Write over a plan that was solved with other options."""
    budget: tuple[str, ...] = ()
    """NAME=VALUE with NAME size_bytes (bytes), average_bits (effective bits per searched
    weight, scales included), bops (bit operations per example), activation_bytes (the largest
    input and output of a layer), kv_bytes (keys and values of a token, with --kv-cache) or
    latency_s (seconds of a call, by RUN/latency.csv of `jmpq latency`), and VALUE a number with
    unit (120kB, 0.27MB, 1.2G, 2.5ms), a ratio to the float network (0.13x), a fraction between
    the cheapest and the dearest allocation (40%), or the cost of a uniform allocation (W4A4,
    Wmxfp4A8). By default size_bytes and, with quantized activations, bops of uniform 4-bit (or
    the nearest candidate); kv_bytes likewise."""
    metrics: tuple[str, ...] = ()
    """Metrics to solve with, the first leading; all of the sensitivity file by default."""
    solvers: tuple[str, ...] = ("exact", "greedy")
    """Solvers, the first leading. exact: the optimum, proven or with its gap, by core for one
    budget and by several_budgets for more; greedy: the paper's Algorithm 1;
    greedy_dual_prices: the same, several budgets weighed by their dual values; core,
    several_budgets, dynamic_programming, or any mixed-integer solver that cvxpy finds
    installed: HIGHS, SCIP (pip install 'jmpq[scip]'), GUROBI, ... With the cross-layer terms,
    for metrics that have them: local_search, a tabu search; branch_and_bound, the same with a
    proof of how far from optimal it can be; quadratic_program, SCIP on the same. Their
    allocations go by the metric NAME_full."""
    rule: tuple[str, ...] = ()
    """'pin PATTERN=W8A8', 'allow PATTERN=W4,W8A8', 'exclude PATTERN', 'tie PATTERN PATTERN';
    patterns are regular expressions that match a whole layer name; the first match wins."""
    tie: tuple[TieKind, ...] = ()
    """Ready-made ties, found in the network's graph: downsample, the projection of a shortcut
    with the first convolution beside it (HAWQ-V3); depthwise, with the layer after it;
    residual, layers whose outputs are added; shared_input, layers that read the same value;
    qkv, query, key and value of an attention; gate_up, both kernels of a gated unit;
    encoder_layer, all kernels of a layer of a transformer (Q-BERT). Layers that are pinned or
    excluded stay apart."""
    first_last_bits: int = 8
    """Bits that the first and last layer are pinned to, after the rules above; 0 for none."""
    first_order: bool = False
    """Add the first-order term to every metric that has one."""
    time_limit_s: float = 60.0
    """Seconds per exact solve; then the best allocation so far, with its bound."""
    search_evaluations: int = 5000
    """Allocations that the search on composed logits may predict, at every budget; it starts
    at the exact optimum of metric composed. 0 for no search."""
    seed: int = 0
    """Seed of the search and of all random allocations."""

    def __post_init__(self) -> None:
        not_empty(self, "solvers")
        for budget in parse_budgets(self.budget):
            check_cost(budget, known_costs())
        for text in self.rule:
            parse_rule(text)
        for name in self.solvers:
            check_solver(name)
        counts(self, "first_last_bits", least=0, most=32)
        between(self, 0.0, 1e9, "time_limit_s", above=True)
        counts(self, "search_evaluations", least=0)
        check_seed(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inverse:
    """The least cost for a loss, and the front of both; budgets do not matter here."""

    loss_ceiling: float | None = None
    """Also find the cheapest allocation whose predicted loss increase is at most this (nats
    per example), for every metric."""
    minimize: str = "size_bytes"
    """Cost, named as in --budget, that --loss-ceiling minimises and that --front draws the loss
    against."""
    front: bool = False
    """Write RUN/front.csv: every allocation on the convex hull of loss and cost, by the
    leading metric."""

    def __post_init__(self) -> None:
        additive_cost(self.minimize)
        between(self, -1e9, 1e9, "loss_ceiling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Allocations that the report compares the solutions with."""

    comparison: Literal["none", "baselines", "full"] = "baselines"
    """none; baselines: uniform, reversed and random allocations within the budgets; full: also
    solutions at other budgets, random joint allocations without budgets, and every choice of
    every single layer, to compare prediction and measurement."""
    random: int = 10
    """Random baselines within the budgets, one per seed."""
    sweep: int = 8
    """Further budgets between the cheapest and the dearest allocation (full only)."""
    joint: int = 60
    """Random joint allocations without budgets (full only)."""
    singles: bool = True
    """Every choice of every single layer (full only)."""

    def __post_init__(self) -> None:
        counts(self, "random", "sweep", "joint", least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refine:
    """Options of `jmpq.run.refine`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    allocation: str | None = None
    """Allocation to start from; the first solution of the plan by default."""
    measure: Literal["kl", "loss"] = "kl"
    """Measurement to decrease: the KL divergence to the float network, or the loss."""
    max_evaluations: int = 200
    """Most allocations measured, those of an interrupted run included."""
    patience: int = 40
    """Proposals that fail in a row before the search ends."""
    batch_size: int = 256
    """Examples per batch."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; on a CPU, the number that the
    host is split into (one for each core is fastest). One by default."""

    def __post_init__(self) -> None:
        counts(self, "max_evaluations", "patience", "batch_size", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """Options of `jmpq.run.instance`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    metrics: tuple[str, ...] = ()
    """Metrics whose problems are written; all of the sensitivity file by default."""
    formats: tuple[Literal["json", "npz", "lp", "mps"], ...] = ("json",)
    """json, or the smaller npz: all that the problem is, with the best value known; lp, mps:
    the integer program alone, as other solvers read it."""

    def __post_init__(self) -> None:
        not_empty(self, "formats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """Options of `jmpq.run.race`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    allocation: str | None = None
    """Allocation whose budgets the solutions in the race share; the first solution of the plan
    by default."""
    measure: Literal["kl", "loss"] = "kl"
    """Measurement that decides: the KL divergence to the float network, or the loss."""
    batch_size: int = 64
    """Examples between two looks at which solutions cannot be the best any more."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; on a CPU, the number that the
    host is split into (one for each core is fastest). One by default."""

    def __post_init__(self) -> None:
        counts(self, "batch_size", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floor:
    """Options of `jmpq.run.floor`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    max_drop: float = 1.0
    """Most points (of 100) that top-1 on the calibration examples may lie below the float
    network's."""
    minimize: str = "size_bytes"
    """Cost to minimise, named as in `jmpq solve --budget`."""
    metric: str | None = None
    """Metric that says which allocation is best for its cost; that of the first solution of
    the plan by default."""
    batch_size: int = 256
    """Examples per batch."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; on a CPU, the number that the
    host is split into (one for each core is fastest). One by default."""

    def __post_init__(self) -> None:
        additive_cost(self.minimize)
        between(self, 0.0, 100.0, "max_drop")
        counts(self, "batch_size", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Options of `jmpq.run.evaluate`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    allocation: pathlib.Path | None = None
    """File with an allocation written by hand, JSON as {"conv1": "W8A8", "conv2": "W4A8"}: it
    is added to the plan under the file's name, as given/NAME, and is the only one measured."""
    roles: tuple[MeasuredRole, ...] = ("solution", "uniform")
    """Allocations measured on the evaluation examples, by their role in the plan; uniform are
    the baselines of one choice for all layers. What was measured before is kept."""
    calibration_roles: tuple[MeasuredRole, ...] = ("solution", "uniform")
    """Allocations measured on the calibration examples, where prediction is compared."""
    examples: int | None = None
    """Evaluation examples, the first so many; all by default."""
    batch_size: int = 256
    """Examples per batch; one compilation serves all batches and allocations."""
    correct: CorrectName = "none"
    """Correct every layer's output of every allocation on calibration examples: channel by
    channel the mean (bias), or mean and spread, as estimating the statistics of batch
    normalisation again does (batch_norm)."""
    correct_examples: int = 256
    """Calibration examples of the correction, the first so many; they go through the network
    at once."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; on a CPU, the number that the
    host is split into (one for each core is fastest). One by default."""

    def __post_init__(self) -> None:
        counts(self, "examples", "batch_size", "correct_examples", "devices")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """Options of `jmpq.run.finetune`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    allocation: str | None = None
    """Name of the allocation; the first solution of the plan by default."""
    method: Literal["lsq", "ste"] = "lsq"
    """Learned scales (lsq), or scales as calibrated (ste); gradients straight-through."""
    epochs: int = 5
    """Passes over the training examples."""
    batch_size: int = 64
    """Examples per step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Nesterov momentum, or AdamW."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    scale_learning_rate: float = 0.1
    """Learning rate of scales (lsq), as a multiple of --learning-rate."""
    warmup: float = 0.1
    """Fraction of all steps in which the learning rate rises."""
    momentum: float = 0.9
    """Momentum (SGD only)."""
    weight_decay: float = 1e-4
    """Weight decay (kernels only)."""
    distillation: float = 1.0
    """Weight of the KL divergence to the float network's output on the training examples; the
    rest is cross entropy with the labels. With 1 no label is looked at."""
    temperature: float = 1.0
    """Temperature of distillation: logits are divided by it, the KL divergence is multiplied
    by its square."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products; parameters and scales stay float32."""
    correct: CorrectName = "batch_norm"
    """Before the first step, bring every layer's output back to the mean (bias), or mean and
    spread (batch_norm), that it has in the float network: the statistics that stay frozen."""
    correct_examples: int = 256
    """Calibration examples of the correction, the first so many; they go through the network
    at once."""
    label_smoothing: float = 0.0
    """Share of the label that is spread evenly over all classes in the loss."""
    shift: int = 0
    """Augmentation: random shifts by up to so many pixels."""
    flip: bool = False
    """Augmentation: random mirroring left to right."""
    training_examples: int | None = None
    """Training examples, the first so many; all by default."""
    examples: int | None = None
    """Evaluation examples, the first so many; all by default."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, besides those after every epoch."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; the result is the same up to
    rounding. On a CPU, the number that the host is split into. One by default."""
    seed: int = 0
    """Seed of the order of examples and augmentation."""

    def __post_init__(self) -> None:
        check_batches(self, "epochs", "correct_examples", "devices")
        counts(self, "training_examples", "examples", "checkpoint_steps")
        counts(self, "shift", least=0)
        between(self, 0.0, 1e6, "learning_rate", "temperature", above=True)
        between(self, 0.0, 1e6, "scale_learning_rate", "weight_decay")
        between(self, 0.0, 1.0, "distillation")
        between(self, 0.0, 1.0, "warmup", "momentum", below=True)
        between(self, 0.0, 0.999, "label_smoothing")


ExportFormat = Literal[
    "packed",
    "onnx",
    "stablehlo",
    "litert",
    "qwix",
    "aimet",
    "compressed-tensors",
    "modelopt",
    "maxtext",
    "ai-edge-quantizer",
    "hawq",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Options of `jmpq.run.export`."""

    plan: str | None = None
    """Name of the plan, as given to `jmpq solve --name`; by default the one without a name."""
    allocation: str | None = None
    """Name of the allocation; the first solution of the plan by default. float: the network as
    it is."""
    format: ExportFormat = "packed"
    """packed: safetensors with codes at their bits, read by jmpq.load_packed; onnx: a graph
    with QuantizeLinear and DequantizeLinear (pip install 'jmpq[onnx]'); stablehlo: a program
    of jax.export, codes inside; litert: .tflite (pip install 'jmpq[litert]'). The others hold
    no codes: they tell another tool the bits of every layer, as JSON."""
    finetuned: bool = False
    """Take the network that `jmpq finetune` trained, with its allocation."""
    correct: CorrectName | None = None
    """Correction of the outputs of every layer, as `jmpq evaluate` has it; by default that
    which the plan was evaluated with."""
    native: bool = False
    """Let DequantizeLinear of ONNX read codes of 2 and 4 bits itself. By default they are
    stored so and cast to 8 bits, which runtimes do once, when they load."""
    runtimes: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime",)
    """Runtimes that an ONNX file is for, in which it is checked. openvino (pip install
    'jmpq[openvino]') has no type of 2 bits: codes are stored at 4."""
    smallest: Literal[2, 4, 8] | None = None
    """Least bits at which codes are stored. ONNX: 2, or the least that its runtimes have.
    LiteRT, 8 by default: 4 for smaller files, whose convolutions may be slower."""
    check: int = 1000
    """Evaluation examples, the first so many, that the file is run on in its own runtime beside
    jmpq's evaluation; 0 for none."""
    batch_size: int = 250
    """Examples per batch of the check."""
    repeats: int = 30
    """Calls of each artifact whose processor time is taken, at batch 1 and 32."""

    def __post_init__(self) -> None:
        not_empty(self, "runtimes")
        if self.native and self.format != "onnx":
            raise ValueError(f"native=True is for ONNX files, not for {self.format}.")
        if self.smallest is not None and self.format not in ("onnx", "litert"):
            raise ValueError(f"smallest is for ONNX and LiteRT files, not for {self.format}.")
        counts(self, "check", least=0)
        counts(self, "batch_size", "repeats")
        if self.finetuned and self.correct is not None:
            raise ValueError(
                "finetuned=True takes the correction that was trained: leave out "
                f"correct={self.correct!r}."
            )
        if self.finetuned and self.allocation is not None:
            raise ValueError(
                "finetuned=True takes the allocation that was trained: leave out "
                f"allocation={self.allocation!r}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Options of `jmpq.run.latency`."""

    runtime: Literal[
        "onnxruntime", "openvino", "model:roofline", "model:bit_serial", "model:bitfusion"
    ] = "onnxruntime"
    """onnxruntime (pip install 'jmpq[onnx]') or openvino (pip install 'jmpq[openvino]'), on
    this machine's processor; or a hardware model with the numbers of a publication:
    model:roofline (NVIDIA T4), model:bit_serial (BISMO), model:bitfusion (BitFusion)."""
    check: bool = False
    """Measure the solutions and uniform allocations of the plan as whole networks, beside
    what was predicted of them, in RUN/latency_check.json."""
    around: str | None = None
    """Allocation of the plan at which the sum over layers of RUN/latency.csv is to be exact:
    the table is written anew from RUN/latency.json, nothing is measured. For solutions with
    float neighbours, whose borders the first table counts too dear, and, after --check, for
    those that take longer than predicted: the sum is then the measured time. Solve again."""
    plan: str | None = None
    """Name of the plan of --check or --around, as given to `jmpq solve --name`; by default the
    one without a name."""
    networks: int | None = None
    """Whole networks that the seconds are fitted to; two for every layer and kernel by
    default."""
    held_out: int = 16
    """Random networks that are measured and predicted, not fitted: they tell the error."""
    rounds: int = 6
    """Times that every network is opened and timed; the least disturbed round counts."""
    batch_size: int = 1
    """Examples of a call."""
    threads: int = 1
    """Threads of the runtime."""
    clock: Literal["cpu", "wall"] = "cpu"
    """Processor time, which other programs on the machine hardly change; or time on the clock,
    which is what several threads are for. Both are in RUN/latency.json."""
    seed: int = 0
    """Seed of the networks and of the order in which they are timed."""

    def __post_init__(self) -> None:
        counts(self, "networks", "rounds", "batch_size", "threads")
        counts(self, "held_out", least=0)
        check_seed(self)
        if self.check and self.runtime.startswith("model:"):
            raise ValueError(
                f"check=True measures whole networks: choose onnxruntime or openvino, not "
                f"{self.runtime!r}."
            )
        if self.check and self.around is not None:
            raise ValueError(
                "check=True measures the plan, which a new table makes stale: leave out one "
                f"of check and around={self.around!r}."
            )
        if self.plan is not None and not self.check and self.around is None:
            raise ValueError(
                f"plan={self.plan!r} names the plan of check or around: give one of them. The "
                "table of latencies is that of the run."
            )
