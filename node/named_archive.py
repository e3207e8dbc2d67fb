"""Archives that a command line or a recipe names, and the settings perhaps do not."""

from __future__ import annotations

from dicom_io.pacs import Pacs, open_pacs
from dicom_io.pacs_http import same_origin
from dicom_io.pacs_settings import without_credentials
from node.config import Settings


def open_named(url: str, settings: Settings) -> Pacs:
    """Open the archive at `url`; credentials go to the origins in the settings alone.

    Raises
    ------
    ConfigurationInvalid, PacsUnreachable
        As of :func:`dicom_io.pacs.open_pacs`.
    """
    pacs = settings.pacs
    ours = (
        settings.pacs_url,
        pacs.query_url,
        pacs.retrieve_url,
        pacs.store_url,
        settings.results_url,
    )
    known = any(each.startswith("http") and same_origin(url, each) for each in ours)
    return open_pacs(url, pacs if known else without_credentials(pacs))
