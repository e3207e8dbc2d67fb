"""Settings of DIMSE: sending results, and receiving slides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

_Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class DimseSettings:
    """How an archive without STOW-RS is spoken to; its address is results_url.

    Attributes
    ----------
    calling_ae_title
        Name of this node, which the archive has to know.
    timeout_s
        Seconds to connect, and seconds without an answer, after which a message counts as lost.
    retries
        Attempts after the first one, for transient failures only.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one.
    ca_bundle
        PEM file of the authority of the archive's certificate; TLS is used when it is set.
    certificate, key
        PEM files of this node's own certificate, for archives that want one, and for
        `commitment_port`, where TLS is then spoken too.
    ask_url
        DICOMweb URL where what was sent is asked for and read back. Empty for pacs_url where that
        is a DICOMweb URL; else C-FIND, which says that an object is there but not what it holds.
    commitment
        Whether storage commitment is asked for where the archive offers it.
    commitment_port
        Port of this node to which the archive sends its reports; 0 where it reports on the
        association that asked. May be that of receive.
    commitment_wait_s
        Seconds to wait for a report; without one the receipt says so and the job goes on.
    """

    calling_ae_title: str = "MARROW_NODE"
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    retries: Annotated[int, Field(ge=0)] = 3
    retry_wait_s: Annotated[float, Field(ge=0)] = 0.5
    ca_bundle: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ask_url: str = ""
    commitment: bool = True
    commitment_port: _Port = 0
    commitment_wait_s: Annotated[float, Field(ge=0)] = 30.0


@dataclass(frozen=True, slots=True)
class ReceiveSettings:
    """How slides are received by DIMSE.

    Attributes
    ----------
    ae_title
        Name of this node, which senders call.
    address, port
        Where to listen; an empty address is every interface.
    folder
        Received slides lie in its sub-folder archive, unfinished ones in incoming; jobs.keep_days
        after their results were delivered slides are deleted, but where pacs_url names the archive.
    allowed_addresses
        Networks that may send; this machine only until a site names its own.
    allowed_ae_titles
        Calling AE titles that may send; empty for any, as a title proves nothing by itself.
    associations
        Most senders at a time; further ones are told to come again.
    timeout_s
        Seconds of silence after which a sender counts as gone.
    certificate, key
        PEM files; TLS is spoken, and nothing else, when they are set.
    ca_bundle
        PEM file of the authority whose certificate senders have to show.
    settle_s
        Seconds without a further instance after which a slide whose levels are whole is analysed;
        senders may open one association for each instance.
    quiet_s
        The same for a slide of which counting cannot tell that it is whole.
    """

    ae_title: str = "MARROW_NODE"
    address: str = ""
    port: _Port = 11112
    folder: Path = Path("received")
    allowed_addresses: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    allowed_ae_titles: tuple[str, ...] = ()
    associations: Annotated[int, Field(ge=1)] = 8
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    certificate: Path | None = None
    key: Path | None = None
    ca_bundle: Path | None = None
    settle_s: Annotated[float, Field(ge=0)] = 10.0
    quiet_s: Annotated[float, Field(ge=0)] = 300.0

    @property
    def archive(self) -> Path:
        """Folder in the layout of :mod:`dicom_io.folder`."""
        return self.folder.absolute() / "archive"
