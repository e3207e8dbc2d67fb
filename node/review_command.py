"""``marrow-node review``: a person's decision on a result, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from models.errors import ReviewInvalid
from node.config import Settings
from node.console import print_job
from node.delivery import now_utc
from node.review import Review, review_from
from node.running import run_review


@click.command()
@click.option("--confirm", is_flag=True, help="The result is right as it is.")
@click.option("--withdraw", metavar="REASON", help="The result should not have been given.")
@click.option(
    "--annotation",
    "annotation_uid",
    metavar="SOP_INSTANCE_UID",
    help="Correct it: the cells are those of this ANN, edited in a viewer and stored in the PACS.",
)
@click.option(
    "--corrections",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Correct single cells: JSON with retyped, deleted, added (see below).",
)
@click.option("--revision", type=int, required=True, help="The revision that was looked at.")
@click.option("--by", "name", required=True, help="Who decides: Family^Given^^Prefix.")
@click.option("--organization", required=True, help="For which organization.")
@click.option("--reason", default="", help="Why it was corrected, in words.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.argument("job")
@click.pass_obj
def review(settings: Settings, /, job: str, as_json: bool, **given: Any) -> None:
    """Confirm, correct or withdraw the result of a job.

    Waits until the next revision is delivered: a verified report that names the one before, the
    EHR's report with its new status. Nothing in the archive is changed. The same decision given
    again is the same revision.

    \b
    Corrections name cells by group and index of their annotation, from 1, or by a place (px of the
    base level) inside their box:
      {"retyped": [{"group": 3, "index": 17, "type": "myelocyte"}],
       "deleted": [{"at_px": [10240.5, 8811.0]}],
       "added": [{"box_px": [9100, 7000, 9160, 7062], "type": "blast"}]}
    """
    reviewed = run_review(settings, job, decided(**given))
    print_job(reviewed, as_json)
    sys.exit(reviewed.exit_code)


def decided(
    *,
    confirm: bool,
    withdraw: str | None,
    annotation_uid: str | None,
    corrections: Path | None,
    revision: int,
    name: str,
    organization: str,
    reason: str,
) -> Review:
    """The review that a command line asks for.

    Raises
    ------
    ReviewInvalid
        When it asks for none or several, or its corrections cannot be read.
    """
    ways = {
        "confirmed": confirm,
        "corrected": annotation_uid is not None or corrections is not None,
        "withdrawn": withdraw is not None,
    }
    chosen = [decision for decision, asked in ways.items() if asked]
    if len(chosen) != 1:
        raise ReviewInvalid(
            "Say what is decided: one of --confirm, --annotation, --corrections and --withdraw."
        )
    return review_from(
        {
            "revision": revision,
            "decision": chosen[0],
            "name": name,
            "organization": organization,
            "at": now_utc(),
            "reason": withdraw if withdraw is not None else reason,
            "annotation_uid": annotation_uid or "",
            "corrections": _read(corrections) if corrections is not None else None,
        }
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ReviewInvalid(
            f"The corrections in {path} cannot be read: give a file of JSON."
        ) from error
