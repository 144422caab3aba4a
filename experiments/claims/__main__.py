"""Print all claims, or the hashes of the committed results."""

import sys

from experiments.claims.claim import all_modules, file_sha256, load
from jmpq.study.source import source_sha256

for name, module in all_modules():
    if sys.argv[1:] == ["hashes"]:
        for result, made in module.MADE.items():
            print(result, file_sha256(result), source_sha256(*made.modules))
        continue
    print(f"\n{name}")
    for claim in module.check({result: load(result) for result in module.MADE}):
        state = "ok  " if claim.holds else "FAIL"
        limits = f"{claim.least:g} to {claim.most:g}"
        print(f"  {state} {claim.id}: {claim.value:.4g} ({limits})  {claim.says}"
              + (f"  [{claim.stale}]" if claim.stale else ""))  # fmt: skip
