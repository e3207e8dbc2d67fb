"""A PostgreSQL server for a test, on a free loopback port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import cannot_run, free_port

# Debian keeps the programs of a server out of the path.
_DEBIAN = map(str, Path("/usr/lib/postgresql").glob("*/bin"))
_PLACES = os.pathsep.join([os.environ["PATH"], *_DEBIAN])
INITDB = shutil.which("initdb", path=_PLACES)
PG_CTL = shutil.which("pg_ctl", path=_PLACES)


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Start an empty server; yields the URL of its database. Without one the test is skipped."""
    if INITDB is None or PG_CTL is None:
        cannot_run("no PostgreSQL here: apt-get install postgresql")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        # It refuses to run as root, and then runs as the user that its package has made.
        user: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            user = ["runuser", "-u", "postgres", "--"]

        def run(*command: str) -> None:
            # What a server inherits stays open for as long as it lives: not our pipes.
            nothing = subprocess.DEVNULL
            subprocess.run(
                [*user, *command], check=True, stdout=nothing, stderr=nothing, cwd="/", timeout=60
            )

        control = (str(PG_CTL), "-D", data, "-w")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        run(str(INITDB), "-D", data, "-U", "node", "-A", "trust", "-N")
        run(*control, "-o", options, "-l", f"{folder}/log", "start")
        try:
            yield f"postgresql://node@127.0.0.1:{port}/postgres"
        finally:
            run(*control, "-m", "immediate", "stop")
