"""Claims: what the documentation says of a result, as a check of the committed JSON.

One file a result. Each names its JSON files by hash (``MADE``), says by which modules they were
made, and whether that code has changed since (``stale``: prose may quote such a claim only with
this remark). ``check(results)`` returns `claim.Claim`: an identifier that prose cites, the
sentence, the statistic and its threshold, and the one number in the JSON that decides most.

    python -m experiments.claims          # all claims with their statistics
    python -m experiments.claims hashes   # hashes for MADE, after an experiment was run again

tests/experiments/test_claims.py fails when a JSON is not the one that was checked, when it no
longer supports a claim, when its code has changed and nobody said so, and when a committed
result has no claims. A result that is made again gets new hashes and loses its ``stale``.

Pages cite claims in a comment behind each finding, ``<!-- claims: outcome.default -->``; every
number of a finding is in the sentence of a claim that it cites.

To add a claim, write it into the file of its result; to add a result, a file here and its name
in ``MODULES``.
"""

MODULES = (
    "bench_curvature",
    "bench_others",
    "solving.bench_solvers",
    "solving.leaderboard",
    "deployment",
    "predicting.fidelity",
    "finetune",
    "formats.kernels",
    "formats.kv_cache",
    "imagenet",
    "latency",
    "minilm",
    "choosing.confirmation",
    "choosing.outcome",
    "choosing.outcome_nearest",
    "choosing.whole_flow",
    "post_training",
    "predicting.importance",
    "predicting.landscape",
    "predicting.prediction",
    "choosing.resnet20_cifar10",
    "sst2",
    "vit_cifar",
)
