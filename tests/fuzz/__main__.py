"""``python -m tests.fuzz``: mutated inputs for every target; findings are kept as files.

With atheris (``--seconds``) the mutations are guided by coverage of the Python code.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS, kept
from tests.fuzz.watch import BUDGET_BYTES, HANG_S, watched


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--runs", type=int, default=10_000, help="mutations over all targets")
    ask.add_argument("--first", type=int, default=0, help="number of the first mutation")
    ask.add_argument("--seconds", type=int, default=0, help="coverage-guided, over all targets")
    ask.add_argument("--target", choices=TARGETS, action="append")
    wanted = ask.parse_args()
    targets = wanted.target or list(TARGETS)
    found = sum(_mutations(t, wanted.runs // len(targets), wanted.first) for t in targets)
    if wanted.seconds and find_spec("atheris") is None:
        print("atheris is not installed: nothing is searched by coverage")
    elif wanted.seconds:
        found += sum(_guided(t, wanted.seconds // len(targets)) for t in targets)
    print(f"{found} findings")
    return min(found, 1)


def _mutations(target: str, runs: int, first: int) -> int:
    seeds = [*TARGETS[target].seeds(), *kept(target)]
    started = time.monotonic()
    findings = watched(target, seeds, [*range(-len(seeds), 0), *range(first, first + runs)])
    seconds = time.monotonic() - started
    print(f"{target}: {len(seeds)} seeds, {runs} mutations, {seconds:.0f} s, {len(findings)} found")
    for finding in findings:
        print(f"  number {finding.number} → {_keep(target, finding.data)}\n  {finding.what}")
    return len(findings)


def _keep(target: str, data: bytes) -> Path:
    path = CORPUS / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _guided(target: str, seconds: int) -> int:
    """Let atheris search in a process of its own; it stops at the first finding."""
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate([*TARGETS[target].seeds(), *kept(target)]):
            (Path(folder) / str(number)).write_bytes(seed)
        limits = [f"-max_total_time={seconds}", f"-timeout={HANG_S:.0f}"]
        limits.append(f"-rss_limit_mb={500 + BUDGET_BYTES // 2**20}")
        prefix = f"-artifact_prefix={folder}/finding-"
        search = [sys.executable, "-m", "tests.fuzz.guided", target, *limits, prefix, folder]
        ended = subprocess.run(search, check=False, env=os.environ, capture_output=True, text=True)
        said = ended.stderr.splitlines()
        runs = next((line for line in reversed(said) if line.startswith("Done ")), "cut short")
        print(f"{target}, guided: {runs}")
        findings = sorted(Path(folder).glob("finding-*"))
        for finding in findings:
            print(f"  {finding.name} → {_keep(target, finding.read_bytes())}")
        if ended.returncode and not findings:
            print("\n".join(said[-15:]))
        if findings:
            print("\n".join(said[-40:]))
        return max(len(findings), int(ended.returncode != 0))


if __name__ == "__main__":
    sys.exit(main())
