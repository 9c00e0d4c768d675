"""Metadata and targets from a directory or tar on removable media (air gap): the same code path verifies them.

Links are not followed, anything but a regular file does not exist, and a file is read up to the limit of its role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from edgeseal.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEME: Final = "archive:/"
_NOT_FOUND: Final = 404
_PIECE: Final = 65_536
_MAX_FILE: Final = 16 * 2**20  # nothing in metadata/ or targets/ comes near it


class ArchiveFetcher(FetcherInterface):
    """A tuf fetcher for `metadata/…` and `targets/…` below a directory or inside an uncompressed tar."""

    metadata_url: str = _SCHEME + "metadata/"
    targets_url: str = _SCHEME + "targets/"

    def __init__(self, path: Path) -> None:
        """Take the directory or tar. Nothing is read before the first fetch."""
        self._archive = Archive(path)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the file.

        Raises DownloadError (tuf's), FormatError for an archive that is not acceptable.
        """
        name = _name(url)
        try:
            stream, size = self._archive.open(name)
            with stream:
                if size > max_length:
                    raise DownloadLengthMismatchError(f"{name} has {size} bytes; {max_length} are allowed")
                return stream.read(size)
        except FileNotFoundError as e:
            raise DownloadHTTPError(f"{name} is not in the archive", _NOT_FOUND) from e
        except OSError as e:
            raise DownloadError(f"{name} cannot be read: {e.strerror}") from e

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self.download_bytes(url, _MAX_FILE)
        return (data[i : i + _PIECE] for i in range(0, len(data), _PIECE))


def _name(url: str) -> str:
    """Return the name inside the archive that a URL of ours means: role names stay percent-encoded in file names."""
    if not url.startswith(_SCHEME):
        raise DownloadError(f"{url} is not in this archive")
    return url[len(_SCHEME) :]
