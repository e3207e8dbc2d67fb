"""``marrow-node probe``: what a site's archive can do, and the settings that fit it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from dicom_io.errors import PacsError
from dicom_io.probe import Probed, probe_archive
from dicom_io.probe_http import Finding
from node.config import Settings
from node.console import ERR, OUT

STYLES = {"yes": "green", "no": "yellow", "defect": "red", "unknown": "dim"}
USABLE, USABLE_WITH_LINES = 0, 1


@click.command()
@click.option(
    "--store",
    is_flag=True,
    help="Also store a small test study, and delete it again where the archive can.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.argument("url")
@click.pass_obj
def probe(settings: Settings, store: bool, as_json: bool, url: str) -> None:
    """Find out what the archive at URL can do, and print the settings that fit it.

    Only reads, and tells UIDs but nothing of patients. With --store it writes a study of the
    patient MARROW-NODE^PROBE to find out how annotations and reports fare; DICOMweb cannot delete,
    so the study may stay, and its UID is printed. The settings' credentials are shown to the hosts
    of the settings alone: set pacs_url first where the archive asks for them.

    \b
    Exit codes:
      0  usable as it is
      1  usable with the printed lines in the settings
     30  not usable: no search, no metadata, or no way to read frames
    Others as in 'marrow-node --help': 31 no connection, 33 credentials refused, …
    """

    def tell(finding: Finding) -> None:
        where = ERR if as_json else OUT
        style = STYLES[finding.verdict]
        where.print(
            f"[{style}]{finding.verdict:<8}[/] {finding.name:<28} ", end="", highlight=False
        )
        where.print(finding.sentence, markup=False, highlight=False, soft_wrap=True)

    with TemporaryDirectory(prefix="marrow-node-probe-") as folder:
        scratch = Path(folder) / "study" if store else None
        probed = probe_archive(url, settings.pacs, scratch, tell)
    code = exit_code(probed)
    if as_json:
        click.echo(json.dumps({"url": url, "exit_code": code, **asdict(probed)}, indent=2))
    else:
        _print_end(probed, url)
    sys.exit(code)


def exit_code(probed: Probed) -> int:
    if not probed.usable:
        return PacsError.exit_code
    return USABLE_WITH_LINES if probed.lines else USABLE


def _print_end(probed: Probed, url: str) -> None:
    OUT.print()
    for note in probed.notes:
        OUT.print(f"defect: {note}", markup=False, highlight=False, soft_wrap=True)
    if not probed.usable:
        OUT.print("Not usable: no search, no metadata, or no way to read frames.")
        return
    OUT.print("# Settings that fit:" if probed.lines else "# Usable with the settings in force:")
    for line in (f'pacs_url = "{url}"', *probed.lines):
        OUT.print(line, markup=False, highlight=False, soft_wrap=True)
