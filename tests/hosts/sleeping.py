"""``python -m tests.hosts.sleeping SECONDS …``: marrow-node, whose detection takes a GPU's time.

What a GPU does takes no core: detection sleeps for as long as a slide would take there, or up to a
fifth longer, as slides differ, and then runs as it is. A worker's first slide takes up to twice as
long: slides do not come all at once, and workers that begin together would use their processors
together, too, on and on.
"""

from __future__ import annotations

import random
import sys
import time
from functools import wraps
from typing import Any

from node import stages

LONGER, FIRST_LONGER = 1.2, 2.0


def main() -> None:
    seconds, detect = float(sys.argv.pop(1)), stages.detect
    # Processes of slides are forked from one that began with its worker.
    begun_s = time.monotonic()

    @wraps(detect)
    def sleeping(*arguments: Any) -> dict[str, Any]:
        is_first = time.monotonic() - begun_s < seconds
        longer = random.uniform(1.0, FIRST_LONGER if is_first else LONGER)  # noqa: S311
        time.sleep(seconds * longer)
        return detect(*arguments)

    stages.detect = sleeping
    from node.cli import main as marrow_node

    marrow_node(prog_name="marrow-node")


if __name__ == "__main__":
    main()
