"""The table of `bench_evaluation` for README.md, from its JSON alone."""

from statistics import median
from typing import Any

SIDES = {
    "jmpq": "jmpq, one program for all",
    "rebuilt": "the same network rebuilt and compiled for every candidate",
    "torch": "PyTorch, eager fake quantization",
}


def evaluation_table(result: dict[str, Any]) -> str:
    """One row a side: seconds and candidates per second, and how much faster jmpq is."""
    config, sides = result["config"], result["sides"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    ours = median(sides["jmpq"]["seconds_per_candidate"])
    lines = [
        f"{config['images']} images, random bits of {config['w_bits']} (weights) and "
        f"{config['a_bits']} (activations), {config['rounds']} rounds, medians; "
        f"{config['threads']} thread(s) of {result['machine']['cpu']}, "
        f"{result['machine']['cores']} cores, load {result['machine']['load'][0]:.1f}: the "
        f"ratios, not the seconds, are to be compared; {versions}.",
        "",
        "| evaluation | seconds per candidate | candidates per second | first call, s | "
        "jmpq is faster by |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, label in SIDES.items():
        if name not in sides:
            lines.append(f"| {label} | absent | - | - | - |")
            continue
        seconds = median(sides[name]["seconds_per_candidate"])
        ratio = "-" if name == "jmpq" else f"{seconds / ours:.1f}×"
        first = f"{sides[name]['first_s']:.1f}"
        lines.append(f"| {label} | {seconds:.3g} | {1 / seconds:.3g} | {first} | {ratio} |")
    return "\n".join(lines)
