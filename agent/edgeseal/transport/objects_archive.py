"""Tables and chunks from a directory or tar on removable media, under the names they have on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgeseal.errors import TemporaryError
from edgeseal.store import object_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeseal.archive import Archive
    from edgeseal.store import Kind

_PIECE: Final = 1 << 20


class ArchiveObjects:
    """Objects in an `Archive`; links in it do not exist, and no file is read beyond the length asked for."""

    def __init__(self, archive: Archive) -> None:
        """Take the opened archive."""
        self._archive = archive

    def fetch(self, kind: Kind, sha256: bytes, *, offset: int, length: int) -> Iterator[bytes]:
        """Yield the object's bytes from `offset` on.

        Raises TemporaryError if it is not there or cannot be read.
        """
        name = object_name(kind, sha256)
        try:
            stream, size = self._archive.open(name)
            with stream:
                if size != length:
                    raise TemporaryError(f"{name} has {size} bytes in the archive; {length} were expected")
                stream.seek(offset, 1)
                left = length - offset
                while left and (piece := stream.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
        except FileNotFoundError as e:
            raise TemporaryError(
                f"{name} is not in the archive", hint="export the bundle again; the copy is not complete"
            ) from e
        except OSError as e:
            raise TemporaryError(f"{name} cannot be read: {e.strerror}", hint="copy the archive again") from e
