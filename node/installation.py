"""``marrow-node models`` and ``config``: what is installed here, and how it is set."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Table

from models.package import installed_packages
from node.config import Settings, settings_rows
from node.console import OUT


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def models(settings: Settings, as_json: bool) -> None:
    """List the model packages that are installed."""
    packages = installed_packages(settings.model.folders)
    rows = [
        {
            "name": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "demonstration": package.manifest.demonstration,
            "intended_use": package.manifest.intended_use,
            "classes": list(package.manifest.classes),
            "folder": str(package.folder),
        }
        for package in packages
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "version", "digest", "intended use", "types", box=None)
    for row in rows:
        table.add_row(
            str(row["name"]),
            str(row["version"]),
            str(row["digest"])[:12],
            str(row["intended_use"]),
            str(len(row["classes"])),  # type: ignore[arg-type]
        )
    OUT.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def config(settings: Settings, as_json: bool) -> None:
    """Print every setting with its value as it is in force, and its reason."""
    rows = list(settings_rows(settings))
    if as_json:
        click.echo(json.dumps({name: value for name, value, _ in rows}, indent=2, default=str))
        return
    table = Table("setting", "value", "what for", box=None)
    for name, value, reason in rows:
        table.add_row(name, repr(str(value) if isinstance(value, Path) else value), reason)
    OUT.print(table)
