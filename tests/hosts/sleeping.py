"""``python -m tests.hosts.sleeping SECONDS …``: marrow-node, whose detection takes a GPU's time.

What a GPU does takes no core: detection sleeps for as long as a slide would take there, or up to a
fifth longer, as slides differ, and then runs as it is.
"""

from __future__ import annotations

import random
import sys
import time
from functools import wraps
from typing import Any

from node import stages

LONGER = 1.2


def main() -> None:
    seconds, detect = float(sys.argv.pop(1)), stages.detect

    @wraps(detect)
    def sleeping(*arguments: Any) -> dict[str, Any]:
        time.sleep(seconds * random.uniform(1.0, LONGER))  # noqa: S311
        return detect(*arguments)

    stages.detect = sleeping
    from node.cli import main as marrow_node

    marrow_node(prog_name="marrow-node")


if __name__ == "__main__":
    main()
