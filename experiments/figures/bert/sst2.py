"""The tables of the SST-2 experiment as one page of Markdown, from its JSON alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.figures.bert.minilm import label

Json = Mapping[str, Any]
MODES = {"w": "weights alone", "wa": "activations at 8 bits"}
SEARCHED = "/embeddings"


def sst2_tables(result: Json) -> str:
    """All tables, in sections of Markdown."""
    counts = {name: split["examples"] for name, split in result["splits"].items()}
    config, exact = result["config"], result["float"]
    size = {name: f"{count / 1e6:.2f}" for name, count in result["parameters"].items()}
    epochs = config["epochs"]
    parts = [
        f"`{config['model']}`, trained by this project on the training sentences alone, "
        f"{epochs} epoch{'s' * (epochs != 1)}, nothing pretrained: {size['embeddings']} "
        f"million parameters in embeddings, {size['encoder']} million in the encoder. Float "
        f"accuracy {100 * exact['top1']:.2f} % on {counts['evaluation']:,} sentences, the "
        f"development part (standard error {100 * exact['top1_sem']:.2f}, as of all below); "
        f"calibrated on {counts['calibration']:,} sentences of the test part. Asymmetric, "
        f"ranges of least squared error, {config['groups']} groups of output neurons. KL is "
        "from the float network's answer, nats per sentence.",
        "## At equal bytes\n\nAll weights at the bytes of a uniform encoder with embeddings "
        "and pooler at 8 bits (2.5: half way from 2 to 3 bits, where uniform is 2).",
        joint_table(result),
        "## Embeddings and activations apart (T6)\n\nAll else float.",
        apart_table(result),
        f"## Fine-tuned (T7)\n\nFrom the allocation of {label('exact/gauss_newton')} at "
        f"{config['budgets'][-1]:g} bits, weights alone: {config['tuning_epochs']} pass over "
        f"{counts['training']:,} training sentences, distilled from the float network. "
        "Recovered: part of the drop of accuracy, and of the KL divergence, that is made up "
        "for; mean over seeds.",
        tuned_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def method_name(method: str) -> str:
    """A method as a reader knows it."""
    if method.endswith(SEARCHED):
        return f"{label(method.removesuffix(SEARCHED))}, embeddings searched too"
    return label(method)


def joint_table(result: Json) -> str:
    """Accuracy and KL of every method at every budget."""
    lines = [
        "| average bits | allocation | kB | "
        + " | ".join(f"accuracy %, {mode} | KL" for mode in MODES.values())
        + " |",
        "| --- | --- | --- |" + " --- |" * 2 * len(MODES),
    ]
    found = {(r["bits"], r["method"], r["mode"]): r for r in result["joint"]}
    for bits, method in dict.fromkeys((r["bits"], r["method"]) for r in result["joint"]):
        rows = [found[bits, method, mode] for mode in MODES]
        cells = [cell for row in rows for cell in _outcome(row["measured"])]
        size = rows[0]["size_bytes"] / 1e3
        lines.append(f"| {bits:g} | {method_name(method)} | {size:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def apart_table(result: Json) -> str:
    """T6: embeddings alone and activations alone, all else float."""
    parts = {
        name: {row["bits"]: row["measured"] for row in result[name]}
        for name in ("embeddings", "activations")
    }
    lines = [
        "| bits | " + " | ".join(f"accuracy %, {name} | KL" for name in parts) + " |",
        "| --- |" + " --- |" * 2 * len(parts),
    ]
    for bits in sorted({b for found in parts.values() for b in found}, reverse=True):
        outcomes = [found.get(bits) for found in parts.values()]
        cells = [cell for m in outcomes for cell in (_outcome(m) if m else ("", ""))]
        lines.append(f"| {bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tuned_table(result: Json) -> str:
    """T7: after training and fine-tuned, with what is recovered."""
    rows = result["tuned"]
    if not rows:
        return "Not measured yet."
    (before,) = (
        r["measured"]
        for r in result["joint"]
        if (r["bits"], r["method"], r["mode"]) == (rows[0]["bits"], rows[0]["allocation"], "w")
    )
    drop = result["float"]["top1"] - before["top1"]
    lines = [
        "| network | accuracy % | KL | accuracy recovered | KL recovered |",
        "| --- | --- | --- | --- | --- |",
        f"| after training | {' | '.join(_outcome(before))} | – | – |",
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        outcomes = [r["measured"] for r in rows if r["method"] == method]
        top1, kl = (np.array([m[key] for m in outcomes]) for key in ("top1", "kl"))
        share = f"{(top1.mean() - before['top1']) / drop:.0%}" if drop > 0 else "no drop"
        lines.append(
            f"| fine-tuned, {method} | {_mean(100 * top1, 2)} | {_mean(kl, 4)} | {share} | "
            f"{1 - kl.mean() / before['kl']:.0%} |"
        )
    return "\n".join(lines)


def _outcome(measured: Json) -> tuple[str, str]:
    kl = measured["kl"]
    return f"{100 * measured['top1']:.2f}", "infinite" if kl is None else f"{kl:.4f}"


def _mean(values: Sequence[float] | np.ndarray, digits: int) -> str:
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"
