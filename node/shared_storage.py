"""Storage that hosts share beside each one's work folder: any that fsspec has a protocol for.

Work files and the revisions of results lie there too, so that any host finishes a dead one's slide
and reviews another's result. Names are digests and fixed words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from dicom_io.errors import ConfigurationInvalid, SharedStorageUnreachable

if TYPE_CHECKING:  # its import takes longer than all that a command without it does
    from fsspec import AbstractFileSystem


@dataclass(frozen=True, slots=True)
class SharedStorage:
    """A folder in a storage that hosts share.

    Attributes
    ----------
    url
        For example ``s3://bucket/marrow-node`` or ``file:///mnt/marrow-node``.

    Raises
    ------
    ConfigurationInvalid
        From every method, when nothing is known of such a URL here.
    SharedStorageUnreachable
        From every method, when the storage cannot be read or written.
    """

    url: str

    def get(self, name: str) -> bytes | None:
        """A file's content; None where it is not there."""
        with self._opened() as (files, root):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    def has(self, name: str) -> bool:
        with self._opened() as (files, root):
            return bool(files.isfile(f"{root}/{name}"))

    def versions(self, folder: str) -> dict[str, str]:
        """Files that lie in a folder, each with what is another once it was written anew."""
        from fsspec.utils import tokenize  # noqa: PLC0415

        with self._opened() as (files, root):
            files.invalidate_cache()  # some protocols answer as they did a day before
            try:
                found = files.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
            return {f"{folder}/{os.path.basename(each['name'])}": tokenize(each) for each in found}

    def put(self, name: str, content: bytes) -> None:
        """Store a file whole or not at all, in the place of what has its name."""
        with self._opened() as (files, root):
            path = f"{root}/{name}"
            part = f"{path}.part-{uuid4().hex}"
            files.makedirs(os.path.dirname(path), exist_ok=True)
            files.pipe_file(part, content)
            files.mv(part, path)

    def put_once(self, name: str, content: bytes) -> bool:
        """Store a file that nobody has stored yet; False, and nothing done, where it is there."""
        with self._opened() as (files, root):
            path = f"{root}/{name}"
            files.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with files.open(path, "xb") as stream:
                    stream.write(content)
            except FileExistsError:
                return False
            return True

    def remove(self, name: str) -> None:
        """Remove a file that may be there."""
        with self._opened() as (files, root):
            try:
                files.rm_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _opened(self) -> Iterator[tuple[AbstractFileSystem, str]]:
        from fsspec.core import url_to_fs  # noqa: PLC0415

        try:
            # Kept by fsspec, for each process: a forked one may not use its parent's connections.
            files, root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigurationInvalid(
                f"shared_storage cannot be {self.url.partition('://')[0]}:// here ({error}): "
                "install what it names, or set another storage."
            ) from error
        try:
            yield files, root
        except Exception as error:  # each protocol's library has a tree of errors of its own
            raise SharedStorageUnreachable(
                f"The shared storage cannot be used ({type(error).__name__}): check "
                "shared_storage, the rights there, and the network."
            ) from error
