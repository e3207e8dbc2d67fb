"""``python -m tests.hosts.sleeping SECONDS …``: marrow-node, whose detector takes a GPU's time.

What a GPU does takes no core: the detector sleeps before its first batch of a slide, for as long as
all of the slide's batches would take there, and then runs as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from models import session
from models.records import Float32, UInt8


def main() -> None:
    seconds = float(sys.argv.pop(1))
    run = session.Session.__call__
    slept = False  # of this process: each slide is read in one of its own

    def sleeping(self: session.Session, image: UInt8) -> Mapping[str, Float32]:
        nonlocal slept
        if self.stage == "detector" and not slept:
            slept = True
            time.sleep(seconds)
        return run(self, image)

    session.Session.__call__ = sleeping  # type: ignore[method-assign]
    from node.cli import main as marrow_node

    marrow_node(prog_name="marrow-node")


if __name__ == "__main__":
    main()
