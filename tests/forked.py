"""``marrow-node`` in a process of its own that begins with its libraries loaded.

Loading them takes three seconds, which is longer than most commands of tests take otherwise. One
server process loads them and forks for each command (the standard library's forkserver). What a
shell starts, ``python -m node``, is what the tests run that kill it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from node.cli import COMMANDS

_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = ["node.cli", *{module for module, _ in COMMANDS.values()}]
_FORKS.set_forkserver_preload(_PRELOADED)


def preload(module: str) -> None:
    """Load a further module before commands are forked, unless one has been already."""
    _FORKS.set_forkserver_preload([*_PRELOADED, module])


def marrow_node(*arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
    """Run a command as :func:`subprocess.run` would."""
    with TemporaryDirectory() as folder:
        said = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = _FORKS.Process(
            target=_run, args=(arguments, dict(os.environ), os.getcwd(), [str(p) for p in said])
        )
        process.start()
        process.join(timeout_s)
        code = process.exitcode
        if code is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["marrow-node", *arguments], timeout_s)
        out, err = (path.read_text(encoding="utf-8") for path in said)
        return subprocess.CompletedProcess(["marrow-node", *arguments], code, out, err)


def start_marrow_node(*arguments: str, said: Path) -> BaseProcess:
    """Start a command that lasts, such as ``work``; what it says goes to a new file `said`."""
    process = _FORKS.Process(
        target=_run,
        args=(arguments, dict(os.environ), os.getcwd(), [os.devnull, str(said)]),
        daemon=True,
    )
    process.start()
    return process


def _run(
    arguments: tuple[str, ...], environment: dict[str, str], folder: str, said: list[str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(said, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        for number in (1, 2)
    )
    from node.cli import main

    try:
        main(list(arguments), prog_name="marrow-node")
    finally:
        # As an interpreter does that ends; a forked one only stops.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
