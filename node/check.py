"""``marrow-node check``: do objects conform, and do they say the same?"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from conformance.check import Checked, check_given
from conformance.given import Given, read_paths, read_study
from conformance.result_set import ResultSet
from conformance.telling import as_json, as_junit
from dicom_io.errors import ConfigurationInvalid
from dicom_io.folder_index import UID
from dicom_io.pacs import open_pacs
from node.config import Settings
from node.console import OUT

EXIT_CODES = {"conformant": 0, "warnings": 1, "errors": 3}
STYLES = {"error": "red", "warning": "yellow"}
_STUDY = re.compile(r"(?P<base>\w+://.+?)/studies/(?P<uid>[0-9.]+)/?")


@click.command()
@click.option("--json", "json_wanted", is_flag=True, help="Print the findings as JSON.")
@click.option(
    "--junit", type=click.Path(path_type=Path), help="Also write the findings to this JUnit file."
)
@click.argument("what", nargs=-1, required=True, metavar="PATH|URL|UID...")
@click.pass_obj
def check(settings: Settings, json_wanted: bool, junit: Path | None, what: tuple[str, ...]) -> None:
    """Check DICOM objects and FHIR Bundles against the standards, viewers and each other.

    PATH is a file or a folder; URL a study, https://…/dicom-web/studies/UID; UID a study in the
    archive of the settings, whose credentials no other host is shown. All that is given is taken
    for one set: results of one slide, with the slide itself so that places and references can be
    looked at. Validators by others (dciodvfy, dcentvfy, dsrdump) are asked where they are
    installed.

    \b
    Exit codes:
      0  nothing found
      1  warnings only
      3  errors
    Others as in 'marrow-node --help': 20 nothing to check there, 31 no connection, …
    """
    with TemporaryDirectory(prefix="marrow-node-check-") as folder:
        checked = check_given(_given(settings, what, Path(folder)))
    if junit is not None:
        junit.write_text(as_junit(checked), encoding="utf-8")
    if json_wanted:
        click.echo(json.dumps(as_json(checked), indent=2))
    else:
        _print(checked)
    sys.exit(EXIT_CODES[checked.verdict])


def _given(settings: Settings, what: tuple[str, ...], scratch: Path) -> Given:
    parts = []
    paths = []
    for number, each in enumerate(what):
        study = _STUDY.fullmatch(each)
        if study is not None:
            parts.append(_study(settings, study["base"], study["uid"], scratch / str(number)))
        elif UID.fullmatch(each) and not Path(each).exists():
            parts.append(_study(settings, settings.pacs_url, each, scratch / str(number)))
        elif "://" in each:
            raise ConfigurationInvalid(
                f"{each} is not the URL of a study: write https://…/dicom-web/studies/UID."
            )
        else:
            paths.append(Path(each))
    if paths:
        parts.append(read_paths(paths))
    return _together(parts)


def _study(settings: Settings, url: str, uid: str, scratch: Path) -> Given:
    scratch.mkdir()
    with open_pacs(url, settings.pacs) as pacs:
        return read_study(pacs, uid, scratch)


def _together(parts: list[Given]) -> Given:
    return Given(
        ResultSet(
            tuple(each for part in parts for each in part.results.objects),
            tuple(each for part in parts for each in part.results.bundles),
        ),
        tuple(each for part in parts for each in part.files),
        tuple(each for part in parts for each in part.findings),
        tuple(each for part in parts for each in part.notes),
    )


def _print(checked: Checked) -> None:
    for each in checked.findings:
        OUT.print(f"[{STYLES[each.severity]}]{each.severity:<8}[/]{each.rule}", highlight=False)
        place = f"{each.object} {each.path}".rstrip()
        for line in (place, each.sentence, f"[{each.source}]"):
            OUT.print(f"        {line}", markup=False, highlight=False, soft_wrap=True)
    for note in checked.notes:
        OUT.print(f"note    {note}", markup=False, highlight=False, soft_wrap=True)
    kinds = ", ".join(kind for _, kind in checked.objects)
    OUT.print(
        f"{len(checked.objects)} objects ({kinds}), {len(checked.findings)} findings: "
        f"{checked.verdict}",
        highlight=False,
    )
