"""Commands for people who make and choose models: train, evaluate, compare, field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from dicom_io.field_image import read_field_image
from models.cell_types import CELL_TYPES
from models.errors import TrainingInvalid
from models.fields import find_in_field
from models.manual_count import read_manual_count
from models.package import ModelPackage, find_package
from models.selection import Candidate, Ranked, as_pascal_voc, rank
from node.annotated_slides import annotated_images
from node.config import Settings
from node.console import ERR, OUT
from node.field import analyse_field, draw_field, field_as_json
from node.networks import open_sessions
from node.pipeline import SlideReference
from node.side_by_side import Row, compare_packages, rows_as_json
from node.unlabelled_slides import SlideTile, slide_candidates, write_tiles

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")


def _scale(_: click.Context, __: click.Parameter, um_per_px: float | None) -> float | None:
    """Refuse what is no size of a pixel."""
    if um_per_px is not None and not 0 < um_per_px < math.inf:
        raise click.BadParameter(f"{um_per_px:g} is no size of a pixel in µm, as 0.25 is.")
    return um_per_px


class _OrRecipe(click.Group):
    """``train CONFIG.toml`` trains; ``train select …`` is a command of its own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            return super().resolve_command(ctx, ["run", *args])
        return super().resolve_command(ctx, args)


@click.group(
    cls=_OrRecipe,
    subcommand_metavar="CONFIG.toml | folds CONFIG.toml | curve CONFIG.toml | select FOLDER",
)
def train() -> None:
    """Train a model: 'train CONFIG.toml'; or choose what to annotate next: 'train select'.

    How good is it on every slide? 'train folds CONFIG.toml' holds each fold out in turn. Would more
    annotations help? 'train curve CONFIG.toml' tells.

    The configuration names one of wang2022, tayebi2021, liu2022, choi2017, the data (Pascal VOC,
    COCO, YOLO, folders of single cells, slides with DICOM annotations, or composed smears) and how
    long; models/training/recipes holds examples. A training that was stopped goes on from its
    checkpoint when the same command is given again. It ends in ONNX, a report with pictures, and
    a model package: for that, its types are of the table of cell types, and a training of regions
    or tiles is named by one of cells (together_with).
    """


@train.command("run", hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@click.argument("config", type=click.Path(path_type=Path))
@click.pass_obj
def run_training(settings: Settings, config: Path, as_json: bool) -> None:
    """Train from CONFIG."""
    training = _training()
    recipe = training.load_recipe(config)
    result = training.run(recipe, ERR, _dicom_reader(settings, recipe, training))
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    OUT.print(f"report  {result['report']}", highlight=False, soft_wrap=True)
    OUT.print(f"package {result['package'] or 'none: see --help'}", highlight=False, soft_wrap=True)


@train.command()
@click.option("--json", "as_json", is_flag=True, help="Print every fold and figure as JSON.")
@click.argument("config", type=click.Path(path_type=Path))
@click.pass_obj
def folds(settings: Settings, config: Path, as_json: bool) -> None:
    """Train CONFIG once for every fold that is held out, as the papers do.

    Prints mean and standard deviation of what was measured on the folds, writes folds.csv and the
    confusion of all folds together into the folder 'out', and goes on where it was stopped. With
    folds = "each" in CONFIG every slide is held out in turn. No package is made: what is measured
    so is the way of training, not one of its networks.
    """
    training = _training()
    recipe = training.load_recipe(config)
    found, spreads, written = training.cross_validate(
        recipe, ERR, _dicom_reader(settings, recipe, training)
    )
    if as_json:
        rows = [{"fold": f.number, "groups": f.groups, "figures": f.figures} for f in found]
        figures = {name: asdict(each) for name, each in spreads.items()}
        click.echo(json.dumps({"folds": rows, "figures": figures}, indent=2))
        return
    table = Table("figure", "mean", "SD", box=None)
    for name, each in spreads.items():
        table.add_row(name, _shown(each.mean, 4), _shown(each.standard_deviation, 4))
    OUT.print(table)
    for path in written:
        OUT.print(str(path), highlight=False, soft_wrap=True)


@train.command()
@click.option("--json", "as_json", is_flag=True, help="Print the points as JSON.")
@click.argument("config", type=click.Path(path_type=Path))
@click.pass_obj
def curve(settings: Settings, config: Path, as_json: bool) -> None:
    """Train CONFIG on parts of its images, fold by fold: would more annotations help?

    Every fold is held out in turn, while a quarter, half, three quarters and all of the other
    groups are trained on. Writes learning_curve.csv and learning_curve.png into the folder 'out'.
    It takes as long as four trainings for each fold, and goes on where it was stopped.
    """
    training = _training()
    recipe = training.load_recipe(config)
    points, written = training.learning_curve(
        recipe, ERR, _dicom_reader(settings, recipe, training)
    )
    if as_json:
        click.echo(json.dumps([asdict(point) for point in points], indent=2))
        return
    for path in written:
        OUT.print(str(path), highlight=False, soft_wrap=True)


@train.command()
@click.option("--model", help="Model package that looks at the images.")
@click.option(
    "--um-per-px",
    type=float,
    callback=_scale,
    help="Scale of the images of FOLDER, or of tiles [of slides: the package's own].",
)
@click.option("--pacs", "pacs_url", help="Where the slides are.")
@click.option(
    "--slide",
    "uids",
    type=(str, str),
    multiple=True,
    metavar="STUDY_UID SERIES_UID",
    help="A slide whose tiles are candidates, instead of FOLDER; several times.",
)
@click.option(
    "--tile-px", type=click.IntRange(64), default=512, show_default=True, help="Side of tiles."
)
@click.option("--top", type=click.IntRange(1), default=250, show_default=True, help="How many.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write what was found in the chosen images here, as Pascal VOC to be corrected; of"
    " slides, the chosen tiles as well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.pass_obj
def select(
    settings: Settings,
    model: str | None,
    um_per_px: float | None,
    pacs_url: str | None,
    uids: tuple[tuple[str, str], ...],
    tile_px: int,
    top: int,
    out: Path | None,
    as_json: bool,
    folder: Path | None,
) -> None:
    """Rank unlabelled images by how rare and uncertain their cells are.

    Candidates are the images of FOLDER, or the tiles of slides in the archive where the package's
    localiser accepts them; what has labels there, or in the folder of --out, is left out, and no
    label is written anew. Active learning as in Tayebi et al. (2021), section 2.3: correct the
    labels that are written for the first ones with LabelImg or alike, and name their folder as a
    source of the next training. Annotations of a whole slide that were corrected in a viewer are a
    source of their own: format dicom.
    """
    if (folder is None) == (not uids):
        raise click.UsageError("Name a FOLDER of images, or slides with --slide.")
    package = find_package(model or settings.model.name, settings.model.folders)
    settings = replace(settings, pacs_url=pacs_url or settings.pacs_url)
    tiles: dict[Path, SlideTile] = {}
    labelled = _labelled(folder, out)
    scale = um_per_px or package.manifest.detector.um_per_px
    if folder is not None:
        if um_per_px is None:
            raise click.UsageError("Say with --um-per-px what scale the images of FOLDER have.")
        candidates = _folder_candidates(settings, package, folder, um_per_px, labelled)
    else:
        slides = [SlideReference(study, series, "selection") for study, series in uids]
        found = slide_candidates(settings, package, slides, tile_px, scale)
        found = {path: each for path, each in found.items() if path.stem not in labelled}
        candidates = [candidate for _, candidate in found.values()]
        tiles = {path: tile for path, (tile, _) in found.items()}
    if not candidates:
        raise TrainingInvalid(
            f"{folder or 'No slide'} holds no image without labels to choose from."
        )
    chosen = rank(candidates)[:top]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for each in chosen:
            path = out / f"{each.candidate.path.stem}.xml"
            path.write_bytes(as_pascal_voc(each.candidate))
        mine = [each.candidate.path for each in chosen if each.candidate.path in tiles]
        write_tiles(settings, {path: tiles[path] for path in mine}, scale, out)
    rows = [_row(each, tiles.get(each.candidate.path)) for each in chosen]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    _print_rows(rows)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
@click.option("--model", help="Evaluate this installed package on the test images of CONFIG.")
@click.option(
    "--manual",
    type=click.Path(path_type=Path),
    help="Manual differential of the same slides, CSV with the columns type and count.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.argument("config", type=click.Path(path_type=Path))
@click.pass_obj
def evaluate(
    settings: Settings,
    out: Path | None,
    model: str | None,
    manual: Path | None,
    as_json: bool,
    config: Path,
) -> None:
    """Measure a package on the test images of a training's CONFIG, with the product's own code.

    Writes report.json, report.md and pictures: per type recall, precision, F1, accuracy, average
    precision at IoU 0.5 by eleven points, log-average miss rate; over all COCO's average
    precision, Cohen's kappa, the confusion matrix, bootstrap intervals, and the mean squared
    error of the differential count. Of a CONFIG of regions or tiles: IoU of the regions that the
    package's localiser accepts, by object and by slide.
    """
    training = _training()
    recipe = training.load_recipe(config)
    name = model or recipe.name
    folders = (*settings.model.folders, recipe.out / "package")
    package = find_package(name, folders)
    table, written = training.evaluate_package(
        recipe,
        package,
        open_sessions(settings, package, localiser=recipe.stage != "cells"),
        out or recipe.out / "evaluation" / name,
        _dicom_reader(settings, recipe, training),
        None if manual is None else read_manual_count(manual),
    )
    if as_json:
        click.echo(json.dumps(table, indent=2))
        return
    for path in written:
        OUT.print(str(path), highlight=False, soft_wrap=True)


@click.command()
@click.option("--pacs", "pacs_url", help="Where the slides are.")
@click.option("--model", "models", multiple=True, required=True, help="A package; several times.")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="True cells of the one slide, as 'marrow-node demo' writes them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.argument("uids", nargs=-1, required=True, metavar="STUDY_UID SERIES_UID …")
@click.pass_obj
def compare(
    settings: Settings,
    pacs_url: str | None,
    models: tuple[str, ...],
    truth: Path | None,
    as_json: bool,
    uids: tuple[str, ...],
) -> None:
    """Run several packages over the same slides and print one table; nothing is stored anywhere."""
    if len(uids) % 2:
        raise click.UsageError("Name each slide by two UIDs, its study's and its series'.")
    slides = [
        SlideReference(study, series, "comparison")
        for study, series in zip(uids[::2], uids[1::2], strict=True)
    ]
    settings = replace(settings, pacs_url=pacs_url or settings.pacs_url)
    rows = []
    for row in compare_packages(settings, models, slides, truth):
        ERR.print(f"{row.model}: {row.cells} cells in {row.seconds:.1f} s", highlight=False)
        rows.append(row)
    if as_json:
        click.echo(rows_as_json(rows))
    else:
        _print_comparison(rows)


@click.command()
@click.option("--model", help="Model package, see 'marrow-node models'.")
@click.option(
    "--um-per-px",
    type=float,
    callback=_scale,
    help="Scale of the image, where the file states none.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Picture with the cells drawn [IMAGE.cells.png]."
)
@click.option("--json", "as_json", is_flag=True, help="Print cells and counts as JSON.")
@click.argument("image", type=click.Path(path_type=Path))
@click.pass_obj
def field(
    settings: Settings,
    model: str | None,
    um_per_px: float | None,
    out: Path | None,
    as_json: bool,
    image: Path,
) -> None:
    """Find the cells of one camera field: PNG, JPEG, TIFF, or a DICOM VL Microscopic Image.

    Draws them, and prints how many there are of each type. One field is no differential count.
    """
    settings = replace(settings, model=replace(settings.model, name=model or settings.model.name))
    result = analyse_field(settings, image, um_per_px)
    drawn = out or image.with_suffix(".cells.png")
    draw_field(result, drawn)
    if as_json:
        click.echo(json.dumps({**field_as_json(result), "picture": str(drawn)}, indent=2))
        return
    counted = result.differential
    table = Table("type", "count", box=None)
    for key, count in zip(counted.classes, counted.count.tolist(), strict=True):
        if count:
            table.add_row(CELL_TYPES[key].name, str(count))
    OUT.print(table)
    manifest = result.package.manifest
    OUT.print(f"cells {len(result.cells)}; {manifest.name}: {manifest.intended_use}")
    OUT.print(f"picture {drawn}", highlight=False, soft_wrap=True)


def _folder_candidates(
    settings: Settings,
    package: ModelPackage,
    folder: Path,
    um_per_px: float,
    labelled: Container[str],
) -> list[Candidate]:
    """Every image of a folder that has no labels, with what the package finds in it."""
    sessions = open_sessions(settings, package)
    candidates = []
    images = (path for path in _files(folder) if path.suffix.lower() in IMAGES)
    for path in sorted(path for path in images if path.stem not in labelled):
        rgb = read_field_image(path).rgb
        cells = find_in_field(rgb, um_per_px, package, sessions)
        candidates.append(Candidate(path, (rgb.shape[1], rgb.shape[0]), cells))
    return candidates


def _labelled(folder: Path | None, out: Path | None) -> set[str]:
    """Names, without suffix, of images whose labels somebody may have corrected."""
    places = [] if folder is None else [folder, folder / "annotations", folder / "Annotations"]
    return {path.stem for place in (*places, *filter(None, [out])) for path in place.glob("*.xml")}


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise TrainingInvalid(f"{folder} cannot be read ({error.strerror}): check it.") from error


def _row(ranked: Ranked, tile: SlideTile | None) -> dict[str, Any]:
    """What is printed of one image; of a tile, also where it lies."""
    row = {
        "image": ranked.candidate.path.name,
        "cells": len(ranked.candidate.cells),
        "rarity_bits": round(ranked.rarity, 4),
        "uncertainty": round(ranked.uncertainty, 4),
        "score": round(ranked.score, 4),
    }
    if tile is None:
        return row
    box = [round(edge) for edge in tile.box_px.tolist()]
    return {**row, "series_uid": tile.slide.series_uid, "box_px": box}


def _training() -> Any:
    """The training code, which needs PyTorch: an extra, and never loaded by the running node."""
    try:
        from models.training import commands  # noqa: PLC0415
    except ImportError as error:
        raise TrainingInvalid(
            f"Training needs {error.name or 'PyTorch'}: install marrow-node[train]."
        ) from error
    return commands


def _dicom_reader(settings: Settings, recipe: Any, training: Any) -> Callable[[Any], list[Any]]:
    return lambda source: annotated_images(settings, source, recipe, training.AnnotatedImage)


def _print_comparison(rows: list[Row]) -> None:
    table = Table(
        "model", "cells", "F1", "type", "± stage", "largest error", "tiles", "MB", "s", box=None
    )
    for row in rows:
        table.add_row(
            f"{row.model} {row.version}",
            str(row.cells),
            *(_shown(value, 3) for value in (row.f1, row.type_accuracy, row.neighbour_accuracy)),
            _shown(row.largest_error_percent, 1),
            f"{row.tiles} of {row.tiles_in_regions}",
            f"{row.megabytes:.1f}",
            f"{row.seconds:.1f}",
        )
    OUT.print(table)


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    OUT.print(table)
