"""Jobs that a dead worker left running are given to the living.

DBOS queues them anew, and where it cannot, as on a full disk, it writes a line and goes on. So what
is left is looked for, and queued again, until nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dicom_io.errors import DiskFull
from node.job_queue import JobQueue
from node.work_lock import live_workers

LOOK_S = 5.0
Recover = Callable[[list[str]], object]


def recover_from(jobs: JobQueue, recover: Recover, executors: Collection[str]) -> None:
    """Queue the jobs of dead executors anew.

    Parameters
    ----------
    jobs
    recover
        Of DBOS.
    executors
        A worker from one start to its end, as DBOS knows it.

    Raises
    ------
    DiskFull
        When some could not be queued.
    """
    recover([*executors])
    if jobs.executors() & set(executors):
        raise DiskFull(
            "Jobs of a worker that died could not be queued: free space where the job database is; "
            "it is tried again."
        )


def recover_dead(jobs: JobQueue, recover: Recover, folder: Path, own: str) -> None:
    """Queue the jobs of a work folder's dead workers anew.

    Parameters
    ----------
    jobs
    recover
        Of DBOS.
    folder
        Of the workers' locks.
    own
        Executor of this worker, see :func:`executor`.

    Raises
    ------
    DiskFull
        When some could not be queued.
    """
    dead = _dead(jobs.executors(), folder, own)
    if dead:
        recover_from(jobs, recover, dead)


def executor(worker: str, start: str) -> str:
    """How DBOS knows a worker from one start to its end."""
    return f"{worker}.{start}"


def _dead(executors: Collection[str], folder: Path, own: str) -> Sequence[str]:
    live = live_workers(folder)
    worker = _worker_of(own)
    return [
        each
        for each in executors
        # This worker's own lock is proof that its earlier starts are dead. Those of others that
        # live they know themselves.
        if each != own and (_worker_of(each) == worker or _worker_of(each) not in live)
    ]


def _worker_of(executor: str) -> str:
    return executor.rpartition(".")[0] or executor
