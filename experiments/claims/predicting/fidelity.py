"""How well metrics predict random joint allocations of three residual networks."""

from collections.abc import Mapping

import numpy as np

from experiments.claims.claim import COMPOSED, Claim, Json, Made, Path, spearman

NETWORKS = ("resnet20", "resnet32", "resnet44")
OLD = "Made at commit {}: three states of the code stand in one table; not made again."
MADE = {
    f"fidelity_{network}": Made(
        sha256=sha256, modules=("experiments.fidelity",), stale=OLD.format(commit)
    )
    for network, sha256, commit in (
        ("resnet20", "ffa30488f7760238", "24d4e46"),
        ("resnet32", "6890a66f0468bbf6", "98a8ca6"),
        ("resnet44", "604edb1abedf52b6", "98a8ca6"),
    )
}
LEFT = 32  # allocations whose measurement corrects the prediction of the others
RIDGE = 20.0


def _rho(result: Json, metric: str, key: str, kind: str, source: str = "heldout") -> float:
    predicted = result["sources"][source]["metrics"][metric]["predicted"][key][kind]
    return spearman(predicted, result["sets"][key]["measured"]["kl"])


def _composed(network: str, key: str) -> Path:
    return _predictions(network, "composed", key, "kl")


def _predictions(network: str, metric: str, key: str, kind: str) -> Path:
    """The whole list of predictions: one number of 200 moves no rank correlation."""
    name = f"fidelity_{network}"
    return (name, "sources", "heldout", "metrics", metric, "predicted", key, kind)


def corrected(result: Json, key: str, fit: int, score: int, seeds: int = 10) -> float:
    """Mean ρ of composed predictions corrected by 32 allocations measured on one half.

    Fitted on half `fit` of the evaluation images and scored on half `score`. Scored on the
    half that it was fitted on, the correction learns the errors of that half.
    """
    measured = result["sets"][key]["measured"]["kl_halves"]
    metric = result["sources"]["heldout"]["metrics"]["composed"]
    values = np.array(metric["predicted"][key]["kl"])
    words = ["".join(pair) for pair in result["sets"][key]["bits"]]
    columns = sorted({(i, c) for word in words for i, c in enumerate(word)})
    features = np.array([[float(word[i] == c) for i, c in columns] for word in words])
    found = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(words))
        train, test = order[:LEFT], order[LEFT:]
        rest = np.log(measured[fit]) - np.log(values)
        x = features - features[train].mean(axis=0)
        weights = np.linalg.solve(
            x[train].T @ x[train] + RIDGE * np.eye(x.shape[1]),
            x[train].T @ (rest[train] - rest[train].mean()),
        )
        guess = np.log(values[test]) + x[test] @ weights
        found.append(spearman(guess, np.array(measured[score])[test]))
    return float(np.mean(found))


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    by = {network: results[f"fidelity_{network}"] for network in NETWORKS}
    few = [key for key in ("w/2-3-4-8", "wa/2-3-4-8") if key in by["resnet20"]["sets"]]
    lead = [_rho(by[n], "composed", k, "kl") - _rho(by[n], "gauss_newton", k, "sum")
            for n in NETWORKS for k in few]  # fmt: skip
    cells = [(n, k) for n in NETWORKS for k in by[n]["sets"] if not k.startswith("grown")]
    first = [_rho(by[n], "first_order", k, "sum") for n, k in cells]
    single = [_rho(by[n], "measured_loss", k, "sum") - _rho(by[n], "measured_kl", k, "sum")
              for n, k in cells]  # fmt: skip
    sources = [
        _rho(by[n], "gauss_newton", k, "sum") - _rho(by[n], "gauss_newton", k, "sum", "train")
        for n, k in cells
    ]
    spent = by["resnet20"]["costs"]
    deciding = ("fidelity_resnet20", "costs")
    key = "w/4-8"
    deep = by["resnet44"]
    alone = spearman(
        deep["sources"]["heldout"]["metrics"]["composed"]["predicted"][key]["kl"],
        deep["sets"][key]["measured"]["kl_halves"][1],
    )
    halves = ("fidelity_resnet44", "sets", key, "measured", "kl_halves", 1)
    return [
        Claim(
            id="fidelity.composed_few_bits",
            says="With 2 bits among the candidates composed logits predict random "
            "allocations better than Gauss-Newton's sums on all three networks (difference "
            "of ρ at least 0.02).",
            value=min(lead),
            least=0.02,
            decides=_composed("resnet44", "w/2-3-4-8"),
            stale=COMPOSED,
        ),
        Claim(
            id="fidelity.composed_many_bits",
            says="With 4 and 8 bits they do not on ResNet-32: ρ is 0.05 to 0.15 lower.",
            value=_rho(by["resnet32"], "composed", key, "kl")
            - _rho(by["resnet32"], "gauss_newton", key, "sum"),
            least=-0.15,
            most=-0.05,
            decides=_composed("resnet32", key),
            stale=COMPOSED,
        ),
        Claim(
            id="fidelity.correction_leaks",
            says="Composed logits corrected by 32 measured allocations gain nothing on "
            "other images: fitted on one half of the images and scored on the other, ρ is "
            "lower than without correction (ResNet-44, weights, 4 and 8 bits).",
            value=corrected(deep, key, 0, 1) - alone,
            most=0.0,
            decides=_composed("resnet44", key),
            stale=COMPOSED,
        ),
        Claim(
            id="fidelity.correction_same_half",
            says="Scored on the images that it was fitted on, the same correction seems to "
            "gain at least 0.05 over the other half: such a row must not be shown.",
            value=corrected(deep, key, 1, 1) - corrected(deep, key, 0, 1),
            least=0.05,
            decides=halves,
            stale=COMPOSED,
        ),
        Claim(
            id="fidelity.superposed",
            says="With 3, 4 and 8 bits, weights alone, superposed logits are ahead of "
            "composed ones on ResNet-32, by 0.01 to 0.03 of ρ.",
            value=_rho(by["resnet32"], "superposed", "w/3-4-8", "kl")
            - _rho(by["resnet32"], "composed", "w/3-4-8", "kl"),
            least=0.01,
            most=0.03,
            decides=_predictions("resnet32", "superposed", "w/3-4-8", "kl"),
            stale=COMPOSED,
        ),
        Claim(
            id="fidelity.first_order",
            says="The first-order term's ρ is 0.16 at most in all 18 cells.",
            value=max(first),
            most=0.16,
            decides=_predictions("resnet20", "first_order", "wa/4-8", "sum"),
        ),
        Claim(
            id="fidelity.measured_loss",
            says="In none of the 18 cells does the measured loss of single layers rank "
            "better than their measured KL divergence.",
            value=max(single),
            most=0,
            decides=_predictions("resnet20", "measured_kl", "w/2-3-4-8", "sum"),
        ),
        Claim(
            id="fidelity.heldout",
            says="Gauss-Newton from held-out images ranks better than from training images "
            "in 16 of the 18 cells.",
            value=sum(x > 0 for x in sources),
            least=16,
            decides=_predictions("resnet20", "gauss_newton", "w/4-8", "sum"),
        ),
        Claim(
            id="fidelity.cost",
            says="For 160 moves of ResNet-20 composed logits cost 170 to 200 forward passes.",
            value=spent["composed"] / spent["forward"],
            least=170,
            most=200,
            decides=(*deciding, "composed"),
        ),
        Claim(
            id="fidelity.cost_range",
            says="Metrics cost from 2 forward passes (squared error) to 1,253 (the HAWQ "
            "eigenvalue).",
            value=max(
                spent["squared_error"] / spent["forward"] / 2.05,
                abs(spent["hawq_eigenvalue"] / spent["forward"] / 1253 - 1) / 1e-3,
            ),
            most=1,
            decides=(*deciding, "hawq_eigenvalue"),
        ),
    ]
