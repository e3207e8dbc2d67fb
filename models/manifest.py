"""``manifest.json`` of a model package → :class:`Manifest`, read strictly.

Every field is required but ``fp16`` of a stage, none may be unknown, nothing has a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from models.cell_types import CELL_TYPES
from models.errors import ManifestInvalid

MANIFEST_FILE = "manifest.json"
SCHEMA = 1
UNCLASSIFIED = "unclassified"
Stitching = Literal["overlap", "corners"]


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """An ONNX file of the package's folder.

    Attributes
    ----------
    file
        Its name.
    sha256
        Of its bytes, lower-case hex.
    """

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class LocaliserStage:
    """The network that says where cells can be assessed, at low magnification.

    Attributes
    ----------
    file
        Name of the ONNX file in the package's folder.
    sha256
        Of that file, lower-case hex.
    um_per_px
        Scale of its input images.
    output_stride_px
        Input pixels per output value, along x and y.
    tile_px
        Side of its input images, context included; a multiple of `output_stride_px`.
    context_px
        Border of a tile whose outputs are not used; a multiple of `output_stride_px`.
    dilation
        How far an accepted place reaches beyond its own square, in sides of that square: the cell
        whose centre lies just outside of it belongs to the same trail.
    sampled_grid
        Rows and columns of a grid over the slide: only the tile in the middle of each of its cells
        is looked at (Tayebi 2021 §4.3: 15 and 20). None to look at all of the slide.
    threshold
        Probability from which a place is accepted.
    fp16
        The same network computed in 16 bits, for GPUs; None where the package has none.
    """

    file: str
    sha256: str
    um_per_px: float
    output_stride_px: int
    tile_px: int
    context_px: int
    dilation: float
    sampled_grid: tuple[int, int] | None
    threshold: float
    fp16: NetworkFile | None = None


@dataclass(frozen=True, slots=True)
class DetectorStage:
    """The network that finds and classifies cells, at high magnification.

    Attributes
    ----------
    file, sha256, um_per_px, fp16
        As for the localiser.
    tile_px
        Side of a detection tile, halo included, in pixels of the network's scale.
    halo_px
        Border of a tile that its neighbours also see: cells there are only context.
    score_threshold
        Score from which a peak is a cell.
    nms_iou
        Of two boxes of one tile that overlap more than this, the one with the higher score stays.
    unclassified_below
        A cell whose most probable type has less than this is reported as unclassified.
    stitching
        ``overlap`` of tiles, or ``corners`` of pieces of tiles without (Wang et al. 2022, §3.1.3).
    """

    file: str
    sha256: str
    um_per_px: float
    tile_px: int
    halo_px: int
    score_threshold: float
    nms_iou: float
    unclassified_below: float
    stitching: Stitching = "overlap"
    fp16: NetworkFile | None = None


@dataclass(frozen=True, slots=True)
class ClassifierStage:
    """A second network that names the type of each cell that the detector found.

    Attributes
    ----------
    file, sha256, um_per_px, fp16
        As for the localiser.
    crop_px
        Side of its input images, in pixels of its scale, with the cell in the middle.
    """

    file: str
    sha256: str
    um_per_px: float
    crop_px: int
    fp16: NetworkFile | None = None


@dataclass(frozen=True, slots=True)
class DifferentialRules:
    """When the count has converged and when it suffices; calibrated with the model.

    Attributes
    ----------
    chi_square_threshold, chi_square_tiles
        Converged: the χ² distance below the threshold for that many tiles in a row.
    minimum_cells
        Cells of the nucleated differential count that a differential needs.
    unclassified_share_max
        Largest share of nucleated cells that may stay unclassified.
    stop_when_converged
        Read no more tiles once the count has converged and suffices (Tayebi 2021 §2.4).
    """

    chi_square_threshold: float
    chi_square_tiles: int
    minimum_cells: int
    unclassified_share_max: float
    stop_when_converged: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a package says of itself.

    Attributes
    ----------
    name, version, intended_use, licence
    demonstration
        True for weights that only demonstrate the node.
    classes
        Cell type keys in the order of the outputs of the detector, or of the classifier;
        ``"unclassified"``, which no network outputs, comes last where the package can say so.
    localiser, detector
    classifier
        None where the detector's own types are reported.
    differential
    training
        On what and how it was trained, free form.
    metrics
        What was measured, with numbers of cells, free form.
    """

    name: str
    version: str
    intended_use: str
    demonstration: bool
    licence: str
    classes: tuple[str, ...]
    localiser: LocaliserStage
    detector: DetectorStage
    classifier: ClassifierStage | None
    differential: DifferentialRules
    training: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def types(self) -> tuple[str, ...]:
        """`classes` that the network itself outputs."""
        return tuple(key for key in self.classes if key != UNCLASSIFIED)


def parse_manifest(content: bytes, package: str) -> Manifest:
    """Read a manifest.

    Parameters
    ----------
    content
        Bytes of the file, UTF-8 JSON.
    package
        Name of the package's folder, for messages.

    Raises
    ------
    ManifestInvalid
        Naming the package and the field.
    """
    source = f"Model package {package}: {MANIFEST_FILE}"
    try:
        root = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ManifestInvalid(
            f"{source} is not JSON ({error}); install the package again."
        ) from error
    except RecursionError as error:
        raise ManifestInvalid(f"{source} is nested too deeply; use a genuine package.") from error
    return _manifest(_Fields(source, "", root))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return fields


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _manifest(fields: _Fields) -> Manifest:
    fields.only(
        "schema",
        "name",
        "version",
        "intended_use",
        "demonstration",
        "licence",
        "classes",
        "stages",
        "differential",
        "training",
        "metrics",
    )
    if fields.whole("schema", 1) != SCHEMA:
        fields.refuse("schema", f"must be {SCHEMA}, the only one this node reads")
    stages = fields.inner("stages")
    stages.only("localiser", "detector", "classifier")
    manifest = Manifest(
        name=fields.identifier("name"),
        version=fields.text("version"),
        intended_use=fields.text("intended_use"),
        demonstration=fields.flag("demonstration"),
        licence=fields.text("licence"),
        classes=_classes(fields),
        localiser=_localiser(stages.inner("localiser")),
        detector=_detector(stages.inner("detector")),
        classifier=None
        if stages.values["classifier"] is None
        else _classifier(stages.inner("classifier")),
        differential=_differential(fields.inner("differential")),
        training=fields.inner("training").values,
        metrics=fields.inner("metrics").values,
    )
    if manifest.detector.unclassified_below > 0 and UNCLASSIFIED not in manifest.classes:
        fields.refuse("classes", f"must end with '{UNCLASSIFIED}', as unclassified_below is not 0")
    return manifest


def _classes(fields: _Fields) -> tuple[str, ...]:
    keys = fields.values["classes"]
    if not isinstance(keys, list) or not keys or not all(isinstance(k, str) for k in keys):
        fields.refuse("classes", "must be a list of cell type keys")
    for key in keys:
        if key not in CELL_TYPES:
            fields.refuse("classes", f"names {key!r}, which is not in the table of cell types")
    if len(set(keys)) != len(keys):
        fields.refuse("classes", "names a cell type twice")
    if UNCLASSIFIED in keys[:-1] or keys == [UNCLASSIFIED]:
        fields.refuse("classes", f"must name types first and '{UNCLASSIFIED}' last")
    return tuple(keys)


def _localiser(fields: _Fields) -> LocaliserStage:
    fields.only(
        "file",
        "sha256",
        "um_per_px",
        "output_stride_px",
        "tile_px",
        "context_px",
        "dilation",
        "sampled_grid",
        "threshold",
        optional=("fp16",),
    )
    stage = LocaliserStage(
        file=fields.file_name("file"),
        sha256=fields.digest("sha256"),
        um_per_px=fields.positive("um_per_px"),
        output_stride_px=fields.whole("output_stride_px", 1),
        tile_px=fields.whole("tile_px", 32),
        context_px=fields.whole("context_px", 0),
        dilation=fields.fraction("dilation"),
        sampled_grid=fields.pair("sampled_grid"),
        threshold=fields.fraction("threshold"),
        fp16=_fp16(fields),
    )
    if stage.tile_px % stage.output_stride_px or stage.context_px % stage.output_stride_px:
        fields.refuse("tile_px", "and context_px must be multiples of output_stride_px")
    if 2 * stage.context_px >= stage.tile_px:
        fields.refuse("context_px", "must be less than half of tile_px")
    return stage


def _detector(fields: _Fields) -> DetectorStage:
    fields.only(
        "file",
        "sha256",
        "um_per_px",
        "tile_px",
        "halo_px",
        "score_threshold",
        "nms_iou",
        "unclassified_below",
        optional=("stitching", "fp16"),
    )
    stage = DetectorStage(
        file=fields.file_name("file"),
        sha256=fields.digest("sha256"),
        um_per_px=fields.positive("um_per_px"),
        tile_px=fields.whole("tile_px", 32),
        halo_px=fields.whole("halo_px", 0),
        score_threshold=fields.fraction("score_threshold"),
        nms_iou=fields.fraction("nms_iou"),
        unclassified_below=fields.fraction("unclassified_below"),
        stitching=_stitching(fields),
        fp16=_fp16(fields),
    )
    if stage.tile_px % 32:
        fields.refuse("tile_px", "must be a multiple of 32")
    if 2 * stage.halo_px >= stage.tile_px:
        fields.refuse("halo_px", "must be less than half of tile_px")
    if stage.stitching == "corners" and stage.halo_px:
        fields.refuse("stitching", "by corners is for tiles side by side: it needs a halo_px of 0")
    return stage


def _stitching(fields: _Fields) -> Stitching:
    said = fields.values.get("stitching", "overlap")
    for known in get_args(Stitching):
        if said == known:
            return known  # type: ignore[no-any-return]
    fields.refuse("stitching", f"must be one of {get_args(Stitching)}")


def _classifier(fields: _Fields) -> ClassifierStage:
    fields.only("file", "sha256", "um_per_px", "crop_px", optional=("fp16",))
    return ClassifierStage(
        file=fields.file_name("file"),
        sha256=fields.digest("sha256"),
        um_per_px=fields.positive("um_per_px"),
        crop_px=fields.whole("crop_px", 8),
        fp16=_fp16(fields),
    )


def _fp16(fields: _Fields) -> NetworkFile | None:
    if "fp16" not in fields.values:
        return None
    inner = fields.inner("fp16")
    inner.only("file", "sha256")
    return NetworkFile(inner.file_name("file"), inner.digest("sha256"))


def _differential(fields: _Fields) -> DifferentialRules:
    fields.only(
        "chi_square_threshold",
        "chi_square_tiles",
        "minimum_cells",
        "unclassified_share_max",
        "stop_when_converged",
    )
    return DifferentialRules(
        chi_square_threshold=fields.positive("chi_square_threshold"),
        chi_square_tiles=fields.whole("chi_square_tiles", 1),
        minimum_cells=fields.whole("minimum_cells", 1),
        unclassified_share_max=fields.fraction("unclassified_share_max"),
        stop_when_converged=fields.flag("stop_when_converged"),
    )


class _Fields:
    """One JSON object of the manifest; every reader refuses what is not of its kind."""

    def __init__(self, source: str, path: str, values: object) -> None:
        self.source = source
        self.path = path
        if not isinstance(values, dict):
            raise ManifestInvalid(f"{source}: {self._named('')} must be an object; correct it.")
        self.values: dict[str, Any] = values

    def _named(self, key: str) -> str:
        path = ".".join(part for part in (self.path, key) if part)
        return f"field '{path}'" if path else "the whole"

    def refuse(self, key: str, demand: str) -> NoReturn:
        raise ManifestInvalid(f"{self.source}: {self._named(key)} {demand}; correct it.")

    def only(self, *keys: str, optional: tuple[str, ...] = ()) -> None:
        for key in keys:
            if key not in self.values:
                self.refuse(key, "is missing")
        for key in self.values:
            if key not in (*keys, *optional):
                self.refuse(key, "is unknown")

    def inner(self, key: str) -> _Fields:
        return _Fields(self.source, f"{self.path}.{key}".lstrip("."), self.values[key])

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, "must be a text that is not empty")
        return value

    def flag(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool):
            self.refuse(key, "must be true or false")
        return value

    def whole(self, key: str, least: int) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.refuse(key, f"must be a whole number from {least}")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9:
            self.refuse(key, "must be a number")
        return float(value)

    def positive(self, key: str) -> float:
        value = self.number(key)
        if value <= 0:
            self.refuse(key, "must be greater than 0")
        return value

    def fraction(self, key: str) -> float:
        value = self.number(key)
        if not 0 <= value <= 1:
            self.refuse(key, "must lie between 0 and 1")
        return value

    def pair(self, key: str) -> tuple[int, int] | None:
        value = self.values[key]
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(type(each) is int and each > 0 for each in value)
        ):
            self.refuse(key, "must be null or two whole numbers from 1")
        return value[0], value[1]

    def identifier(self, key: str) -> str:
        value = self.text(key)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            self.refuse(key, "may hold letters, digits, '.', '_' and '-' only")
        return value

    def file_name(self, key: str) -> str:
        value = self.identifier(key)
        if ".." in value or not value.endswith(".onnx"):
            self.refuse(key, "must be the name of an .onnx file in the package's own folder")
        return value

    def digest(self, key: str) -> str:
        value = self.text(key)
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            self.refuse(key, "must be 64 lower-case hexadecimal digits")
        return value
