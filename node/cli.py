"""The command line: ``marrow-node``.

A command is loaded when it is called: DICOM, models, drawing and the job database together take
three seconds, of which help needs nothing and a look at the jobs little.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from dicom_io.errors import InputError
from models.errors import MarrowNodeError
from node import __version__
from node.config import load_settings
from node.exit_codes import exit_code_table
from node.log import set_up_logging

# Name → (module that has the command under that name, the first sentence of its help).
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "analyse": ("node.analyse_command", "Analyse one slide and deliver its results."),
    "backup": (
        "node.backup",
        "Copy jobs, results and work files into FILE, a tar archive, while the node works.",
    ),
    "batch": (
        "node.batch_command",
        "Analyse the slides of an archive again: those of the studies that QUERY finds.",
    ),
    "check": (
        "node.check",
        "Check DICOM objects and FHIR Bundles against the standards, viewers and each other.",
    ),
    "compare": (
        "node.model_commands",
        "Run several packages over the same slides and print one table; nothing is stored"
        " anywhere.",
    ),
    "config": (
        "node.installation",
        "Print every setting with its value as it is in force, and its reason.",
    ),
    "demo": ("node.demo", "Compose a slide from real cells, analyse it, compare with the truth."),
    "evaluate": (
        "node.model_commands",
        "Measure a package on the test images of a training's CONFIG, with the product's own code.",
    ),
    "field": (
        "node.model_commands",
        "Find the cells of one camera field: PNG, JPEG, TIFF, or a DICOM VL Microscopic Image.",
    ),
    "jobs": ("node.job_commands", "List all jobs of the work folder, newest first."),
    "key": (
        "node.serve",
        "Make a key for a machine or a person; it is shown once and stored nowhere.",
    ),
    "models": ("node.installation", "List the model packages that are installed."),
    "pause": (
        "node.pause",
        "Let no worker begin another slide, until 'marrow-node resume'.",
    ),
    "perform": (
        "node.perform",
        "Perform the workitems of the node's own list and of a manager's, until SIGTERM.",
    ),
    "poll": (
        "node.poll",
        "Look for new slides in the archive and in a folder (settings [poll]), until SIGTERM.",
    ),
    "probe": (
        "node.probe",
        "Find out what the archive at URL can do, and print the settings that fit it.",
    ),
    "purge": (
        "node.serve",
        "Forget old jobs, results, work files and received slides; reviewed results are kept.",
    ),
    "receive": (
        "node.receive",
        "Receive slides by DICOM C-STORE, and analyse each when it is complete.",
    ),
    "reconcile": (
        "node.reconciliation",
        "Check delivered results again: ANN, SR and FHIR as they are there now.",
    ),
    "restore": (
        "node.backup",
        "Restore what 'marrow-node backup' wrote, into an empty work folder and database.",
    ),
    "resume": ("node.pause", "Let workers begin slides again."),
    "review": ("node.review_command", "Confirm, correct or withdraw the result of a job."),
    "rules": ("node.rules", "Look at the rules in the settings file ([[rules]])."),
    "serve": ("node.serve", "Run the service: web, pages and workers, until SIGTERM."),
    "show": ("node.job_commands", "Show one job: its result, or why it failed."),
    "train": (
        "node.model_commands",
        "Train a model: 'train CONFIG.toml'; or choose what to annotate next: 'train select'.",
    ),
    "web": ("node.serve", "Run the web process alone; jobs wait until a worker takes them."),
    "work": (
        "node.serve",
        "Run one worker alone: it analyses what is queued, one slide at a time, until SIGTERM.",
    ),
}


# Of a file or folder that the command line or the settings name.
_PATH_ERRORS = (
    *(FileNotFoundError, FileExistsError, PermissionError),
    *(NotADirectoryError, IsADirectoryError),
)


def _epilog() -> str:
    rows = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exit_code_table())
    return f"\b\nExit codes:\n{rows}"


class _Commands(click.Group):
    """Loads commands one by one, and turns an error of the tree into a sentence and exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MarrowNodeError as error:
            click.echo(f"marrow-node: {error}", err=True)
            ctx.exit(error.exit_code)
        except _PATH_ERRORS as error:
            if error.filename is None:
                raise
            click.echo(
                f"marrow-node: {error.filename}: {error.strerror}: name another path, or let it be"
                " read and written.",
                err=True,
            )
            ctx.exit(InputError.exit_code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_Commands, epilog=_epilog(), context_settings={"max_content_width": 100})
@click.version_option(__version__, prog_name="marrow-node")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="MARROW_NODE_CONFIG",
    help="TOML file with the settings; 'marrow-node config' lists them all.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Work folder (setting work_folder).")
@click.option("--verbose", is_flag=True, help="Log what the node does to standard error.")
@click.pass_context
def main(ctx: click.Context, config: Path | None, work: Path | None, verbose: bool) -> None:
    """Analyse bone marrow smears: whole slide images in, annotations and reports out.

    \b
    Try it without any server:
      marrow-node demo
    Analyse a slide of your PACS:
      marrow-node analyse --pacs https://pacs.example/dicom-web --ehr https://ehr.example/fhir \\
          STUDY_UID SERIES_UID
    See what was done:
      marrow-node jobs
      marrow-node show JOB

    The shipped model demo-smear is a demonstration, not for clinical use.
    """
    settings = load_settings(config)
    set_up_logging(verbose, settings.log_format)
    ctx.obj = replace(settings, work_folder=work) if work else settings
