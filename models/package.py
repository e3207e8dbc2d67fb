"""Model packages: a folder with ``manifest.json`` and ONNX files, verified before anything runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import DigestMismatch, ManifestInvalid, ModelNotFound
from models.manifest import (
    MANIFEST_FILE,
    ClassifierStage,
    DetectorStage,
    LocaliserStage,
    Manifest,
    NetworkFile,
    parse_manifest,
)

SHIPPED_PACKAGES = Path(__file__).parent / "packages"

Stage = Literal["localiser", "detector", "classifier"]
Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A verified package.

    Attributes
    ----------
    manifest
    folder
        Where it lies.
    digest
        SHA-256 (hex) of the manifest's bytes, which hold the digests of the networks.
    """

    manifest: Manifest
    folder: Path
    digest: str


def load_package(folder: Path) -> ModelPackage:
    """Read the manifest of `folder` and verify every network it names.

    Raises
    ------
    ManifestInvalid
        The manifest is missing or malformed, or a network that it names is missing.
    DigestMismatch
        A network is not the one that the manifest describes.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestInvalid(
            f"Model package {folder.name}: {MANIFEST_FILE} cannot be read ({error.strerror});"
            " install the package again."
        ) from error
    package = ModelPackage(
        parse_manifest(content, folder.name), folder, hashlib.sha256(content).hexdigest()
    )
    for stage in stages_of(package.manifest):
        network_of(package, stage, "fp32")
        if described_stage(package, stage).fp16 is not None:
            network_of(package, stage, "fp16")
    return package


def stages_of(manifest: Manifest) -> tuple[Stage, ...]:
    """Return the stages that a package has, in the order in which a slide meets them."""
    both: tuple[Stage, ...] = ("localiser", "detector")
    return (*both, "classifier") if manifest.classifier is not None else both


def installed_packages(folders: Sequence[Path]) -> list[ModelPackage]:
    """Load every package in `folders` and the shipped ones; raises as `find_package`."""
    return [find_package(name, folders) for name in _names(folders)]


def find_package(name: str, folders: Sequence[Path]) -> ModelPackage:
    """Load the package `name`, from the first of `folders` that has it, else the shipped one.

    Raises
    ------
    ModelNotFound
        No folder holds it.
    ManifestInvalid
        Its manifest gives another name, or see `load_package`.
    DigestMismatch
        See `load_package`.
    """
    installed = _names(folders)
    if name not in installed:
        raise ModelNotFound(
            f"Model package {name!r} is not installed; installed: {', '.join(installed) or 'none'}."
        )
    package = load_package(installed[name])
    if package.manifest.name != name:
        raise ManifestInvalid(
            f"Model package {name}: field 'name' says {package.manifest.name!r};"
            " rename the folder to it."
        )
    return package


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each package by its name, sorted; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in (*folders, SHIPPED_PACKAGES):
        for manifest in folder.glob(f"*/{MANIFEST_FILE}"):
            found.setdefault(manifest.parent.name, manifest.parent)
    return dict(sorted(found.items()))


def described_stage(
    package: ModelPackage, stage: Stage
) -> LocaliserStage | DetectorStage | ClassifierStage:
    """Return what the manifest says of a stage; raises ManifestInvalid where there is none."""
    manifest = package.manifest
    if stage == "classifier":
        if manifest.classifier is None:
            raise ManifestInvalid(f"Model package {manifest.name} has no second stage.")
        return manifest.classifier
    return manifest.localiser if stage == "localiser" else manifest.detector


def described_network(package: ModelPackage, stage: Stage, precision: Precision) -> NetworkFile:
    """Return the file of one stage's network; raises ManifestInvalid where there is none."""
    described = described_stage(package, stage)
    if precision == "fp32":
        return NetworkFile(described.file, described.sha256)
    if described.fp16 is None:
        raise ManifestInvalid(
            f"Model package {package.manifest.name} has no fp16 network for its {stage}; set"
            " model.precision to 'fp32' or export the package again."
        )
    return described.fp16


def network_of(package: ModelPackage, stage: Stage, precision: Precision) -> bytes:
    """Return the bytes of one stage's network.

    Raises
    ------
    ManifestInvalid
        The file cannot be read, or the package has none of this precision.
    DigestMismatch
        It is not the one that the manifest describes.
    """
    name = package.manifest.name
    described = described_network(package, stage, precision)
    try:
        content = (package.folder / described.file).read_bytes()
    except OSError as error:
        raise ManifestInvalid(
            f"Model package {name}: field 'stages.{stage}' names {described.file}, which"
            f" cannot be read ({error.strerror}); install the package again."
        ) from error
    if hashlib.sha256(content).hexdigest() != described.sha256:
        raise DigestMismatch(
            f"Model package {name}: {described.file} differs from the SHA-256 in its manifest;"
            " install the package again."
        )
    return content
