"""The table of the curvature benchmark, from its JSON alone."""

from typing import Any

from experiments.bench.curvature import COMPARED

MIB = 2**20


FIRST = "the same; first call, compilation included"
PAIRS = "measured pairs, another quantity; extrapolated from few"
PEERS_WORK = {
    "per-layer traces": "estimated by 50 probes",
    "per-layer traces, 1e-5 of curvature left out": "estimated by 50 probes",
    "leading eigenvalues": FIRST,
    "spectral density": FIRST,
    "MPQCO table": "traces by 50 probes, another quantity",
    "Gauss-Newton matrix, derivative": PAIRS,
    "Gauss-Newton matrix, difference": PAIRS,
    "exact Hessian matrix": "100 times one product, not run",
}


def curvature_table(result: dict[str, Any]) -> str:
    """One row a task: our time, its cost in forward passes, the fastest peer's, the ratio."""
    config, machine = result["config"], result["machine"]
    runs = result["threads"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    lines = [
        f"ResNet-{config['depth']}, {config['images']} images, "
        f"{len(config['w_bits'])} weight bit-widths, float32; {machine['processor']}, "
        f"{machine['cores']} cores; {versions}.",
        "",
        "| work | threads | jmpq s | forward passes | fastest peer s | the peer's work | "
        "ratio | peak memory, jmpq / peer MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, ours, theirs, _ in COMPARED:
        for threads, run in runs.items():
            row = run["summary"]["seconds"]["rows"][label]
            peer = min(row["peers"], key=row["peers"].get) if row["peers"] else None
            memory = _memory(run["parts"][ours]["jmpq"])
            if peer:
                memory += f" / {_memory(run['parts'][theirs][peer])}"
            lines.append(
                f"| {label} | {threads} | {_seconds(row['jmpq'])} | "
                f"{row['forward_passes']:.1f} | "
                + (f"{peer} {_seconds(row['peers'][peer])} | " if peer else "absent | ")
                + f"{PEERS_WORK.get(label, 'the same')} | "
                + (f"{row['ratio']:.1f} | " if peer else "- | ")
                + f"{memory} |"
            )
    return "\n".join([*lines, "", _compile_times(runs)])


def _compile_times(runs: dict[str, Any]) -> str:
    """What the first calls took beyond a later one, on one thread."""
    threads = min(runs, key=int)
    extra = {}
    for _, ours, _, _ in COMPARED:
        found = runs[threads]["parts"][ours]["jmpq"]
        extra[ours] = found["first_s"] - sorted(found["seconds"])[len(found["seconds"]) // 2]
    told = ", ".join(f"{name} {max(seconds, 0):.1f} s" for name, seconds in extra.items())
    return f"Compilation, not counted above ({threads} thread(s)): {told}."


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _memory(part: dict[str, Any]) -> str:
    return f"{part['peak_rss_bytes'] / MIB:.0f}"
