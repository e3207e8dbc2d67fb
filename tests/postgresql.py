"""A PostgreSQL server for a test, on a free loopback port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.servers import cannot_run, free_port

# Debian keeps the programs of a server out of the path.
_DEBIAN = map(str, Path("/usr/lib/postgresql").glob("*/bin"))
_PLACES = os.pathsep.join([os.environ["PATH"], *_DEBIAN])
INITDB = shutil.which("initdb", path=_PLACES)
PG_CTL = shutil.which("pg_ctl", path=_PLACES)
MISSING_POSTGRESQL = "no PostgreSQL here: apt-get install postgresql"


def postgresql_missing() -> bool:
    return INITDB is None or PG_CTL is None


class PostgresServer:
    """A server with its data in a folder. Made by :func:`running_server`.

    Attributes
    ----------
    url
        Of its first database.
    down
        Held by whoever has stopped it, until it runs again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data, port = folder, folder / "data", free_port()
        self.url = f"postgresql://node@127.0.0.1:{port}/postgres"
        self.down = threading.Lock()
        self._options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {folder}"
        # It refuses to run as root, and then runs as the user that its package has made.
        self._user: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._user = ["runuser", "-u", "postgres", "--"]
        self._run(str(INITDB), "-D", str(self._data), "-U", "node", "-A", "trust", "-N")

    def start(self) -> None:
        self._control("-o", self._options, "-l", f"{self._folder}/log", "start")

    def stop(self) -> None:
        """Stop as an administrator does: sessions end, what was committed is kept."""
        self._control("-m", "fast", "stop")

    def ask_for(self, password: str) -> str:
        """Let nobody in without a password from now on; the URL with it."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"ALTER USER node PASSWORD '{password}'")
            (self._data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
            connection.execute("SELECT pg_reload_conf()")
        return self.url.replace("node@", f"node:{password}@")

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes."""
        for pid in self._pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """Kill all of its processes, and wait until they are gone."""
        pids = self._pids()
        self.signal(signal.SIGKILL)
        end = time.monotonic() + 10
        while any(_lives(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.01)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        if self._pids():
            self._control("-m", "immediate", "stop")

    def _pids(self) -> list[int]:
        try:
            main = int((self._data / "postmaster.pid").read_text().splitlines()[0])
            children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [main, *map(int, children)]

    def _control(self, *command: str) -> None:
        self._run(str(PG_CTL), "-D", str(self._data), "-w", *command)

    def _run(self, *command: str) -> None:
        # What a server inherits stays open for as long as it lives: not our pipes.
        nothing = subprocess.DEVNULL
        subprocess.run(
            [*self._user, *command], check=True, stdout=nothing, stderr=nothing, cwd="/", timeout=60
        )


def _lives(pid: int) -> bool:
    """Also one that has ended and whose parent does not know yet: PostgreSQL takes it as alive."""
    return Path(f"/proc/{pid}").exists()


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start an empty server; without one the test is skipped."""
    if postgresql_missing():
        cannot_run(MISSING_POSTGRESQL)
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.close()


@contextmanager
def running_postgresql() -> Iterator[str]:
    """Start an empty server; yields the URL of its database."""
    with running_server() as server:
        yield server.url
