"""``python -m tests.faults --seeds A..B``: run schedules and add them to the kept table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run the schedules; 1 where one of them broke the promise."""
    # Each worker's process loads this file again, and needs none of these.
    from tests.faults.run import run
    from tests.faults.schedule import schedule_of
    from tests.faults.table import keep, write_summary
    from tests.faults.world import world

    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seeds", required=True, help="A..B, both included")
    first, _, last = parser.parse_args().seeds.partition("..")
    # Servers and workers end with this process, however it is told to.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broken = 0
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as servers:
        for seed in range(int(first), int(last or first) + 1):
            missing = servers.missing(schedule_of(seed))
            if missing:
                print(f"seed {seed}: skipped, {missing}", flush=True)
                continue
            outcome = run(servers, seed, Path(folder) / "run")
            keep(outcome)
            write_summary()
            print(
                f"seed {seed}: {'; '.join(outcome.told)}: {outcome.status} after {outcome.tries} "
                f"tries, {outcome.starts} starts, {outcome.seconds:g} s",
                flush=True,
            )
            if outcome.violations:
                broken += 1
                print(f"  BROKEN: {'; '.join(outcome.violations)}\n{outcome.said[-6000:]}")
                print(f"  replay: make faults SEEDS={seed}..{seed}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
