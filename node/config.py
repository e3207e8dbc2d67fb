"""The settings of a node: one frozen tree, from one TOML file and the environment.

Every field has a default, a unit in its name and its reason in its class' docstring, which
``marrow-node config`` prints. An unknown key is an error. ``MARROW_NODE__MODEL__NAME=…`` in the
environment overrides ``name`` in ``[model]``. Secrets are never written in the file: settings name
the environment variable or the file that holds them.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from dicom_io.annotation_settings import GROUP_SIZE, CoordinateType, GraphicType
from dicom_io.dimse_settings import DimseSettings, ReceiveSettings
from dicom_io.errors import ConfigurationInvalid
from dicom_io.pacs_settings import PacsSettings, is_setting
from dicom_io.slide_settings import ReadSettings, SlideSettings
from node.audit_settings import AuditSettings
from node.batch_settings import BatchSettings
from node.budget_settings import BudgetSettings
from node.ehr_records import EhrSettings
from node.fhir_r5 import FhirVersion
from node.log import LogFormat
from node.poll_settings import PollSettings
from node.rule_settings import RuleSettings
from node.ups_settings import UpsSettings
from node.web.settings import ServeSettings

ENVIRONMENT_PREFIX = "MARROW_NODE__"


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which model package runs, and on what.

    Attributes
    ----------
    name
        Package to use; ``marrow-node models`` lists them.
    folders
        Where to look for packages beside the shipped ones.
    device
        auto takes every GPU that the process sees where they work (CUDA_VISIBLE_DEVICES chooses);
        cuda and tensorrt refuse to run without; cpu.
    precision
        fp16 lets a GPU run the package's 16-bit networks; a CPU runs those of 32 bits either way,
        so that fp32, the default, gives the same cells on both.
    threads
        CPU threads of the runtime; 0 for one per core.
    batch_tiles
        Tiles that are decoded, and run through the network, together; 0 for 8 on a CPU, which more
        do not help, and 16 on a GPU.
    tile_seed
        Tiles are counted in a seeded random order, as convergence of the count asks; a package that
        stops when it has converged also reads them so.
    """

    name: str = "demo-smear"
    folders: tuple[Path, ...] = ()
    device: Literal["auto", "cuda", "tensorrt", "cpu"] = "auto"
    precision: Literal["fp32", "fp16"] = "fp32"
    threads: int = 0
    batch_tiles: Annotated[int, Field(ge=0)] = 0
    tile_seed: int = 2021


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """How results are written.

    Attributes
    ----------
    graphic_type
        RECTANGLE; POLYGON or POINT for viewers that know no RECTANGLE.
    coordinates
        2D for pixels of the base level, which most viewers expect; 3D for millimetres on the slide.
    cells_per_group
        Most cells in a group of annotations; a type with more has several groups, so that a viewer
        can show a part of them. Not less than a few thousand: viewers draw a small group whole.
    pdf
        True stores the report in the archive as Encapsulated PDF too.
    captures
        True stores the report's pictures in the archive as Secondary Capture images too.
    parametric_map
        True stores the probability of the regions in the archive as a Parametric Map too.
    fhir
        Version of FHIR of the report; R4 is what most EHRs take.
    loinc
        True puts LOINC terms beside the other codes of cell types in the FHIR report; most of them
        say "by manual count", so a site has to want it.
    """

    graphic_type: GraphicType = "RECTANGLE"
    coordinates: CoordinateType = "2D"
    cells_per_group: Annotated[int, Field(ge=1)] = GROUP_SIZE
    pdf: bool = False
    captures: bool = False
    parametric_map: bool = False
    fhir: FhirVersion = "R4"
    loinc: bool = False


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How the service deals with slides that are not whole yet, and with failures that may pass.

    Attributes
    ----------
    look_s
        Seconds between looks at a slide that is still coming in.
    quiet_s
        Seconds without a further instance after which a slide of which counting cannot tell that
        it is whole is analysed as it is; or given up, where nothing of it came.
    retries
        Tries after the first one of a job that failed for a reason that may pass.
    retry_wait_s
        Seconds before the second try; doubled for each further one.
    host
        Of this host's workers on PostgreSQL, where each host needs another name; empty for the
        host name.
    lease_s
        Seconds of silence after which other workers finish a worker's jobs, on PostgreSQL.
    drain_s
        Seconds that a worker has to finish its slide when it is told to end; what is not finished
        then goes on from its last step when a worker is started again.
    keep_days
        Days after which workers forget jobs, the work files of results that nobody reviewed, and
        slides that came by C-STORE and whose results were delivered; 0 keeps all.
    """

    look_s: float = 2.0
    quiet_s: float = 60.0
    retries: int = 7
    retry_wait_s: float = 60.0
    host: str = ""
    lease_s: Annotated[float, Field(gt=0)] = 30.0
    drain_s: Annotated[float, Field(ge=0)] = 20.0
    keep_days: float = 90.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a node.

    Attributes
    ----------
    pacs_url
        Where slides are and, unless results_url says otherwise, results go: https://…/dicom-web or
        file:///folder.
    results_url
        Where results go instead: https://…/dicom-web, file:///folder, or, for an archive without
        STOW-RS, dimse://CALLED_AE_TITLE@host:port.
    ehr_url
        Where reports go: https://…/fhir, file:///folder, or as HL7 v2 messages mllp://host:port
        (mllps:// with TLS).
    work_folder
        Jobs, work files and results; needs free space.
    shared_storage
        Where work files and results lie too, for hosts with work folders of their own: a URL of
        fsspec, as file:///mnt/marrow-node, or s3://bucket/marrow-node where s3fs is installed,
        whose credentials its library finds. Empty: a dead host's slides are begun again by others.
    database_url
        Of the job queue: empty for SQLite in the work folder, or postgresql://….
    max_matrix_px
        Largest total pixel matrix (columns × rows) that is accepted.
    log_format
        plain lines for people, or json for a collector of logs.
    pacs, dimse, receive, ehr, slide, read, model, output, jobs, serve, audit, ups,
    poll, batch, budget
        Tables of their own.
    rules
        [[rules]]: which slides are analysed, and how; without any, all are. What they make of a
        slide, 'marrow-node rules test' tells.
    """

    pacs_url: str = ""
    results_url: str = ""
    ehr_url: str = ""
    work_folder: Path = Path("work")
    shared_storage: str = ""
    database_url: str = ""
    max_matrix_px: int = 40_000_000_000
    log_format: LogFormat = "plain"
    pacs: PacsSettings = field(default_factory=PacsSettings)
    dimse: DimseSettings = field(default_factory=DimseSettings)
    receive: ReceiveSettings = field(default_factory=ReceiveSettings)
    ehr: EhrSettings = field(default_factory=EhrSettings)
    slide: SlideSettings = field(default_factory=SlideSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    jobs: JobSettings = field(default_factory=JobSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    ups: UpsSettings = field(default_factory=UpsSettings)
    poll: PollSettings = field(default_factory=PollSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    rules: tuple[RuleSettings, ...] = ()


def load_settings(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from a TOML file, then from the environment.

    Parameters
    ----------
    path
        None for defaults and environment alone.

    Raises
    ------
    ConfigurationInvalid
        When the file cannot be read, holds an unknown key or a value of the wrong kind.
    """
    values = _read_toml(path) if path is not None else {}
    _apply_environment(values, environment)
    source = str(path) if path is not None else "the environment"
    _refuse_unknown(Settings, values, source, "")
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationInvalid(
            f"Setting {where} in {source} is not usable: {first['msg']}. Correct it; "
            "'marrow-node config' lists every setting with its default."
        ) from error
    return replace(
        settings,
        pacs=replace(
            settings.pacs,
            services_of=_site_archive(settings),
            credentials_for=_archives(settings),
        ),
        ehr=replace(settings.ehr, credentials_for=_ehrs(settings)),
    )


def _archives(settings: Settings) -> tuple[str, ...]:
    """Every DICOMweb archive that the settings name, in whichever place."""
    pacs = settings.pacs
    urls = (settings.pacs_url, settings.results_url, settings.dimse.ask_url)
    services = (pacs.query_url, pacs.retrieve_url, pacs.store_url)
    by_rule = (rule.results_url for rule in settings.rules)
    return tuple(filter(None, (*urls, *services, *by_rule)))


def _ehrs(settings: Settings) -> tuple[str, ...]:
    by_rule = (rule.ehr_url for rule in settings.rules)
    return tuple(filter(None, (settings.ehr_url, *by_rule)))


def _site_archive(settings: Settings) -> str:
    """The DICOMweb archive that the services in [pacs] belong to: of slides, else of results.

    Empty where the command line is to say where slides are.
    """
    urls = (settings.pacs_url, settings.results_url, settings.dimse.ask_url)
    return next((url for url in urls if url.startswith("http")), "") if settings.pacs_url else ""


def settings_rows(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """(dotted name, value, reason) of every setting, in order."""
    yield from _rows(settings, "")


def _rows(tree: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    reasons = _reasons(type(tree))
    for entry in filter(is_setting, fields(tree)):
        value = getattr(tree, entry.name)
        if is_dataclass(value):
            yield from _rows(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value, reasons.get(entry.name, "")


def _reasons(tree: type) -> dict[str, str]:
    """What the Attributes section of a settings class says of each field."""
    reasons: dict[str, str] = {}
    names: list[str] = []
    for line in (inspect.getdoc(tree) or "").partition("----------")[2].splitlines():
        if line.startswith(" "):
            for name in names:
                reasons[name] = f"{reasons.get(name, '')} {line.strip()}".strip()
        elif line.strip():
            names = [name.strip() for name in line.split(",")]
    return reasons


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationInvalid(
            f"The settings file {path} cannot be read ({error.strerror}): "
            "name another with --config."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"The settings file {path} is not TOML: {error}.") from error


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        target = values
        for table in tables:
            target = target.setdefault(table, {})
        target[key] = text


def _refuse_unknown(tree: type, values: Mapping[str, Any], source: str, prefix: str) -> None:
    hints = get_type_hints(tree)
    known = {entry.name for entry in filter(is_setting, fields(tree))}
    for key, value in values.items():
        if key not in known:
            raise ConfigurationInvalid(
                f"Setting {prefix}{key} in {source} is not known: remove it or correct its name; "
                "'marrow-node config' lists every setting."
            )
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            _refuse_unknown(hints[key], value, source, f"{prefix}{key}.")
        kinds = [kind for kind in get_args(hints[key]) if is_dataclass(kind)]
        if kinds and isinstance(value, list):
            for number, each in enumerate(value, start=1):
                if isinstance(each, Mapping) and isinstance(kinds[0], type):
                    _refuse_unknown(kinds[0], each, source, f"{prefix}{key}[{number}].")
