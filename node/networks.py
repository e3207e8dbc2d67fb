"""The networks of a model package on the device that the settings name."""

from __future__ import annotations

from models.package import ModelPackage, Stage, stages_of
from models.session import CPU_PROVIDER, Session, open_session
from node.config import ModelSettings, Settings
from node.engines import own_engines

CPU_BATCH_TILES, GPU_BATCH_TILES = 8, 16


def batch_tiles(settings: ModelSettings, detector: Session) -> int:
    """Tiles that are read and run together: as set, else what suits the device."""
    suits = CPU_BATCH_TILES if detector.provider == CPU_PROVIDER else GPU_BATCH_TILES
    return settings.batch_tiles or suits


def open_sessions(
    settings: Settings, package: ModelPackage, localiser: bool = False
) -> dict[Stage, Session]:
    """Detector of a package, and its classifier where it has one; or its localiser alone."""
    engines = own_engines(settings) if settings.model.device == "tensorrt" else None
    return {
        stage: open_session(
            package,
            stage,
            settings.model.device,
            settings.model.threads,
            settings.model.precision,
            engines,
        )
        for stage in stages_of(package.manifest)
        if (stage == "localiser") == localiser
    }
