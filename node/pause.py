"""``marrow-node pause`` and ``resume``: no further slide is begun, as before an upgrade."""

from __future__ import annotations

import time

import click

from node.config import Settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue

LOOK_S = 0.5


@click.command()
@click.option("--wait", is_flag=True, help="Wait until the slides that are at work are finished.")
@click.pass_obj
def pause(settings: Settings, wait: bool) -> None:
    """Let no worker begin another slide, until 'marrow-node resume'.

    Slides that are at work are finished; what comes in meanwhile is queued, and reviews go on. It
    holds for all workers of the job database, also after they are started again.
    """
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        queue.pause()
        at_work = queue.counts()["running"]
        while wait and at_work:
            time.sleep(LOOK_S)
            at_work = queue.counts()["running"]
    click.echo(f"paused; {at_work} slides are still at work" if at_work else "paused")


@click.command()
@click.pass_obj
def resume(settings: Settings) -> None:
    """Let workers begin slides again."""
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        queue.resume()
    click.echo("resumed")
