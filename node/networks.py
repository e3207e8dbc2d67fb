"""The networks of a model package on the device that the settings name."""

from __future__ import annotations

from models.package import ModelPackage, Stage, stages_of
from models.session import Session, open_session
from node.config import Settings
from node.engines import own_engines


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
