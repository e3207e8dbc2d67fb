"""What the stages of one job work with: settings, model, work files, progress."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from dicom_io.read_budget import ReadBudget
from dicom_io.slide import Slide
from models.package import ModelPackage, find_package
from models.session import precision_for, provider_for
from node import __version__
from node.config import Settings
from node.progress import Progress
from node.summary import peak_rss_mb
from node.work_files import WorkFiles, open_work_files

if TYPE_CHECKING:  # draws, which most commands do not
    from node.views import Appearance

# Share of the whole job, in percent, that each stage takes: what the progress bar shows.
_STAGE_PERCENT = {
    "open": (0, 2),
    "open review": (0, 10),
    "correct": (10, 60),
    "write review": (60, 92),
    "localise": (2, 10),
    "detect": (10, 85),
    "count": (85, 86),
    "write": (86, 92),
    "deliver to PACS": (92, 95),
    "deliver to EHR": (95, 98),
    "reconcile": (98, 100),
}

# Whose versions can change pixels, counts or documents.
_LIBRARIES = (
    "numpy",
    "pillow",
    "simplejpeg",
    "imagecodecs",
    "highdicom",
    "matplotlib",
    "reportlab",
)

Json = dict[str, Any]


class Apart(Protocol):
    """Where stages run that read slides: in this process, or in one that may die."""

    def run(self, stage: Callable[..., Json], place: Any, *arguments: Any) -> Json: ...

    def peak_rss_mb(self) -> float: ...


class Here:
    """Stages run in this process."""

    def run(self, stage: Callable[..., Json], place: Any, *arguments: Any) -> Json:
        return stage(place, *arguments)

    def peak_rss_mb(self) -> float:
        return peak_rss_mb()


class Desk(Protocol):
    """What stages work with that run no model: a :class:`Workplace` or a :class:`ReviewPlace`."""

    @property
    def settings(self) -> Settings: ...

    @property
    def work(self) -> WorkFiles: ...

    @property
    def slides(self) -> dict[tuple[str, str], Slide]: ...

    @property
    def budget(self) -> ReadBudget: ...

    @property
    def apart(self) -> Apart: ...

    def progress(self, stage: str, fraction: float, cells: int = 0) -> None: ...


@dataclass(frozen=True, slots=True)
class Workplace:
    """All that the stages of one job work with. Made by :meth:`open`.

    Attributes
    ----------
    settings
    package
        The verified model package.
    configuration_digest
        SHA-256 (hex) of every setting and version that can change a result.
    work
    report
        Told of progress while stages run.
    slides
        (study UID, series UID) → slide, once opened: metadata is asked for once in a job, and again
        only after a restart.
    appearances
        The same → what documents and pictures show of it whatever is found, once read.
    budget
        What the job may still read.
    apart
        Where the stages run that read the slide.
    """

    settings: Settings
    package: ModelPackage
    configuration_digest: str
    work: WorkFiles
    report: Callable[[Progress], None]
    slides: dict[tuple[str, str], Slide] = field(default_factory=dict, repr=False)
    appearances: dict[tuple[str, str], Appearance] = field(default_factory=dict, repr=False)
    budget: ReadBudget = field(default_factory=ReadBudget, repr=False)
    apart: Apart = field(default_factory=Here, repr=False)

    @classmethod
    def open(cls, settings: Settings, report: Callable[[Progress], None]) -> Workplace:
        """Find and verify the model package, and fix the configuration; stages run here.

        Raises
        ------
        ModelError
            When the package is missing or not usable.
        DiskFull
            When the work folder cannot be made.
        """
        package = find_package(settings.model.name, settings.model.folders)
        return cls(
            settings=settings,
            package=package,
            configuration_digest=configuration_digest(settings),
            work=open_work_files(settings),
            report=report,
            budget=_budget(settings),
        )

    def progress(self, stage: str, fraction: float, cells: int = 0) -> None:
        self.report(_progress(stage, fraction, cells))


@dataclass(frozen=True, slots=True)
class ReviewPlace:
    """What the stages of a review work with: no model package, which may be gone by then.

    Attributes
    ----------
    settings, work, report, slides, budget, apart
        As of :class:`Workplace`.
    """

    settings: Settings
    work: WorkFiles
    report: Callable[[Progress], None]
    slides: dict[tuple[str, str], Slide] = field(default_factory=dict, repr=False)
    budget: ReadBudget = field(default_factory=ReadBudget, repr=False)
    apart: Apart = field(default_factory=Here, repr=False)

    @classmethod
    def open(cls, settings: Settings, report: Callable[[Progress], None]) -> ReviewPlace:
        """Open the work files; stages run here.

        Raises
        ------
        DiskFull
            When the work folder cannot be made.
        """
        work = open_work_files(settings)
        return cls(settings, work, report, budget=_budget(settings))

    def progress(self, stage: str, fraction: float, cells: int = 0) -> None:
        self.report(_progress(stage, fraction, cells))


def _budget(settings: Settings) -> ReadBudget:
    return ReadBudget(settings.budget.bytes_fetched, settings.budget.pixels_decoded)


def _progress(stage: str, fraction: float, cells: int) -> Progress:
    low, high = _STAGE_PERCENT[stage]
    return Progress(stage, low + (high - low) * fraction, cells)


def configuration_digest(settings: Settings) -> str:
    """SHA-256 of the settings, the provider and the library versions that can change a result."""
    content = {
        "node": __version__,
        "provider": provider_for(settings.model.device),
        "precision": precision_for(settings.model.device, settings.model.precision),
        "tile_seed": settings.model.tile_seed,
        "output": asdict(settings.output),
        "slide": asdict(settings.slide),
        "icc": settings.read.icc,
        "libraries": {name: version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
