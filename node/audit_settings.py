"""Settings of the audit trail."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from node.ehr_records import EhrSettings


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where the audit trail goes; nothing is recorded where both are empty.

    Attributes
    ----------
    fhir_url
        Base of a FHIR repository that takes AuditEvent.
    syslog_url
        tls://host or tls://host:port of a collector of DICOM audit messages.
    source_id
        Name of this node in the trail.
    enterprise_site_id
        Name of the hospital in the trail.
    certificate, certificate_key
        PEM files with which the node proves who it is to the collector.
    ca_bundle
        PEM file of the collector's certificate authority.
    fhir
        How the FHIR repository is spoken to: a table of its own, as [ehr].
    """

    fhir_url: str = ""
    syslog_url: str = ""
    source_id: str = "marrow-node"
    enterprise_site_id: str = ""
    certificate: Path | None = None
    certificate_key: Path | None = None
    ca_bundle: Path | None = None
    fhir: EhrSettings = field(default_factory=EhrSettings)
